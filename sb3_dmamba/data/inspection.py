"""Descriptions of a dataset: what a model keeps of it, and the report of ``inspect_dataset``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dmamba.data.returns import Spread, TrajectoriesSummary, iterate_groups
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import (
    STEP_ARRAYS,
    find_episodes,
    iterate_chunks,
    tolerate_non_finite,
)
from sb3_dmamba.envs import is_atari
from sb3_dmamba.spaces import observation_dtype

_CONSTANT = 1e-6  # of the mean: a spread that float32 can hardly tell from none
_N_NAMED = 8  # indices that a message lists
_N_BINS = 12
_BAR_WIDTH = 40


@dataclass(frozen=True, eq=False)
class ObservationStatistics:
    """What observations are standardised with.

    Args:
        mean: Mean of each dimension, (*obs), float32.
        std: Standard deviation of each, (*obs), float32; 1 where the dimension is constant.
    """

    mean: Float32[ndarray, "*obs"]
    std: Float32[ndarray, "*obs"]


def compute_observation_statistics(trajectories: Trajectories) -> ObservationStatistics | None:
    """Compute the mean and standard deviation of each dimension over all steps; None for images.

    Accumulated in float64, a chunk at a time. Where single frames are stored and stacked when
    drawn, every frame of a stack gets those of the frames: the zeros before an episode are left
    out.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.
    """
    if is_image_space(trajectories.observation_space):
        return None
    count = 0
    mean = np.zeros(trajectories.observations.shape[1:], dtype=np.float64)
    squares = np.zeros_like(mean)  # sum of squared differences from the mean
    for _, rows in iterate_chunks(trajectories.observations):
        chunk = rows.astype(np.float64)
        chunk_mean = chunk.mean(axis=0)
        chunk -= chunk_mean
        difference = chunk_mean - mean
        total = count + len(chunk)
        squares += np.square(chunk).sum(axis=0)
        squares += np.square(difference) * (count * len(chunk) / total)
        mean += difference * (len(chunk) / total)
        count = total
    std = np.sqrt(squares / count)
    constant = std <= _CONSTANT * np.maximum(np.abs(mean), _CONSTANT)
    std = np.where(constant, 1.0, std)
    shape = trajectories.observation_space.shape  # of stacks, where single frames are stored
    return ObservationStatistics(
        np.broadcast_to(mean, shape).astype(np.float32),
        np.broadcast_to(std, shape).astype(np.float32),
    )


@dataclass(frozen=True)
class DatasetInfo:
    """What a model remembers of the dataset it was fitted to.

    Args:
        source: Where the dataset came from; empty where there was none.
        env_id: Environment it was recorded in, if it says.
        env_kwargs: Keyword arguments of ``gymnasium.make``.
        returns: Undiscounted return of each episode, shape (E,), float64.
        clip_rewards: Whether its rewards were clipped to [-1, 1], so that acting should count
            them so: True for an Atari game without a larger one, False where any is larger, None
            where nothing says.
        delayed_rewards: Whether episodes were paid at their last steps alone, so that the
            return-to-go stayed as it was until then, and should stay so in acting. Where the
            environment pays so too it does in any case.
    """

    source: str = ""
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    clip_rewards: bool | None = None
    delayed_rewards: bool = False

    @classmethod
    def of(cls, trajectories: Trajectories) -> DatasetInfo:
        """Note what is worth remembering of a dataset."""
        largest, paid_early, paid_last = 0.0, False, False
        for rewards, offsets in iterate_groups(trajectories.rewards, trajectories.episode_offsets):
            largest = max(largest, float(np.abs(rewards).max()))
            is_last = np.zeros(len(rewards), dtype=bool)
            is_last[offsets[1:] - 1] = True
            paid_early |= bool(rewards[~is_last].any())
            paid_last |= bool(rewards[is_last].any())
        is_game = is_atari(trajectories.env_id)
        return cls(
            trajectories.source,
            trajectories.env_id,
            dict(trajectories.env_kwargs),
            np.asarray(trajectories.returns, dtype=np.float64),
            False if largest > 1.0 else True if is_game else None,
            paid_last and not paid_early and int(trajectories.lengths.max()) > 1,
        )


@dataclass(frozen=True)
class DatasetIssue:
    """Something about a dataset that a user would want to know.

    Args:
        kind: ``non_finite``, ``constant_dimension``, ``cut_episodes``, ``duplicate_episodes``,
            ``single_step_episodes``, ``unused_actions`` or ``constant_reward``.
        message: What it is and what to do, for people.
        count: How many steps, dimensions, episodes or actions it concerns.
        where: Which: the first indices of them.
    """

    kind: str
    message: str
    count: int
    where: tuple[int, ...] = ()


Oddity = DatasetIssue  # its former name


@dataclass(frozen=True)
class Histogram:
    """Episodes by return.

    Args:
        edges: Bounds of the bins, in the environment's units, one more than there are bins.
        counts: Episodes in each.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, returns: Float64[ndarray, "E"]) -> Histogram:
        """Count returns in bins of one width; equal ones are one bin."""
        if not len(returns):
            return cls((), ())
        low, high = float(returns.min()), float(returns.max())
        if low == high:
            return cls((low, high), (len(returns),))
        counts, edges = np.histogram(returns, _N_BINS, (low, high))
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))

    def lines(self) -> list[str]:
        """Return a bar of text for each bin."""
        most = max(self.counts, default=1)
        digits = 1 if max(map(abs, self.edges), default=0) >= 10 else 3
        labels = [f"{edge:,.{digits}f}" for edge in self.edges]
        width = max(map(len, labels), default=0)
        return [
            f"{labels[i]:>{width}} to {labels[i + 1]:>{width}}  "
            f"{'█' * round(_BAR_WIDTH * count / most) or '▏' * bool(count)} {count:,}".rstrip()
            for i, count in enumerate(self.counts)
        ]


