"""``Trajectories``: the container that every dataset becomes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64, Int64, Num, Shaped
from numpy import ndarray
from rich.table import Table

from sb3_dmamba.checks import check_number
from sb3_dmamba.data.export import Exports
from sb3_dmamba.data.mapping import gather_stacks, is_mapped, join_rows, read_state, write_state
from sb3_dmamba.data.returns import compute_returns, compute_returns_to_go, iterate_groups
from sb3_dmamba.data.validation import (
    ARRAYS,
    check_episodes,
    check_finite,
    check_json,
    rows_per_chunk,
    validate_arrays,
)
from sb3_dmamba.errors import ConfigError, DatasetError


def check_steps(
    steps: Int64[ndarray, "M"], n_steps: int, name: str = "steps"
) -> Int64[ndarray, "M"]:
    """Return flat indices of steps as int64.

    Raises:
        DatasetError: There is none, or one is not a step of the data; names the first.
    """
    array = np.atleast_1d(np.asarray(steps))
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise DatasetError(f"{name}={steps!r}: give at least one integer")
    bad = np.flatnonzero((array < 0) | (array >= n_steps))
    if len(bad):
        raise DatasetError(f"{name}[{bad[0]}] is {array[bad[0]]}: steps go from 0 to {n_steps - 1}")
    return array.astype(np.int64, copy=False)


def select_episodes(
    index: slice | Sequence[int] | Shaped[ndarray, "n"], n_episodes: int
) -> Int64[ndarray, "n"]:
    """Return the numbers of the episodes that an index selects, in its order.

    Raises:
        DatasetError: The selection is empty or of a wrong type.
    """
    if not isinstance(index, slice):
        index = np.asarray(index)
        if index.ndim != 1 or (len(index) and index.dtype.kind not in "biu"):
            raise DatasetError(
                f"episodes cannot be selected with {index!r}: give an integer, a slice, or a "
                f"one-dimensional array of integers or booleans"
            )
        index = index if len(index) else index.astype(np.int64)
    episodes: Int64[ndarray, "n"] = np.arange(n_episodes)[index]
    if not len(episodes):
        raise DatasetError(f"{index!r} selects none of the {n_episodes} episodes")
    return episodes


@dataclass(frozen=True)
class Spread:
    """How one number varies over the episodes.

    Args:
        mean: Mean.
        std: Standard deviation of the population.
        min: Smallest.
        quartile_1: A quarter of the episodes lie below.
        median: Half of them do.
        quartile_3: Three quarters do.
        max: Largest.
    """

    mean: float
    std: float
    min: float
    quartile_1: float
    median: float
    quartile_3: float
    max: float

    @classmethod
    def of(cls, values: ndarray) -> Spread:
        """Describe a non-empty array."""
        quantiles = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
        smallest, first, median, third, largest = (float(value) for value in quantiles)
        mean, std = float(np.mean(values)), float(np.std(values))
        return cls(mean, std, smallest, first, median, third, largest)

    def format(self) -> tuple[str, str, str]:
        """Return mean ± std, the range and the quartiles as text."""
        digits = 1 if max(abs(self.min), abs(self.max)) >= 10 else 3
        mean, std, smallest, first, median, third, largest = (
            f"{value:.{digits}f}" for value in dataclasses.astuple(self)
        )
        return f"{mean} ± {std}", f"{smallest} to {largest}", f"{first} | {median} | {third}"


@dataclass(frozen=True)
class TrajectoriesSummary:
    """Counts and spreads of a :class:`Trajectories`; prints as text, and as a table in rich.

    Args:
        episodes: Number of episodes.
        steps: Number of steps.
        returns: Returns of the episodes, in the environment's units.
        lengths: Steps of the episodes.
        terminated: Episodes that the environment ended.
        truncated: Episodes that a limit ended (some may be both).
        cut: Episodes that collection stopped.
        observation_space: The flat view, as text.
        action_space: As text.
        env_id: Where known.
        source: Where the data came from.
    """

    episodes: int
    steps: int
    returns: Spread
    lengths: Spread
    terminated: int
    truncated: int
    cut: int
    observation_space: str
    action_space: str
    env_id: str | None
    source: str

    @classmethod
    def from_arrays(
        cls,
        *,
        returns: Float64[ndarray, "E"],
        lengths: Int64[ndarray, "E"],
        terminated: Bool[ndarray, "E"],
        truncated: Bool[ndarray, "E"],
        observation_space: str,
        action_space: str,
        env_id: str | None,
        source: str,
    ) -> TrajectoriesSummary:
        """Summarise per-episode arrays."""
        return cls(
            episodes=len(returns),
            steps=int(lengths.sum()),
            returns=Spread.of(returns),
            lengths=Spread.of(lengths),
            terminated=int(terminated.sum()),
            truncated=int(truncated.sum()),
            cut=int((~(terminated | truncated)).sum()),
            observation_space=observation_space,
            action_space=action_space,
            env_id=env_id,
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    def _rows(self) -> list[tuple[str, str]]:
        return_mean, return_range, return_quartiles = self.returns.format()
        length_mean, length_range, length_quartiles = self.lengths.format()
        return [
            ("source", self.source or "unknown"),
            ("environment", self.env_id or "unknown"),
            ("observations", self.observation_space),
            ("actions", self.action_space),
            ("episodes", f"{self.episodes:,}"),
            ("steps", f"{self.steps:,}"),
            ("return", return_mean),
            ("  range", return_range),
            ("  quartiles", return_quartiles),
            ("length", length_mean),
            ("  range", length_range),
            ("  quartiles", length_quartiles),
            ("terminated", f"{self.terminated:,}"),
            ("truncated", f"{self.truncated:,}"),
            ("cut by collection", f"{self.cut:,}"),
        ]

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def __rich__(self) -> Table:
        table = Table(title="Dataset", show_header=False, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._rows():
            table.add_row(name, value)
        return table


REWARD_MODES = ("dense", "delayed")


class Transforms:
    """What can be made of :class:`~sb3_dmamba.data.Trajectories`; one of its base classes."""

    def drop_cut_episodes(self: Trajectories) -> Trajectories:  # type: ignore[misc]
        """Return the episodes that were terminated or truncated.

        Raises:
            DatasetError: None was.
        """
        return self if not self.cut.any() else self[~self.cut]

    def take_top(self: Trajectories, fraction: float) -> Trajectories:  # type: ignore[misc]
        """Return the episodes with the largest returns, as BC% learns from, in their order here.

        Args:
            fraction: How much of the number of episodes, in (0, 1]; rounded down, but never none.
                Of episodes with the same return, the earlier are taken.

        Raises:
            ConfigError: ``fraction`` is out of its range.

        Source: Chen et al. 2021 (arXiv:2106.01345), "percentile behavior cloning", where the
        fraction is of steps.
        """
        share = _check_fraction("fraction", fraction)
        best = _find_best(self.returns, fraction)
        if len(best) == len(self):
            return self
        chosen = self[best]
        return replace(chosen, source=_describe(self, f"the best {100 * share:g}% of episodes"))

    def with_delayed_rewards(self: Trajectories) -> Trajectories:  # type: ignore[misc]
        """Return the episodes with each one's return as the reward of its last step, zeros before.

        The return-to-go is then the whole return at every step.

        Raises:
            DatasetError: A return is too large for float32.

        Source: Chen et al. 2021 (arXiv:2106.01345), section 5, on sparse rewards.
        """
        with np.errstate(over="ignore"):  # becomes infinite, which is named
            check_finite("returns", self.returns.astype(np.float32))
        pieces = _delay(self.rewards, self.episode_offsets)
        delayed = join_rows(pieces, self.rewards.dtype, self.rewards.shape, self.rewards)
        return replace(self, rewards=delayed, source=_describe(self, "delayed rewards"))


def check_transform(reward_mode: str, top_fraction: float | None) -> None:
    """Raise ConfigError unless :func:`transform` knows what to do."""
    if reward_mode not in REWARD_MODES:
        raise ConfigError(
            f"reward_mode={reward_mode!r}: choose 'dense' or 'delayed'",
            setting="reward_mode",
            value=reward_mode,
            choices=REWARD_MODES,
        )
    if top_fraction is not None:
        _check_fraction("top_fraction", top_fraction)


def transform(
    trajectories: Trajectories, reward_mode: str = "dense", top_fraction: float | None = None
) -> Trajectories:
    """Do to a dataset what the options of ``load_trajectories`` ask for."""
    if top_fraction is not None:
        trajectories = trajectories.take_top(top_fraction)
    return trajectories.with_delayed_rewards() if reward_mode == "delayed" else trajectories


def _check_fraction(name: str, fraction: float) -> float:
    return check_number(name, fraction, math.ulp(0.0), 1.0, "above 0 and up to 1")


def _find_best(returns: Float64[ndarray, "E"], fraction: float) -> Int64[ndarray, "n"]:
    exact = fraction * len(returns)  # 0.29 * 100 is 28.999999999999996
    count = max(1, math.floor(exact * (1 + 1e-12)))
    return np.sort(np.argsort(-returns, kind="stable")[:count])


def select(trajectories: Trajectories, episodes: Int64[ndarray, "n"]) -> Trajectories:
    """Return episodes by number, in the order of the numbers.

    Episodes that follow each other become views. Others are copied: from arrays in memory to
    arrays in memory, from large mapped ones to temporary files that are mapped.
    """
    starts, lengths = trajectories.episode_offsets[episodes], trajectories.lengths[episodes]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {name: getattr(trajectories, name) for name in ("observations", "actions", "rewards")}
    if not (np.diff(episodes) != 1).any():
        steps = slice(int(starts[0]), int(starts[0] + offsets[-1]))
        chosen = {name: array[steps] for name, array in arrays.items()}
    elif any(map(is_mapped, arrays.values())):
        chosen = {name: _copy_ranges(a, starts, starts + lengths) for name, a in arrays.items()}
    else:
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        chosen = {name: array[rows] for name, array in arrays.items()}
    return replace(
        trajectories,
        **chosen,
        terminated=trajectories.terminated[episodes],
        truncated=trajectories.truncated[episodes],
        episode_offsets=offsets,
    )


def _describe(trajectories: Trajectories, change: str) -> str:
    """Return the source of a dataset that was changed."""
    return f"{trajectories.source} ({change})" if trajectories.source else change


def replace(trajectories: Trajectories, **changes: Any) -> Trajectories:
    """Return a copy with fields that need no check, being made of checked ones."""
    names = [field.name for field in dataclasses.fields(trajectories)]
    fields = {name: getattr(trajectories, name) for name in names}
    return assemble(type(trajectories), {**fields, **changes})


def assemble(kind: type[Trajectories], fields: Mapping[str, Any]) -> Trajectories:
    """Make ``Trajectories`` of fields that were checked before, without looking at the steps."""
    names = {field.name for field in dataclasses.fields(kind)}
    assert set(fields) == names, names ^ set(fields)
    trajectories = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(trajectories, name, value)
    return trajectories


def _copy_ranges(array: ndarray, starts: Int64[ndarray, "n"], ends: Int64[ndarray, "n"]) -> ndarray:
    shape = (int((ends - starts).sum()), *array.shape[1:])
    most = rows_per_chunk(array)

    def pieces() -> Iterator[ndarray]:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for first in range(start, end, most):
                yield array[first : min(first + most, end)]

    return join_rows(pieces(), array.dtype, shape, array)


def _delay(rewards: ndarray, offsets: Int64[ndarray, "E+1"]) -> Iterator[ndarray]:
    for group, ends in iterate_groups(rewards, offsets):
        delayed = np.zeros_like(group)
        delayed[ends[1:] - 1] = np.add.reduceat(group, ends[:-1], dtype=np.float64)
        yield delayed


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode: views of a :class:`Trajectories`' arrays.

    Args:
        observations: What each action was chosen on, (T, *obs); single frames where they are
            stacked when drawn.
        actions: The actions, (T, A) float32 or (T,) int64.
        rewards: What each action earned, (T,) float32, in the environment's units.
        terminated: Whether the environment ended it.
        truncated: Whether a limit (of time, mostly) ended it.
        return_: The sum of the rewards, accumulated in float64.
    """

    observations: Num[ndarray, "T *obs"]
    actions: Num[ndarray, "T *action"]
    rewards: Float32[ndarray, "T"]
    terminated: bool
    truncated: bool
    return_: float

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        return f"Episode({len(self)} steps, return {self.return_:.4g})"


