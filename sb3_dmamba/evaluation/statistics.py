"""Normalised scores, and interval estimates over training seeds and episodes.

Intervals are bootstrapped: returns (seeds, episodes) are resampled seeds first, then episodes
within them, each task separately, always from the same random numbers.

* With several seeds, the interval is the bootstrap standard error, corrected for the number of
  seeds, times Student's t. Percentiles of so few values are too narrow: with three seeds they
  cover the truth at most 3 times in 4.
* With one seed, as in the evaluation of one model, other trainings are unknown. The interval is
  the percentiles of the resampled statistic over its episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps values to a statistic along the last axis."""

_N_RESAMPLES = 2_000  # for a standard error
_N_FOR_PERCENTILES = 10_000  # percentiles need more
_CHUNK = 1 << 22  # numbers resampled at once


@dataclass(frozen=True)
class Estimate:
    """A statistic and its interval.

    Args:
        value: The statistic of all returns together.
        low: Lower end of its interval; NaN for a single return.
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
        """Return JSON-compatible values; None for NaN."""
        return {name: None if value != value else value for name, value in vars(self).items()}


def compute_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean along the last axis."""
    mean: NDArray[np.float64] = np.asarray(values, dtype=np.float64).mean(axis=-1)
    return mean


def compute_interquartile_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the middle half of the values, along the last axis.

    A quarter of the values, rounded down, is left out at each end.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.3.
    """
    from scipy import stats

    mean: NDArray[np.float64] = stats.trim_mean(np.asarray(values, dtype=np.float64), 0.25, axis=-1)
    return mean


def compute_standard_error(returns: NDArray[Any]) -> float:
    """Estimate the standard deviation of the mean of ``returns`` (n,); NaN for fewer than two."""
    if len(returns) < 2:
        return math.nan
    return float(np.std(returns, ddof=1) / math.sqrt(len(returns)))


def compute_normalized_score(value: Any, minimum: float, maximum: float) -> Any:
    """Map returns to D4RL's scale: 0 is a random policy's return, 100 an expert's.

    Args:
        value: A return, or an array of them.
        minimum: The return that scores 0.
        maximum: The return that scores 100.

    Returns:
        ``100 * (value - minimum) / (maximum - minimum)``.

    Raises:
        ConfigError: ``maximum`` is not above ``minimum``.

    Source: Fu et al. 2020 (arXiv:2004.07219), section 4.
    """
    if not maximum > minimum:
        message = (
            f"reference scores minimum={minimum!r}, maximum={maximum!r}: maximum must be larger"
        )
        raise ConfigError(message, setting="maximum", value=maximum)
    return 100.0 * (value - minimum) / (maximum - minimum)


def estimate(
    returns: Any,
    statistic: Statistic = compute_interquartile_mean,
    *,
    level: float = 0.95,
    n_resamples: int | None = None,
) -> Estimate:
    """Estimate a statistic of returns and its interval over training seeds and episodes.

    Args:
        returns: (seeds, episodes) of a task, or a sequence of such.
        statistic: Of the values along the last axis.
        level: The probability to cover the truth.
        n_resamples: Resamples of the bootstrap; None is 2,000 with several seeds and 10,000 with
            one.

    Returns:
        The statistic and its interval: bootstrap standard error times Student's t with several
        seeds; with one seed, percentiles of the bootstrap over its episodes, which are somewhat
        too narrow where episodes are few (about 0.90 covered at 10 episodes).

    Raises:
        ConfigError: There is nothing to estimate from, or ``level`` is not inside (0, 1).

    Source: Efron 1979, "Bootstrap Methods" (percentiles); Hesterberg 2015 (arXiv:1411.5279),
    sections 3 and 5, on how narrow a bootstrap of few values is.
    """
    if not 0.0 < level < 1.0:
        message = f"level={level!r}: give a probability between 0 and 1, such as 0.95"
        raise ConfigError(message, setting="level", value=level)
    strata = as_strata(returns)
    pooled = np.concatenate([each.reshape(-1) for each in strata])
    value = float(statistic(pooled[None])[0])
    n_seeds = max(len(each) for each in strata)
    if n_seeds > 1:
        draws = resample(strata, statistic, n_resamples or _N_RESAMPLES)
        freedom = sum(len(each) - 1 for each in strata)
        low, high = student_interval(value, draws, n_seeds, freedom, level)
    elif max(each.shape[1] for each in strata) > 1:
        draws = resample(strata, statistic, n_resamples or _N_FOR_PERCENTILES)
        low, high = percentile_interval(draws, level)
    else:
        low = high = math.nan
    return Estimate(value, low, high, n_seeds, len(pooled))


def compute_confidence_interval(
    returns: NDArray[Any], *, level: float = 0.95, n_resamples: int = _N_FOR_PERCENTILES
) -> tuple[float, float]:
    """Bootstrap a confidence interval of the mean return over the episodes of one model.

    This is :func:`estimate` of the mean with one seed. The same returns give the same interval.

    Args:
        returns: Returns of n independent episodes (n,).
        level: The probability to cover the true mean.
        n_resamples: Number of resamples.

    Returns:
        Lower and upper end; NaN for fewer than two episodes.

    Raises:
        ConfigError: ``level`` is not inside (0, 1).
    """
    episodes = np.asarray(returns, dtype=np.float64)
    if not len(episodes):
        return math.nan, math.nan
    found = estimate(episodes[None], compute_mean, level=level, n_resamples=n_resamples)
    return found.low, found.high


def student_interval(
    value: float, draws: NDArray[np.float64], n: int, freedom: int, level: float
) -> tuple[float, float]:
    """Return the Student interval from bootstrap draws of a statistic of ``n`` values.

    The bootstrap's variance is corrected by n / (n - 1); ``freedom`` is the degrees of freedom.
    """
    from scipy import stats

    error = float(np.std(draws)) * math.sqrt(n / (n - 1))
    reach = error * float(stats.t.ppf(0.5 + level / 2, freedom))
    return value - reach, value + reach


def percentile_interval(draws: NDArray[np.float64], level: float) -> tuple[Any, Any]:
    """Return the central interval of bootstrap draws (n_resamples, ...) that holds ``level``."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return (float(low), float(high)) if draws.ndim == 1 else (low, high)


