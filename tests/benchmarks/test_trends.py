"""Exponents, crossovers, and shares of a time line, on numbers made for it."""

from __future__ import annotations

import pytest

from benchmarks import profiling
from benchmarks.trends import Exponent, describe_crossover, find_crossover, fit_exponent

SIZES = (10.0, 100.0, 1000.0)


def test_exponents() -> None:
    for power in (0.0, 1.0, 2.0):
        found = fit_exponent(SIZES, [3.0 * size**power for size in SIZES])
        assert (found.value, found.low) == pytest.approx((power, power), abs=1e-6)
    found = fit_exponent(SIZES, [1.0, 10.0, 1000.0])  # no power law
    assert found.low < 1.0 < 2.0 < found.high
    assert str(fit_exponent(SIZES[:2], [1.0, 100.0])) == "2.00"
    assert str(fit_exponent(SIZES[:1], [1.0])) == "-"
    assert str(Exponent(1.0, 0.9, 1.1)) == "1.00 [0.90, 1.10]"


def test_crossovers() -> None:
    assert find_crossover(SIZES, [2.0, 2.0, 2.0], [1.0, 1.0, 4.0]) == pytest.approx(10**2.5)
    assert find_crossover(SIZES, [2.0, 2.0, 2.0], [3.0, 1.0, 4.0]) == pytest.approx(10**2.5)
    assert find_crossover(SIZES, [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == 10.0
    assert find_crossover(SIZES, [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]) is None
    names = ("A", "B")
    said = describe_crossover(names, SIZES, [2.0, 2.0, 2.0], [1.0, 1.0, 4.0])
    assert said == "B costs more than A from K 316 on (2.00 times as much at K 1000)."
    assert "no more than A up to K 1000" in describe_crossover(names, SIZES, [2.0] * 3, [1.0] * 3)
    assert "from K 10 on at the least" in describe_crossover(names, SIZES, [1.0] * 3, [2.0] * 3)


def test_the_busy_share_counts_overlaps_once() -> None:
    assert profiling.busy_share([]) == 0.0
    assert profiling.busy_share([(5, 10), (0, 2)]) == pytest.approx(0.7)
    assert profiling.busy_share([(0, 6), (1, 3), (4, 8), (9, 10)]) == pytest.approx(0.9)