@dataclass(frozen=True, eq=False)
class Trajectories(Transforms, Exports):
    """Recorded episodes: flat arrays of steps, cut into episodes by offsets.

    ``len()`` counts episodes; an integer index gives an :class:`Episode` of views, a slice or an
    array of indices or of booleans another ``Trajectories``. An episode that was neither
    terminated nor truncated was cut when collection stopped; it is kept, and counted in
    :meth:`summary`.

    Args:
        observations: What each action was chosen on, (N, *obs), flat view: float32, or uint8
            where the space holds frames of bytes. May be memory-mapped.
        actions: (N, A) float32 for a Box, (N,) int64 for Discrete, in the environment's own
            numbers (a Discrete space may start anywhere).
        rewards: What each action earned, (N,) float32, in the environment's units.
        terminated: Per episode, whether the environment ended it, (E,).
        truncated: Per episode, whether a limit ended it, (E,).
        episode_offsets: First step of each episode, and at the end N: (E+1,) int64.
        observation_space: The flat view of the environment's observation space.
        action_space: The environment's action space.
        env_id: What ``gymnasium.make`` takes, where it is known.
        env_kwargs: Its other arguments, which JSON can hold.
        source: Where the data came from, for people.
        frame_stack: Frames in one observation. Where more than 1, ``observations`` holds single
            frames once, (N, *frame) uint8, ``observation_space`` is what the policy sees,
            (frame_stack, *frame), and :meth:`stack_frames` makes the one from the other.

    Raises:
        DatasetError: The data is empty, has mismatched lengths, wrong shapes or dtypes, values
            that are not finite or actions outside their space. Names the first bad index.
        SpaceError: The action space cannot be learnt, or the observation space is not a Box.
    """

    observations: Num[ndarray, "N *obs"]
    actions: Num[ndarray, "N *action"]
    rewards: Float32[ndarray, "N"]
    terminated: Bool[ndarray, "E"]
    truncated: Bool[ndarray, "E"]
    episode_offsets: Int64[ndarray, "E+1"]
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    frame_stack: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ARRAYS}
        spaces_ = self.observation_space, self.action_space
        stored = validate_arrays(given, *spaces_, self.frame_stack)
        for name, array in stored.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "frame_stack", int(self.frame_stack))
        object.__setattr__(self, "env_kwargs", check_json(self.env_kwargs))

    @classmethod
    def from_episodes(
        cls,
        observations: Sequence[Num[ndarray, "T *obs"]],
        actions: Sequence[Num[ndarray, "T *action"]],
        rewards: Sequence[Num[ndarray, "T"]],
        terminated: Sequence[bool] | Bool[ndarray, "E"],
        truncated: Sequence[bool] | Bool[ndarray, "E"],
        *,
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        source: str = "",
        frame_stack: int = 1,
    ) -> Trajectories:
        """Join one array per episode; every argument is as the class has it.

        Raises:
            DatasetError: As the class, or the lists or the arrays of an episode differ in length.
            SpaceError: As the class.
        """
        check_episodes(observations, actions, rewards, len(terminated))
        return cls(
            observations=np.concatenate([np.asarray(part) for part in observations]),
            actions=np.concatenate([np.asarray(part) for part in actions]),
            rewards=np.concatenate([np.asarray(part) for part in rewards]),
            terminated=np.asarray(terminated),
            truncated=np.asarray(truncated),
            episode_offsets=np.concatenate([[0], np.cumsum([len(part) for part in rewards])]),
            observation_space=observation_space,
            action_space=action_space,
            env_id=env_id,
            env_kwargs=env_kwargs or {},
            source=source,
            frame_stack=frame_stack,
        )

    def __len__(self) -> int:
        return len(self.episode_offsets) - 1

    def __iter__(self) -> Iterator[Episode]:
        return (self[episode] for episode in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a store as its place: neither read whole nor written once more."""
        return write_state(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        read_state(self, state)

    def __repr__(self) -> str:
        return f"Trajectories({len(self)} episodes, {self.n_steps} steps, source={self.source!r})"

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Episode: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Shaped[ndarray, "n"]) -> Trajectories: ...

    def __getitem__(
        self, index: int | np.integer[Any] | slice | Sequence[int] | Shaped[ndarray, "n"]
    ) -> Episode | Trajectories:
        """Return an episode, or the selected episodes in the order asked for.

        Raises:
            DatasetError: The selection is empty or of a wrong type.
            IndexError: There is no such episode.
        """
        if not isinstance(index, (int, np.integer)):
            return select(self, select_episodes(index, len(self)))
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index}: there are {len(self)}")
        episode = int(index) % len(self)
        steps = slice(self.episode_offsets[episode], self.episode_offsets[episode + 1])
        return Episode(
            observations=self.observations[steps],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=bool(self.terminated[episode]),
            truncated=bool(self.truncated[episode]),
            return_=float(self.returns[episode]),
        )

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes."""
        return len(self.rewards)

    @cached_property
    def lengths(self) -> Int64[ndarray, "E"]:
        """Steps of each episode."""
        return np.diff(self.episode_offsets)

    @cached_property
    def returns(self) -> Float64[ndarray, "E"]:
        """Return of each episode, in the environment's units."""
        return compute_returns(self.rewards, self.episode_offsets)

    @cached_property
    def returns_to_go(self) -> Float32[ndarray, "N"]:
        """Rewards still to come at each step, its own included, in the environment's units."""
        return compute_returns_to_go(self.rewards, self.episode_offsets)

    def stack_frames(self, steps: Int64[ndarray, "M"]) -> Num[ndarray, "M *obs"]:
        """Return what the policy sees at given steps, in ``observation_space``.

        Args:
            steps: Flat indices, 0 to N - 1, in any order.

        Returns:
            The last ``frame_stack`` frames up to each step, oldest first, (M, frame_stack, *frame);
            zeros before the episode's start. With a ``frame_stack`` of 1, the observations.

        Raises:
            DatasetError: An index is not a step of the data; names the first.

        Source: Dopamine's replay buffer and Stable-Baselines3's ``VecFrameStack`` pad alike.
        """
        steps = check_steps(steps, self.n_steps)
        if self.frame_stack == 1:
            observations: Num[ndarray, "M *obs"] = self.observations[steps]
            return observations
        episodes = np.searchsorted(self.episode_offsets, steps, side="right") - 1
        return gather_stacks(
            self.observations, steps, self.episode_offsets[episodes], self.frame_stack
        )

    @property
    def cut(self) -> Bool[ndarray, "E"]:
        """Per episode, whether collection stopped before it was terminated or truncated."""
        cut: Bool[ndarray, "E"] = ~(self.terminated | self.truncated)
        return cut

    def summary(self) -> TrajectoriesSummary:
        """Describe the data; prints as text, and as a table in rich."""
        return TrajectoriesSummary.from_arrays(
            returns=self.returns,
            lengths=self.lengths,
            terminated=self.terminated,
            truncated=self.truncated,
            observation_space=str(self.observation_space),
            action_space=str(self.action_space),
            env_id=self.env_id,
            source=self.source,
        )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a store: a folder of ``.npy`` files and a JSON, which :meth:`open` maps.

        It is written under a temporary name and renamed, so it is there whole or not at all.

        Args:
            folder: Where; folders on the way are made.
            overwrite: Whether a store that is there already is replaced. Nothing else ever is.

        Raises:
            DatasetError: ``folder`` exists and may not be replaced.
            OSError: It cannot be written, or the disk is full.
        """
        from sb3_dmamba.data.store import save_store

        save_store(self, folder, overwrite)

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
        """Open a store, memory-mapped: data larger than memory can be learnt from.

        Sizes, types and offsets are checked and no step is read; values were checked when they
        were written. Windows are then read as they are drawn. Selecting episodes that do not
        follow each other copies large data to temporary files.

        Args:
            folder: What :meth:`save` or a ``TrajectoriesWriter`` wrote.
            verify: Whether every value is looked at again.

        Raises:
            DatasetError: A file is missing, damaged or of a newer version; names it.
        """
        from sb3_dmamba.data.store import load_store

        return load_store(folder, verify=verify)
