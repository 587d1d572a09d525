"""What one target achieved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation.protocols import ReferenceScore
from sb3_dmamba.evaluation.statistics import (
    compute_confidence_interval,
    compute_normalized_score,
    compute_standard_error,
)

__all__ = ["TargetResult"]


@dataclass(frozen=True, eq=False)
class TargetResult:
    """The episodes in which one return was asked for.

    Args:
        target_return: The return asked for, in the environment's units.
        returns: The returns achieved, undiscounted, an entry an episode (n,) float64.
        lengths: Steps of each episode (n,) int64.
        reference: The returns that the normalised scores 0 and 100 stand for, or None.

    Raises:
        ConfigError: There is no episode, or ``returns`` and ``lengths`` differ in length.
    """

    target_return: float
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    reference: ReferenceScore | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "returns", np.array(self.returns, dtype=np.float64))
        object.__setattr__(self, "lengths", np.array(self.lengths, dtype=np.int64))
        if self.returns.ndim != 1 or not len(self.returns):
            raise ConfigError(f"returns has shape {self.returns.shape}: give one for each episode")
        if self.lengths.shape != self.returns.shape:
            raise ConfigError(
                f"{len(self.returns)} returns and lengths of shape {self.lengths.shape}: give "
                "one of each for each episode"
            )

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return achieved."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (n - 1); NaN for one episode."""
        return float(self.returns.std(ddof=1)) if self.n_episodes > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`; NaN for one episode."""
        return compute_standard_error(self.returns)

    @cached_property
    def confidence_interval(self) -> tuple[float, float]:
        """Bootstrapped 95 % confidence interval of :attr:`mean`; NaN for one episode."""
        return compute_confidence_interval(self.returns)

    @property
    def mean_length(self) -> float:
        """Mean number of steps in an episode."""
        return float(self.lengths.mean())

    @property
    def normalized_score(self) -> float | None:
        """:attr:`mean` on D4RL's scale (0 random, 100 expert); None without a reference."""
        if self.reference is None:
            return None
        limits = self.reference.minimum, self.reference.maximum
        return float(compute_normalized_score(self.mean, *limits))

    def summary(self) -> dict[str, float | int | None]:
        """Return every figure of the target by name, as the tables have them; NaN where unknown."""
        low, high = self.confidence_interval
        return {
            "target_return": self.target_return,
            "mean": self.mean,
            "std": self.std,
            "standard_error": self.standard_error,
            "ci_low": low,
            "ci_high": high,
            "normalized_score": self.normalized_score,
            "mean_length": self.mean_length,
            "n_episodes": self.n_episodes,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, the returns and the lengths as JSON-compatible values."""
        figures = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in self.summary().items()
        }
        return {**figures, "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @classmethod
    def from_dict(
        cls, fields: Mapping[str, Any], reference: ReferenceScore | None = None
    ) -> TargetResult:
        """Build a result from what :meth:`to_dict` returned; its figures are computed anew."""
        return cls(fields["target_return"], fields["returns"], fields["lengths"], reference)
