"""Samplers of training windows: random or consecutive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64, Num
from numpy import ndarray
from torch import Tensor

from sb3_dmamba.checks import check_integer, check_number
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import check_steps, find_episodes


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """B windows of K steps, each from one episode, with zeros to the right of its end.

    Args:
        observations: (B, K, *obs), float32 or uint8, as stored; frames stacked, oldest first,
            with zeros before the episode's start.
        actions: (B, K, A) float32 or (B, K) int64, as stored.
        returns_to_go: (B, K) float32, in the environment's units.
        timesteps: (B, K) int64, steps since the episode's start.
        padding_mask: (B, K), True where the step is real.
        before: The steps right before each window, with zeros to the left of its episode's
            start; None where none are wanted, or no window has any.
        first_steps: (B,) int64, where each window begins in the data, from samplers whose rows
            go on from one batch to the next; None from the others.
    """

    observations: Num[Tensor, "B K *obs"]
    actions: Num[Tensor, "B K *action"]
    returns_to_go: Float[Tensor, "B K"]
    timesteps: Int[Tensor, "B K"]
    padding_mask: Bool[Tensor, "B K"]
    before: WindowBatch | None = None
    first_steps: Int[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return len(self.padding_mask)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a model takes: observations, actions, returns-to-go and timesteps."""
        return self.observations, self.actions, self.returns_to_go, self.timesteps

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> WindowBatch:
        """Return the batch on a device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> WindowBatch:
        """Return the batch in page-locked memory, from which copies to a GPU can overlap."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> WindowBatch:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: change(part) for name, part in parts.items() if part is not None}
        return dataclasses.replace(self, **changed)


N_RETURN_BINS = 10  # of balanced sampling


