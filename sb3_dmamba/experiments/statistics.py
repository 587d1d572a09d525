"""Comparisons of trainings: winners, probability of improvement, profiles, rank correlation.

The estimates they are built on are in :mod:`sb3_dmamba.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation.statistics import (
    Estimate,
    as_strata,
    compute_interquartile_mean,
    compute_mean,
    estimate,
    percentile_interval,
    resample,
)

__all__ = [
    "Estimate",
    "PerformanceProfile",
    "compute_distance",
    "compute_interquartile_mean",
    "compute_performance_profile",
    "compute_probability_of_improvement",
    "compute_rank_correlation",
    "estimate",
    "find_winner",
]

_N_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100
_TINY = 1e-12


def find_winner(estimates: Mapping[str, Estimate]) -> str | None:
    """Return the name whose interval lies above every other one; None where none does."""
    for name, own in estimates.items():
        others = [other for each, other in estimates.items() if each != name]
        if others and all(own.is_above(other) for other in others):
            return name
    return None


def compute_probability_of_improvement(first: Any, second: Any, *, level: float = 0.95) -> Estimate:
    """Estimate how often a training of the first kind scores above one of the second.

    A training's score is the mean of its episodes; ties count half.

    Args:
        first: Returns (seeds, episodes) of one task, or a sequence of such.
        second: Likewise, of the same tasks, with any number of seeds.
        level: Coverage of the interval.

    Returns:
        The share of pairs of seeds, averaged over tasks, and its interval, inside [0, 1]: the
        score intervals of the tasks, combined.

    Raises:
        ConfigError: An array is empty or not of this shape, or the numbers of tasks differ.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.3; Newcombe 2006, "Confidence
    intervals for an effect size measure based on the Mann-Whitney statistic, part 2", method 5;
    Zou and Donner 2008, "Construction of confidence limits about effect measures: a general
    approach", for the combination.
    """
    pairs = as_strata(first), as_strata(second)
    if len(pairs[0]) != len(pairs[1]):
        message = f"returns of {len(pairs[0])} and {len(pairs[1])} tasks: give the same tasks"
        raise ConfigError(message, setting="returns", value=tuple(map(len, pairs)))
    found = []  # of each task: share, low, high
    for own, other in zip(*pairs, strict=True):
        differences = own.mean(axis=1)[:, None] - other.mean(axis=1)[None]
        share = float(((differences > 0) + 0.5 * (differences == 0)).mean())
        found.append([share, *_score_interval(share, len(own), len(other), level)])
    shares, low, high = np.array(found).T
    value = float(shares.mean())
    below, above = (float(np.sqrt(((shares - end) ** 2).sum()) / len(found)) for end in (low, high))
    strata = [*pairs[0], *pairs[1]]
    counts = min(map(len, strata)), sum(each.size for each in strata)
    return Estimate(value, value - below, value + above, *counts)


def compute_distance(
    target_returns: Sequence[float], seed_means: NDArray[Any], span: float
) -> Estimate:
    """Estimate the mean absolute distance between returns asked for and achieved.

    Args:
        target_returns: The returns asked for (targets,).
        seed_means: Mean return of each training for each target (targets, seeds).
        span: What the distance is a share of: the range of the data's returns.

    Returns:
        The mean over targets and trainings, and its interval over trainings, from 0.
    """
    distances = np.abs(seed_means - np.asarray(target_returns)[:, None]).mean(axis=0) / span
    found = estimate(distances[:, None], compute_mean)
    return replace(found, low=float(np.maximum(found.low, 0.0)))


def _score_interval(share: float, n_own: int, n_other: int, level: float) -> tuple[float, float]:
    if n_own < 2 or n_other < 2:
        return math.nan, math.nan
    from scipy import optimize, stats

    z = float(stats.norm.ppf(0.5 + level / 2))
    half = (n_own + n_other) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        variance = theta * (1 - theta) * spread / (n_own * n_other)
        return abs(share - theta) - z * math.sqrt(max(variance, 0.0))

    # the variance vanishes at 0 and 1, and with it the excess at a share of 0 or 1
    low = 0.0 if share == 0 else float(optimize.brentq(excess, 0.0, min(share, 1 - _TINY)))
    high = 1.0 if share == 1 else float(optimize.brentq(excess, max(share, _TINY), 1.0))
    return low, high


@dataclass(frozen=True, eq=False)
class PerformanceProfile:
    """Share of episodes above each threshold."""

    thresholds: NDArray[np.float64]  # rising (n,)
    shares: NDArray[np.float64]  # (n,)
    low: NDArray[np.float64]  # of the band (n,)
    high: NDArray[np.float64]


def compute_performance_profile(
    returns: Any, thresholds: NDArray[Any], *, level: float = 0.95, n_resamples: int = 500
) -> PerformanceProfile:
    """Compute the share of episodes above each threshold.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.2, score distributions.
    """
    thresholds = np.sort(np.asarray(thresholds, dtype=np.float64))

    def count(values: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = np.sort(values, axis=-1)
        below = np.stack([np.searchsorted(row, thresholds, side="right") for row in ordered])
        shares: NDArray[np.float64] = 1.0 - below / values.shape[-1]
        return shares

    pooled = np.concatenate([each.reshape(-1) for each in as_strata(returns)])
    low, high = percentile_interval(resample(returns, count, n_resamples), level)
    return PerformanceProfile(thresholds, count(pooled[None])[0], low, high)


def compute_rank_correlation(
    target_returns: Sequence[float], returns: Sequence[NDArray[Any]], *, level: float = 0.95
) -> Estimate:
    """Estimate Spearman's correlation of the returns asked for and achieved.

    A target's achieved return is the interquartile mean over seeds and episodes.

    Args:
        target_returns: The returns asked for, at least two different ones.
        returns: For each, the returns achieved (seeds, episodes), the same seeds everywhere.
        level: Coverage of the interval, which is of percentiles, since correlations end at 1.

    Returns:
        The correlation; NaN where all achieved returns are the same.

    Raises:
        ConfigError: The targets are too few, or do not match the returns.
    """
    asked = np.asarray(target_returns, dtype=np.float64)
    achieved = np.stack(as_strata(list(returns)))  # (targets, seeds, episodes)
    if len(asked) != len(achieved) or len(np.unique(asked)) < 2:
        counts = f"{len(asked)} targets and returns of {len(achieved)}"
        message = f"{counts}: give two or more targets that differ, and returns of each"
        raise ConfigError(message, setting="target_returns", value=target_returns)
    n_targets, n_seeds, n_episodes = achieved.shape
    centres = compute_interquartile_mean(achieved.reshape(n_targets, -1))
    value = float(_spearman(asked, centres[None])[0])
    generator = np.random.default_rng(0)
    n = _RESAMPLES_AT_ONCE
    drawn = []
    for _ in range(_N_RESAMPLES // n):
        seeds = generator.integers(n_seeds, size=(n, 1, n_seeds, 1))  # the same for all targets
        episodes = generator.integers(n_episodes, size=(n, n_targets, n_seeds, n_episodes))
        resampled = achieved[np.arange(n_targets)[:, None, None], seeds, episodes]
        drawn.append(compute_interquartile_mean(resampled.reshape(n, n_targets, -1)))
    draws = _spearman(asked, np.concatenate(drawn))
    known = draws[~np.isnan(draws)]
    if not len(known) or math.isnan(value):
        return Estimate(value, math.nan, math.nan, n_seeds, achieved.size)
    low, high = percentile_interval(known, level)
    return Estimate(value, min(low, value), max(high, value), n_seeds, achieved.size)


def _spearman(asked: NDArray[np.float64], achieved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlate the ranks of (targets,) with those of (n, targets); NaN where all are equal."""
    from scipy import stats
    from scipy.spatial.distance import cdist

    ranks = stats.rankdata(achieved, axis=-1)
    correlation: NDArray[np.float64] = 1.0 - cdist([stats.rankdata(asked)], ranks, "correlation")[0]
    return correlation
