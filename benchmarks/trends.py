"""Growth of costs: exponents, and crossovers of two costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95


@dataclass(frozen=True)
class Exponent:
    """The slope of a cost against a size, both logarithmic, with its 95 % interval.

    Args:
        value: The cost grows as the size to this power.
        low: Lower end of the interval; NaN with fewer than three points.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """Fit a power law by least squares of the logarithms.

    The interval is Student's t of the residuals: how well one power describes these points, and
    not how they would come out again.

    Args:
        sizes: Positive and not all the same.
        costs: Positive, one a size.

    Returns:
        The exponent; NaN with fewer than two points.
    """
    if len(sizes) < 2:
        return Exponent(math.nan, math.nan, math.nan)
    from scipy import stats

    fit = stats.linregress(np.log(sizes), np.log(costs))
    if len(sizes) < 3:
        return Exponent(float(fit.slope), math.nan, math.nan)
    error = float(np.nan_to_num(fit.stderr))  # NaN where all costs are the same
    reach = float(stats.t.ppf((1 + _LEVEL) / 2, len(sizes) - 2)) * error
    return Exponent(float(fit.slope), float(fit.slope) - reach, float(fit.slope) + reach)


def find_crossover(
    sizes: Sequence[float], costs: Sequence[float], others: Sequence[float]
) -> float | None:
    """Find the size from which on the others' cost stays above.

    Args:
        sizes: Rising.
        costs: Of the one, positive.
        others: Of the other, positive.

    Returns:
        The size, between two measured ones by a power law; the first size where it is above
        everywhere, None where it is not above at the last.
    """
    gaps = np.log(others) - np.log(costs)
    if gaps[-1] <= 0:
        return None
    below = np.flatnonzero(gaps <= 0)
    if not len(below):
        return float(sizes[0])
    last = int(below[-1])
    share = -gaps[last] / (gaps[last + 1] - gaps[last])
    start, end = math.log(sizes[last]), math.log(sizes[last + 1])
    return math.exp(start + float(share) * (end - start))


def describe_crossover(
    names: tuple[str, str],
    sizes: Sequence[float],
    costs: Sequence[float],
    others: Sequence[float],
    what: str = "K",
) -> str:
    """Return a sentence that says from where on the second costs more than the first."""
    one, other = names
    place = find_crossover(sizes, costs, others)
    ratio = f"{others[-1] / costs[-1]:.2f} times as much at {what} {sizes[-1]:g}"
    if place is None:
        return f"{other} costs no more than {one} up to {what} {sizes[-1]:g} ({ratio})."
    if place <= sizes[0]:
        return f"{other} costs more than {one} from {what} {sizes[0]:g} on at the least ({ratio})."
    return f"{other} costs more than {one} from {what} {place:.0f} on ({ratio})."