@dataclass(frozen=True)
class DatasetReport:
    """A dataset described; prints as text, and as tables in rich.

    Args:
        summary: Counts, spaces and spreads; spreads leave out what is not finite.
        returns: Episodes by return.
        oddities: The dataset issues; empty where there is none.
    """

    summary: TrajectoriesSummary
    returns: Histogram
    oddities: tuple[DatasetIssue, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    def _messages(self) -> list[str]:
        return [issue.message for issue in self.oddities] or ["none found"]

    def __str__(self) -> str:
        parts = [str(self.summary), "Returns", *self.returns.lines(), "Issues"]
        return "\n".join([*parts, *(f"* {line}" for line in self._messages())])

    def __rich__(self) -> Group:
        style = "yellow" if self.oddities else "green"
        lines = [Text(f"• {line}", style=style) for line in self._messages()]
        return Group(
            self.summary,
            Text("Returns", style="italic"),
            Padding(Text("\n".join(self.returns.lines()), no_wrap=True), (0, 0, 1, 1)),
            Text("Issues", style="italic"),
            Padding(Group(*lines), (0, 0, 0, 1)),
        )


def inspect_dataset(source: Any, **options: Any) -> DatasetReport:
    """Describe a dataset, also one with non-finite values, which cannot be learnt from.

    Args:
        source: Whatever ``load_trajectories`` takes.
        options: As ``load_trajectories`` takes them.

    Raises:
        DatasetError: As ``load_trajectories``, but for values that are not finite.
        SpaceError: As ``load_trajectories``.
    """
    with tolerate_non_finite():
        data = load_trajectories(source, **options)
        issues = (
            *_find_non_finite(data),
            *_find_constants(data),
            *_find_unused_actions(data),
            *_find_constant_reward(data),
            *_find_odd_episodes(data),
            *_find_duplicates(data),
        )
        with np.errstate(invalid="ignore"):  # an infinity less another
            summary = data.summary()
    has_return = np.ones(len(data), dtype=bool)
    has_return[_episodes_of(data, _non_finite_steps(data.rewards))] = False
    returns = data.returns[has_return]
    spread = Spread.of(returns if len(returns) else np.zeros(1))
    summary = dataclasses.replace(summary, returns=spread)
    return DatasetReport(summary, Histogram.of(returns), issues)


def _find_non_finite(data: Trajectories) -> Iterator[DatasetIssue]:
    for name in STEP_ARRAYS:
        steps = _non_finite_steps(getattr(data, name))
        if len(steps):
            episodes = _episodes_of(data, steps)
            where = f"{_count(steps, 'step')} of {_count(episodes, 'episode')}"
            what = f"{name} hold NaN or infinities at {where}"
            fix = "such data is refused in training; leave those episodes out or repair them"
            yield _issue("non_finite", steps, what, fix, named=episodes)


def _non_finite_steps(array: ndarray) -> Int64[ndarray, "n"]:
    if array.dtype.kind != "f":
        return np.empty(0, np.int64)
    found = [
        start + np.flatnonzero(~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1))
        for start, chunk in iterate_chunks(array)
    ]
    return np.concatenate(found)