class WindowSampler:
    """Draws batches of windows; by default every step is equally likely to be a window's first.

    The batch of an update is a pure function of the seed and the update's number, so a run that
    is resumed draws what it would have drawn, with no state to keep.

    Args:
        trajectories: The episodes. Windows never cross from one into the next.
        context_length: Steps in a window, K; longer than an episode is allowed.
        batch_size: Windows in a batch, B.
        seed: A non-negative integer.
        burn_in: Steps before each window to give as ``WindowBatch.before``, fewer where its
            episode has fewer. Which windows are drawn does not depend on it.
        rows: Which rows of each batch to give, where several processes share it; all by default.
        balance: Share of the windows that are drawn balanced: uniformly over ten equal bins of the
            range of episode returns, those without episodes left out, then over the steps of the
            bin. The other windows are those that would be drawn without it.

    Raises:
        ConfigError: A number is out of its range.

    Source: Chen et al. 2021 (arXiv:2106.01345) draw episodes weighted by their length and then a
    first step uniformly, which is the same distribution; theirs pad on the left.
    """

    is_consecutive = False
    """Whether a row's windows follow each other, and batches say where they begin."""

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        burn_in: int = 0,
        rows: slice = slice(None),
        balance: float = 0.0,
    ) -> None:
        self.trajectories = trajectories
        self.context_length = check_integer("context_length", context_length, 1)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.seed = check_integer("seed", seed, 0)
        self.burn_in = check_integer("burn_in", burn_in, 0)
        self.rows = rows
        self.balance = check_number("balance", balance, 0.0, 1.0, "from 0 to 1")
        self._bins = _ReturnBins.of(trajectories) if self.balance else None
        self._within_window = np.arange(self.context_length)
        self._before_window = np.arange(-self.burn_in, 0)

    def sample(self, update: int) -> WindowBatch:
        """Draw the batch of an update, numbered from 0: (``rows`` of) ``batch_size`` windows.

        Raises:
            ConfigError: ``update`` is not a non-negative integer.
        """
        first_steps = self.draw_first_steps(update)
        windows = self._gather(first_steps)
        if not self.is_consecutive:
            return windows
        return dataclasses.replace(windows, first_steps=torch.from_numpy(first_steps))

    def draw_first_steps(self, update: int) -> Int64[ndarray, "B"]:
        """Draw where the windows of an update begin, as flat indices of steps."""
        generator = np.random.default_rng((self.seed, check_integer("update", update, 0)))
        first_steps = generator.integers(self.trajectories.n_steps, size=self.batch_size)
        if self._bins is not None:
            is_balanced = generator.random(self.batch_size) < self.balance
            drawn = self._bins.draw(generator, self.batch_size)
            first_steps = np.where(is_balanced, drawn, first_steps)
        return first_steps[self.rows]

    def window_at(self, first_steps: Int64[ndarray, "B"]) -> WindowBatch:
        """Return the windows that begin at given steps, flat indices from 0 to N - 1.

        Raises:
            DatasetError: An index is not a step of the data; names the first.
        """
        return self._gather(check_steps(first_steps, self.trajectories.n_steps, "first_steps"))

    def iterate_all(self) -> Iterator[WindowBatch]:
        """Yield every step exactly once, in windows without overlap, each episode's last padded."""
        lengths, offsets = self.trajectories.lengths, self.trajectories.episode_offsets
        windows = -(-lengths // self.context_length)  # per episode, rounded up
        before = np.concatenate([[0], np.cumsum(windows)])
        place = np.arange(before[-1]) - np.repeat(before[:-1], windows)  # window in its episode
        first_steps = np.repeat(offsets[:-1], windows) + place * self.context_length
        for start in range(0, len(first_steps), self.batch_size):
            yield self._gather(first_steps[start : start + self.batch_size])

    def _gather(self, first_steps: Int64[ndarray, "B"]) -> WindowBatch:
        windows = self._gather_span(first_steps, self._within_window)
        n_before = self.count_before(first_steps)
        if n_before == 0:
            return windows
        before = self._gather_span(first_steps, self._before_window[-n_before:])
        return dataclasses.replace(windows, before=before)

    def count_before(self, first_steps: Int64[ndarray, "B"]) -> int:
        """Return the steps of ``WindowBatch.before``: the burn-in, or what all episodes have."""
        if not self.burn_in:
            return 0
        offsets = self.trajectories.episode_offsets
        starts = offsets[find_episodes(first_steps, offsets)]
        longest = int((first_steps - starts).max(initial=0))
        return min(longest, self.burn_in)

    def _gather_span(
        self, first_steps: Int64[ndarray, "B"], span: Int64[ndarray, "K"]
    ) -> WindowBatch:
        """Gather the steps at given distances from each first step, as far as its episode goes."""
        data = self.trajectories
        episodes = find_episodes(first_steps, data.episode_offsets)
        starts, ends = data.episode_offsets[episodes], data.episode_offsets[episodes + 1]
        steps = first_steps[:, None] + span  # (B, K)
        real = (steps >= starts[:, None]) & (steps < ends[:, None])
        padding = None if real.all() else ~real
        timesteps = steps - starts[:, None]
        if padding is not None:
            timesteps[padding] = 0
            steps = np.maximum(steps, 0)
        return WindowBatch(
            observations=_take_observations(data, steps, padding),
            actions=_take(data.actions, steps, padding),
            returns_to_go=_take(data.returns_to_go, steps, padding),
            timesteps=torch.from_numpy(timesteps),
            padding_mask=torch.from_numpy(real),
        )


class _ReturnBins(NamedTuple):
    """Episodes in order of the bin of their return."""

    starts: Int64[ndarray, "E"]  # first step of each episode in the data
    ends: Int64[ndarray, "E"]  # steps up to each episode's end, in this order
    bounds: Int64[ndarray, "bins+1"]  # steps before each bin that holds episodes, and in all

    @classmethod
    def of(cls, trajectories: Trajectories) -> _ReturnBins | None:
        """Sort the episodes of a dataset; None if all returns are equal."""
        returns = trajectories.returns
        width = (returns.max() - returns.min()) / N_RETURN_BINS
        if width == 0.0:
            return None
        bins = np.minimum((returns - returns.min()) // width, N_RETURN_BINS - 1)
        order = np.argsort(bins, kind="stable")
        ends = np.cumsum(trajectories.lengths[order])
        is_last = np.append(np.diff(bins[order]) > 0, True)  # of its bin
        bounds = np.concatenate([[0], ends[is_last]])
        return cls(trajectories.episode_offsets[:-1][order], ends, bounds)

    def draw(self, generator: np.random.Generator, size: int) -> Int64[ndarray, "B"]:
        """Draw steps: uniform over the bins, then over the steps of a bin."""
        bins = generator.integers(len(self.bounds) - 1, size=size)
        places = generator.integers(self.bounds[bins], self.bounds[bins + 1])
        ranks = np.searchsorted(self.ends, places, side="right")
        begins = np.concatenate([[0], self.ends])[ranks]
        steps: Int64[ndarray, "B"] = self.starts[ranks] + places - begins
        return steps


def _take_observations(
    data: Trajectories, steps: Int64[ndarray, "B K"], padding: Bool[ndarray, "B K"] | None
) -> Num[Tensor, "B K *obs"]:
    """Gather observations, stacking their frames where they are stored one by one."""
    if data.frame_stack == 1:
        return _take(data.observations, steps, padding)
    inside = np.minimum(steps.reshape(-1), data.n_steps - 1)
    stacks = data.stack_frames(inside).reshape(*steps.shape, *data.observation_space.shape)
    if padding is not None:
        stacks[padding] = 0
    return torch.from_numpy(stacks)


def _take(
    array: Num[ndarray, "N *rest"],
    steps: Int64[ndarray, "B K"],
    padding: Bool[ndarray, "B K"] | None,
) -> Num[Tensor, "B K *rest"]:
    """Gather rows into a new tensor, with zeros where there is padding."""
    rows = np.empty((*steps.shape, *array.shape[1:]), dtype=array.dtype)
    # Padding after the last episode gives its last step. "raise" would copy once more.
    array.take(steps, axis=0, out=rows, mode="clip")
    if padding is not None:
        rows[padding] = 0
    return torch.from_numpy(rows)


_PHASE_STREAM, _ORDER_STREAM = 0, 1  # independent random numbers from one seed


class _Pass(NamedTuple):
    """One row's way through all episodes."""

    number: int  # passes of this row before it
    episodes: Int32[ndarray, "E"]  # in their order
    ends: Int64[ndarray, "E"]  # windows until each of them is over


class ConsecutiveSampler(WindowSampler):
    """Gives each row of the batch whole episodes, a window an update, in order.

    A row goes through all episodes in a random order, then again in another; the rows' orders are
    independent and their starts spread at random, so a batch is as mixed as one drawn at random,
    and in one pass of a row every step counts once. A row goes on from the batch before unless its
    window (``WindowBatch.first_steps``) is an episode's first, or the run's. The batch of an update
    is a pure function of the seed and the update's number.

    Args:
        trajectories: The episodes.
        context_length: Steps in a window, K; an episode's last window is padded.
        batch_size: Rows, B.
        seed: A non-negative integer.
        rows: Which rows to give, as for :class:`WindowSampler`.

    Raises:
        ConfigError: A number is out of its range.
    """

    is_consecutive = True

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        rows: slice = slice(None),
    ) -> None:
        super().__init__(trajectories, context_length, batch_size, seed, rows=rows)
        self._n_windows = -(-trajectories.lengths // self.context_length)  # per episode, rounded up
        self.n_windows = int(self._n_windows.sum())
        """Windows in all episodes, and updates in which a row goes through them."""
        generator = np.random.default_rng((self.seed, _PHASE_STREAM))
        self._phases = generator.integers(self.n_windows, size=self.batch_size)
        self._passes: dict[int, _Pass] = {}

    def draw_first_steps(self, update: int) -> Int64[ndarray, "B"]:
        """Return where each row's next window begins, as flat indices of steps."""
        update = check_integer("update", update, 0)
        places = [int(phase) + update for phase in self._phases]
        rows = range(self.batch_size)[self.rows]
        return np.array([self._find(row, places[row]) for row in rows], dtype=np.int64)

    def _find(self, row: int, place: int) -> int:
        """Return the first step of the window at a place in a row's endless sequence."""
        number, window = divmod(place, self.n_windows)
        current = self._passes.get(row)
        if current is None or current.number != number:
            current = self._passes[row] = self._make_pass(row, number)
        rank = int(np.searchsorted(current.ends, window, side="right"))
        episode = int(current.episodes[rank])
        left = int(current.ends[rank]) - window  # windows of the episode, this one included
        within = int(self._n_windows[episode]) - left
        return int(self.trajectories.episode_offsets[episode]) + within * self.context_length

    def _make_pass(self, row: int, number: int) -> _Pass:
        generator = np.random.default_rng((self.seed, _ORDER_STREAM, row, number))
        episodes = generator.permutation(len(self.trajectories)).astype(np.int32)
        return _Pass(number, episodes, np.cumsum(self._n_windows[episodes]))
