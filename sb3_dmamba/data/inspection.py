"""Dataset report: contents, histograms and dataset issues, in bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from sb3_dmamba.data.returns import compute_returns
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import TrajectoriesSummary
from sb3_dmamba.data.validation import rows_per_chunk, tolerate_non_finite
from sb3_dmamba.spaces import observation_dtype

if TYPE_CHECKING:
    from rich.console import Group

    from sb3_dmamba.data.trajectories import Trajectories


_N_NAMED = 8  # indices that a message lists


@dataclass(frozen=True)
class Oddity:
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


def find_oddities(data: Trajectories) -> tuple[Oddity, ...]:
    """Look through a dataset, a piece at a time.

    Args:
        data: Its values need not be finite.
    """
    return (
        *_describe_non_finite(data),
        *_find_constants(data),
        *_find_odd_actions(data),
        *_find_odd_rewards(data),
        *_find_odd_episodes(data),
        *_find_duplicates(data),
    )


def find_whole_episodes(data: Trajectories) -> Bool[ndarray, "E"]:
    """Say which episodes have finite rewards, and so a return."""
    whole: Bool[ndarray, "E"] = np.ones(len(data), dtype=bool)
    whole[_episodes_of(data, _find_non_finite(data.rewards))] = False
    return whole


def _chunks(array: ndarray) -> Iterator[tuple[int, ndarray]]:
    step = rows_per_chunk(array)
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _find_non_finite(array: ndarray) -> Int64[ndarray, "n"]:
    """Return the steps at which an array holds NaN or an infinity."""
    if array.dtype.kind != "f":
        return np.empty(0, np.int64)
    found = [
        start + np.flatnonzero(~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1))
        for start, chunk in _chunks(array)
    ]
    return np.concatenate(found)


def _episodes_of(data: Trajectories, steps: Int64[ndarray, "n"]) -> Int64[ndarray, "m"]:
    episodes: Int64[ndarray, "m"] = np.unique(
        np.searchsorted(data.episode_offsets, steps, side="right") - 1
    )
    return episodes


def _describe_non_finite(data: Trajectories) -> Iterator[Oddity]:
    for name in ("observations", "actions", "rewards"):
        steps = _find_non_finite(getattr(data, name))
        if len(steps):
            episodes = _episodes_of(data, steps)
            yield Oddity(
                "non_finite",
                f"{name} hold NaN or infinities at {_count(len(steps), 'step')} of "
                f"{_count(len(episodes), 'episode')} ({_list(episodes)}): such data is refused in "
                f"training; leave those episodes out or repair them",
                len(steps),
                _first(steps),
            )


def _find_constants(data: Trajectories) -> Iterator[Oddity]:
    """Find dimensions that never change; a frame's pixels are not looked at singly."""
    arrays = {"observations": data.observations}
    if isinstance(data.action_space, spaces.Box):
        arrays["actions"] = data.actions
    if observation_dtype(data.observation_space) is np.uint8:
        del arrays["observations"]
    for name, array in arrays.items():
        low, high = _extremes(array)
        constant = np.flatnonzero((low == high).reshape(-1))
        if len(constant):
            yield Oddity(
                "constant_dimension",
                f"{len(constant)} of {low.size} dimensions of {name} never change "
                f"({_list(constant)}): they tell nothing",
                len(constant),
                _first(constant),
            )


def _extremes(array: ndarray) -> tuple[ndarray, ndarray]:
    pairs = [(np.fmin.reduce(chunk), np.fmax.reduce(chunk)) for _, chunk in _chunks(array)]
    lows, highs = zip(*pairs, strict=True)
    return np.fmin.reduce(lows), np.fmax.reduce(highs)


def _find_odd_actions(data: Trajectories) -> Iterator[Oddity]:
    if not isinstance(data.action_space, spaces.Discrete):
        return
    first, n_actions = int(data.action_space.start), int(data.action_space.n)
    counts = np.zeros(n_actions, np.int64)
    for _, chunk in _chunks(data.actions):
        counts += np.bincount(chunk - first, minlength=n_actions)
    unused = np.flatnonzero(counts == 0) + first
    if len(unused):
        yield Oddity(
            "unused_actions",
            f"{len(unused)} of {n_actions} actions are never taken ({_list(unused)}): nothing can "
            f"be learnt of them",
            len(unused),
            _first(unused),
        )


def _find_odd_rewards(data: Trajectories) -> Iterator[Oddity]:
    low, high = _extremes(data.rewards)
    if low == high:
        yield Oddity(
            "constant_reward",
            f"every reward is {float(low):g}: returns tell episodes apart by their lengths alone",
            data.n_steps,
        )


