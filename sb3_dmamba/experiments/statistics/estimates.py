"""Interquartile means with intervals over seeds and episodes.

A training is drawn anew with every seed and an episode with every start, so returns are resampled
as they came about: seeds first, then episodes within them, and in each task apart. The spread of
the resampled statistic, corrected for how few seeds there are, is its standard error, and Student's
t says how far the truth may be. Percentiles of the same resamples, which are common in the field,
can cover no more than 3 times in 4 with three seeds, wherever all three lie on one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError

__all__ = [
    "Estimate",
    "as_strata",
    "compute_interquartile_mean",
    "estimate",
    "find_winner",
    "resample",
    "student_interval",
]

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of values along the last axis."""

_N_RESAMPLES = 2000
_CHUNK = 1 << 22  # numbers resampled at once


@dataclass(frozen=True)
class Estimate:
    """A statistic and what is known of it.

    Args:
        value: The statistic of all returns together.
        low: Lower end of its interval; NaN where a single return says nothing of it.
        high: Upper end.
        n_seeds: Trainings behind it; with 1, the interval is of that training alone.
        n_episodes: Episodes behind it.
    """

    value: float
    low: float
    high: float
    n_seeds: int
    n_episodes: int

    def is_above(self, other: Estimate) -> bool:
        """Whether the two intervals are separate and this one is the higher."""
        return self.low > other.high  # False where either is NaN

    def to_dict(self) -> dict[str, float | int | None]:
        """Return JSON-compatible values; None where nothing is known."""
        values: dict[str, Any] = dict(vars(self))
        return {name: None if value != value else value for name, value in values.items()}


def compute_interquartile_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the middle half of the values, along the last axis.

    As many values are left out at each end as a quarter of them is, rounded down.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.3; scipy's ``trim_mean(x, 0.25)``.
    """
    n = values.shape[-1]
    cut = n // 4
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    mean: NDArray[np.float64] = ordered[..., cut : n - cut].mean(axis=-1)
    return mean


def as_strata(returns: Any) -> list[NDArray[np.float64]]:
    """Return the tasks of some returns, each (seeds, episodes).

    Args:
        returns: An array (seeds, episodes) of one task, or a sequence of such arrays.

    Raises:
        ConfigError: There is nothing, or something of another shape.
    """
    given = returns if isinstance(returns, Sequence) else [returns]
    strata = [np.asarray(each, dtype=np.float64) for each in given]
    if not strata or any(each.ndim != 2 or 0 in each.shape for each in strata):
        shapes = [each.shape for each in strata]
        raise ConfigError(f"returns have shapes {shapes}: give (seeds, episodes) of each task")
    return strata


def resample(
    returns: Any, statistic: Statistic, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Draw the statistic of resampled returns: seeds, then episodes, with replacement.

    Args:
        returns: (seeds, episodes) of a task, or a sequence of such.
        statistic: Of the values along the last axis.
        n_resamples: How often.
        seed: Of the draws; the same returns give the same numbers.

    Returns:
        (n_resamples,).

    Source: Agarwal et al. 2021 (arXiv:2108.13264), appendix A (strata); Davison and Hinkley 1997,
    section 3.8 (two levels).
    """
    strata = as_strata(returns)
    generator = np.random.default_rng(seed)
    total = sum(each.size for each in strata)
    step = max(1, _CHUNK // total)
    drawn = []
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn.append(statistic(np.concatenate([_draw(s, n, generator) for s in strata], axis=1)))
    return np.concatenate(drawn)


def _draw(
    stratum: NDArray[np.float64], n: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    n_seeds, n_episodes = stratum.shape
    seeds = generator.integers(n_seeds, size=(n, n_seeds, 1))
    episodes = generator.integers(n_episodes, size=(n, n_seeds, n_episodes))
    return stratum[seeds, episodes].reshape(n, -1)


def estimate(
    returns: Any,
    statistic: Statistic = compute_interquartile_mean,
    *,
    level: float = 0.95,
    n_resamples: int = _N_RESAMPLES,
) -> Estimate:
    """Estimate a statistic of the returns that trainings and episodes of this kind have.

    Args:
        returns: (seeds, episodes) of a task, or a sequence of such.
        statistic: Of the values along the last axis.
        level: The probability to cover the truth.
        n_resamples: Resamples of the bootstrap.

    Returns:
        The statistic and its interval: bootstrap standard error times Student's t. With one seed,
        over its episodes.

    Raises:
        ConfigError: There is nothing to estimate from, or ``level`` is not inside (0, 1).

    Source: Hesterberg 2015 (arXiv:1411.5279), sections 3 and 5, on how narrow a bootstrap of few
    values is.
    """
    strata = as_strata(returns)
    pooled = np.concatenate([each.reshape(-1) for each in strata])
    value = float(statistic(pooled[None])[0])
    n_seeds = max(len(each) for each in strata)
    draws = resample(strata, statistic, n_resamples)
    independent = n_seeds if n_seeds > 1 else max(each.shape[1] for each in strata)
    freedom = sum((len(s) if n_seeds > 1 else s.shape[1]) - 1 for s in strata)
    low, high = student_interval(value, draws, independent, freedom, level)
    return Estimate(value, low, high, n_seeds, len(pooled))


def student_interval(
    value: float, draws: NDArray[np.float64], n: int, freedom: int, level: float
) -> tuple[float, float]:
    """Return an interval from bootstrap draws of a statistic of ``n`` independent values.

    Args:
        value: The statistic itself.
        draws: Its values under resampling.
        n: Values resampled; a bootstrap's variance is short of one in ``n``.
        freedom: Degrees of freedom.
        level: The probability to cover the truth.
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level!r}: give a probability between 0 and 1, such as 0.95")
    if n < 2:
        return math.nan, math.nan
    from scipy import stats

    error = float(np.std(draws)) * math.sqrt(n / (n - 1))
    reach = error * float(stats.t.ppf(0.5 + level / 2, freedom))
    return value - reach, value + reach


def find_winner(estimates: Mapping[str, Estimate]) -> str | None:
    """Return whose interval lies above every other one; None where none does."""
    for name, own in estimates.items():
        others = [other for each, other in estimates.items() if each != name]
        if others and all(own.is_above(other) for other in others):
            return name
    return None