def as_strata(returns: Any) -> list[NDArray[np.float64]]:
    """Return returns as a list of tasks (strata), each (seeds, episodes)."""
    given = returns if isinstance(returns, Sequence) else [returns]
    strata = [np.asarray(each, dtype=np.float64) for each in given]
    if not strata or any(each.ndim != 2 or 0 in each.shape for each in strata):
        shapes = [each.shape for each in strata]
        message = f"returns have shapes {shapes}: give (seeds, episodes) of each task"
        raise ConfigError(message, setting="returns", value=shapes)
    return strata


def resample(
    returns: Any, statistic: Statistic, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap a statistic: resample seeds, then episodes within them, with replacement.

    Shapes: ``returns`` (seeds, episodes). Returns the statistic of each draw (n_resamples,).

    Source: Agarwal et al. 2021 (arXiv:2108.13264), appendix A (strata); Davison and Hinkley 1997,
    section 3.8 (two levels). ``scipy.stats.bootstrap`` has one level.
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
    if n_seeds == 1:  # counts of each episode suffice
        counts = generator.multinomial(n_episodes, np.full(n_episodes, 1.0 / n_episodes), size=n)
        return np.repeat(np.tile(stratum[0], n), counts.reshape(-1)).reshape(n, n_episodes)
    seeds = generator.integers(n_seeds, size=(n, n_seeds, 1))
    episodes = generator.integers(n_episodes, size=(n, n_seeds, n_episodes))
    return stratum[seeds, episodes].reshape(n, -1)
