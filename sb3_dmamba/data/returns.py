"""Returns and returns-to-go, accumulated in float64, and how they are summarised."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Num
from numpy import ndarray
from rich.table import Table

from sb3_dmamba.data.mapping import as_array, join_rows
from sb3_dmamba.data.validation import check_finite, check_offsets, group_episodes, rows_per_chunk
from sb3_dmamba.errors import DatasetError


def compute_returns_to_go(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"] | None = None
) -> Float32[ndarray, "N"]:
    """Sum the rewards still to come in the episode, the current step's included.

    Args:
        rewards: Rewards of one whole episode, or of many one after the other.
        episode_offsets: First step of each episode, and at the end their number; None is one
            episode.

    Returns:
        Entry t is ``sum(rewards[t:end of its episode])``, accumulated in float64 from the end.

    Raises:
        DatasetError: ``rewards`` is empty, not one-dimensional or not finite (names the first bad
            index), or the offsets do not cover it.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 3.
    """
    rewards = as_array(rewards)
    if rewards.ndim != 1 or len(rewards) == 0:
        problem = f"rewards have shape {rewards.shape}: expected one dimension, at least one step"
        raise DatasetError(problem, setting="rewards", value=rewards.shape)
    check_finite("rewards", rewards)
    if episode_offsets is None:
        episode_offsets = np.array([0, len(rewards)])
    check_offsets(episode_offsets, len(rewards))
    pieces = (_sum_backwards(*group) for group in iterate_groups(rewards, episode_offsets))
    return join_rows(pieces, np.dtype(np.float32), rewards.shape, rewards)


def _sum_backwards(
    rewards: Num[ndarray, "n"], offsets: Int64[ndarray, "m+1"]
) -> Float32[ndarray, "n"]:
    totals = np.empty(len(rewards), dtype=np.float32)
    for start, end in pairwise(offsets.tolist()):
        totals[start:end] = rewards[start:end][::-1].cumsum(dtype=np.float64)[::-1]
    return totals


def compute_returns(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"]
) -> Float64[ndarray, "E"]:
    """Sum the rewards of each episode in float64.

    Args:
        rewards: Rewards of all episodes one after the other, in the environment's units.
        episode_offsets: First step of each episode, and at the end the number of steps.

    Raises:
        DatasetError: The offsets do not cover ``rewards``.
    """
    check_offsets(episode_offsets, len(rewards))
    groups = iterate_groups(rewards, episode_offsets)
    return np.concatenate([sum_episodes(*group) for group in groups])


def sum_episodes(
    rewards: Num[ndarray, "n"], offsets: Int64[ndarray, "m+1"]
) -> Float64[ndarray, "m"]:
    """Sum the rewards of each episode of a group of :func:`iterate_groups`."""
    sums: Float64[ndarray, "m"] = np.add.reduceat(rewards, offsets[:-1], dtype=np.float64)
    return sums


def iterate_groups(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"]
) -> Iterator[tuple[Num[ndarray, "n"], Int64[ndarray, "m+1"]]]:
    """Yield the rewards of as many whole episodes as bounded memory holds, and their offsets."""
    episode_offsets = np.asarray(episode_offsets)
    for first, last in group_episodes(episode_offsets, rows_per_chunk(rewards)):
        offsets = episode_offsets[first : last + 1]
        yield rewards[offsets[0] : offsets[-1]], offsets - offsets[0]


@dataclass(frozen=True)
class Spread:
    """Mean, population standard deviation, range and quartiles of a number over the episodes."""

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
        return cls(float(np.mean(values)), float(np.std(values)), *map(float, quantiles))

    def _rows(self, name: str) -> list[tuple[str, str]]:
        digits = 1 if max(abs(self.min), abs(self.max)) >= 10 else 3
        mean, std, smallest, first, median, third, largest = (
            f"{value:.{digits}f}" for value in dataclasses.astuple(self)
        )
        return [
            (name, f"{mean} ± {std}"),
            ("  range", f"{smallest} to {largest}"),
            ("  quartiles", f"{first} | {median} | {third}"),
        ]


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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("source", self.source or "unknown"),
            ("environment", self.env_id or "unknown"),
            ("observations", self.observation_space),
            ("actions", self.action_space),
            ("episodes", f"{self.episodes:,}"),
            ("steps", f"{self.steps:,}"),
            *self.returns._rows("return"),
            *self.lengths._rows("length"),
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
