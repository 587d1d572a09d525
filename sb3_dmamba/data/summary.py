"""What a dataset holds, for people and for JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from rich.table import Table

__all__ = ["Spread", "TrajectoriesSummary"]


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
