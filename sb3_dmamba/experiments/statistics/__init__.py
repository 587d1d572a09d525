"""What may be said of returns over seeds and episodes."""

from __future__ import annotations

from sb3_dmamba.experiments.statistics.comparison import (
    PerformanceProfile,
    compute_performance_profile,
    compute_probability_of_improvement,
    compute_rank_correlation,
)
from sb3_dmamba.experiments.statistics.estimates import (
    Estimate,
    compute_interquartile_mean,
    estimate,
    find_winner,
)

__all__ = [
    "Estimate",
    "PerformanceProfile",
    "compute_interquartile_mean",
    "compute_performance_profile",
    "compute_probability_of_improvement",
    "compute_rank_correlation",
    "estimate",
    "find_winner",
]