def _episodes_of(data: Trajectories, steps: Int64[ndarray, "n"]) -> Int64[ndarray, "m"]:
    return np.unique(find_episodes(steps, data.episode_offsets))


def _find_constants(data: Trajectories) -> Iterator[DatasetIssue]:
    """Find dimensions that never change; pixels of frames are left out."""
    arrays = {}
    if observation_dtype(data.observation_space) is not np.uint8:
        arrays["observations"] = data.observations
    if isinstance(data.action_space, spaces.Box):
        arrays["actions"] = data.actions
    for name, array in arrays.items():
        low, high = _extremes(array)
        constant = np.flatnonzero((low == high).reshape(-1))
        if len(constant):
            what = f"{len(constant)} of {low.size} dimensions of {name} never change"
            yield _issue("constant_dimension", constant, what, "they carry no information")


def _extremes(array: ndarray) -> tuple[ndarray, ndarray]:
    pairs = [(np.fmin.reduce(chunk), np.fmax.reduce(chunk)) for _, chunk in iterate_chunks(array)]
    lows, highs = zip(*pairs, strict=True)
    return np.fmin.reduce(lows), np.fmax.reduce(highs)


def _find_unused_actions(data: Trajectories) -> Iterator[DatasetIssue]:
    if not isinstance(data.action_space, spaces.Discrete):
        return
    first, n_actions = int(data.action_space.start), int(data.action_space.n)
    counts = np.zeros(n_actions, np.int64)
    for _, chunk in iterate_chunks(data.actions):
        counts += np.bincount(chunk - first, minlength=n_actions)
    unused = np.flatnonzero(counts == 0) + first
    if len(unused):
        what = f"{len(unused)} of {n_actions} actions are never taken"
        yield _issue("unused_actions", unused, what, "nothing can be learnt of them")


def _find_constant_reward(data: Trajectories) -> Iterator[DatasetIssue]:
    low, high = _extremes(data.rewards)
    if low == high:
        message = f"every reward is {float(low):g}: returns differ by the episodes' lengths alone"
        yield DatasetIssue("constant_reward", message, data.n_steps)


def _find_odd_episodes(data: Trajectories) -> Iterator[DatasetIssue]:
    cut = np.flatnonzero(data.cut)
    if len(cut):
        what = f"{_count(cut, 'episode')} of {len(data):,} neither terminated nor truncated"
        fix = "their returns-to-go are too small; drop_cut_episodes() leaves them out"
        yield _issue("cut_episodes", cut, what, fix)
    short = np.flatnonzero(data.lengths == 1)
    if len(short):
        what = f"{_count(short, 'episode')} of {len(data):,} with a single step"
        fix = "check that terminals are not set at every step"
        yield _issue("single_step_episodes", short, what, fix)


def _find_duplicates(data: Trajectories) -> Iterator[DatasetIssue]:
    """Find episodes that repeat another; observations are read only where the rest is equal."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for episode in range(len(data)):
        groups[_digest(data, episode, "rewards", "actions")].append(episode)
    repeated = []
    for group in groups.values():
        seen = set()
        for episode in group if len(group) > 1 else ():
            digest = _digest(data, episode, "observations")
            if digest in seen:
                repeated.append(episode)
            seen.add(digest)
    if repeated:
        repeated.sort()
        what = f"{_count(repeated, 'episode')} of {len(data):,} repeat an earlier one step for step"
        yield _issue("duplicate_episodes", repeated, what, "they count twice in training")


def _digest(data: Trajectories, episode: int, *names: str) -> bytes:
    steps = slice(*data.episode_offsets[episode : episode + 2])
    ends = bytes([bool(data.terminated[episode]), bool(data.truncated[episode])])
    digest = hashlib.blake2b(ends, digest_size=16)
    for name in names:
        for _, rows in iterate_chunks(getattr(data, name)[steps]):
            digest.update(np.ascontiguousarray(rows).data.cast("B"))
    return digest.digest()


def _issue(kind: str, indices: Any, what: str, fix: str, named: Any = None) -> DatasetIssue:
    """Return an issue whose message lists the first of ``named``, by default of the indices."""
    named = indices if named is None else named
    listed = ", ".join(map(str, named[:_N_NAMED])) + ", ..." * (len(named) > _N_NAMED)
    where = tuple(map(int, indices[:_N_NAMED]))
    return DatasetIssue(kind, f"{what} ({listed}): {fix}", len(indices), where)


def _count(indices: Any, name: str) -> str:
    return f"{len(indices):,} {name}{'' if len(indices) == 1 else 's'}"