def _find_odd_episodes(data: Trajectories) -> Iterator[Oddity]:
    cut = np.flatnonzero(data.cut)
    if len(cut):
        yield Oddity(
            "cut_episodes",
            f"{_count(len(cut), 'episode')} of {len(data):,} neither terminated nor truncated, but "
            f"cut when collection stopped ({_list(cut)}): their returns-to-go are too small; "
            f"drop_cut_episodes() leaves them out",
            len(cut),
            _first(cut),
        )
    short = np.flatnonzero(data.lengths == 1)
    if len(short):
        yield Oddity(
            "single_step_episodes",
            f"{_count(len(short), 'episode')} of {len(data):,} with a single step "
            f"({_list(short)}): a flag that is set at every step looks like that",
            len(short),
            _first(short),
        )


def _find_duplicates(data: Trajectories) -> Iterator[Oddity]:
    """Find episodes whose every step is another's; observations are read of likely ones alone."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for episode in range(len(data)):
        groups[_digest(data, episode, ("rewards", "actions"))].append(episode)
    repeated = []
    for group in groups.values():
        if len(group) > 1:
            seen = set()
            for episode in group:
                digest = _digest(data, episode, ("observations",))
                if digest in seen:
                    repeated.append(episode)
                seen.add(digest)
    if repeated:
        repeated.sort()
        yield Oddity(
            "duplicate_episodes",
            f"{_count(len(repeated), 'episode')} of {len(data):,} repeat an earlier one step for "
            f"step ({_list(repeated)}): they count twice in training",
            len(repeated),
            _first(repeated),
        )


def _digest(data: Trajectories, episode: int, names: tuple[str, ...]) -> bytes:
    start, stop = (int(offset) for offset in data.episode_offsets[episode : episode + 2])
    ends = bytes([bool(data.terminated[episode]), bool(data.truncated[episode])])
    digest = hashlib.blake2b(ends, digest_size=16)
    for name in names:
        array = getattr(data, name)
        step = rows_per_chunk(array)
        for first in range(start, stop, step):
            rows = array[first : min(first + step, stop)]
            digest.update(np.ascontiguousarray(rows).data.cast("B"))
    return digest.digest()


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _first(indices: Any) -> tuple[int, ...]:
    return tuple(int(index) for index in indices[:_N_NAMED])


def _list(indices: Any) -> str:
    more = ", ..." if len(indices) > _N_NAMED else ""
    return ", ".join(map(str, _first(indices))) + more


_N_BINS = 12
_BAR_WIDTH = 40


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
        n_bins = 1 if low == high else _N_BINS
        counts, edges = np.histogram(returns, n_bins, (low, high))
        if low == high:
            edges = np.array([low, high])
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
        oddities: What is odd; empty where nothing is.
    """

    summary: TrajectoriesSummary
    returns: Histogram
    oddities: tuple[Oddity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [str(self.summary), "Returns", *self.returns.lines(), "Oddities"]
        return "\n".join([*parts, *(f"* {line}" for line in self._messages())])

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        style = "yellow" if self.oddities else "green"
        lines = [Text(f"• {line}", style=style) for line in self._messages()]
        return Group(
            self.summary,
            Text("Returns", style="italic"),
            Padding(Text("\n".join(self.returns.lines()), no_wrap=True), (0, 0, 1, 1)),
            Text("Oddities", style="italic"),
            Padding(Group(*lines), (0, 0, 0, 1)),
        )

    def _messages(self) -> list[str]:
        return [oddity.message for oddity in self.oddities] or ["none found"]


def inspect_dataset(source: Any, **options: Any) -> DatasetReport:
    """Describe a dataset; one with values that are not finite, which cannot be learnt, too.

    Args:
        source: Whatever ``load_trajectories`` takes.
        options: As ``load_trajectories`` takes them.

    Raises:
        DatasetError: As ``load_trajectories``, but for values that are not finite.
        SpaceError: As ``load_trajectories``.
    """
    with tolerate_non_finite():
        data = load_trajectories(source, **options)
        oddities = find_oddities(data)
        with np.errstate(invalid="ignore"):  # an infinity less another
            returns = compute_returns(data.rewards, data.episode_offsets)
    returns = returns[find_whole_episodes(data)]
    return DatasetReport(_summarise(data, returns), Histogram.of(returns), oddities)


def _summarise(data: Trajectories, returns: Float64[ndarray, "E"]) -> TrajectoriesSummary:
    summary = TrajectoriesSummary.from_arrays(
        returns=returns if len(returns) else np.zeros(1),
        lengths=data.lengths,
        terminated=data.terminated,
        truncated=data.truncated,
        observation_space=str(data.observation_space),
        action_space=str(data.action_space),
        env_id=data.env_id,
        source=data.source,
    )
    return dataclasses.replace(summary, episodes=len(data))
