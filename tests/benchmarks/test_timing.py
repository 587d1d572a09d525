"""The timer, the gate, exponents and crossovers, on numbers whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks import profiling
from benchmarks.contenders import Agreement, Candidate, Contender, UnavailableError, race
from benchmarks.timing import Timer
from benchmarks.trends import Exponent, fit_exponent


class Clock:
    """A clock that stands still but for what runs take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a run whose calls take these seconds, the last ones over and over."""
        left = list(seconds)

        def call() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def _agree(error: float = 0.0) -> Agreement:
    return Agreement("outputs", error, 1e-3)


def test_contenders_take_turns_of_equal_length() -> None:
    clock = Clock()
    timer = Timer("cpu", rounds=2, turn_seconds=4.0, clock=clock)
    timings = timer.measure({"a": clock.run("a", 2.0), "b": clock.run("b", 1.0)})
    # two calls each to warm up and to plan, then turns of 4 seconds
    assert "".join(clock.order) == "aabb" + 2 * "aabbbb"
    assert timings["a"].n_samples == 2  # the first call of a turn is not counted
    assert timings["b"].n_samples == 6
    assert timings["a"].median == 2.0
    assert timings["b"].median == 1.0


def test_only_what_agrees_is_timed() -> None:
    timed: list[str] = []

    def make(name: str, error: float) -> Candidate:
        contender = Contender(lambda: timed.append(name), lambda: _agree(error), {"size": 3})
        return Candidate(name, lambda: contender)

    def missing() -> Contender:
        raise UnavailableError("not installed")

    candidates = [make("right", 1e-4), make("wrong", 0.1), make("not a number", math.nan)]
    outcome = race([*candidates, Candidate("absent", missing)], Timer("cpu", 1, 0.0))
    assert [row["name"] for row in outcome.rows] == ["right"]
    assert outcome.rows[0]["size"] == 3
    assert set(timed) == {"right"}
    assert outcome.left_out["wrong"].startswith("outputs are off by 0.1 (allowed: 0.001)")
    assert "nan" in outcome.left_out["not a number"]
    assert outcome.left_out["absent"] == "not installed"


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


def test_the_busy_share_counts_overlaps_once() -> None:
    assert profiling.busy_share([]) == 0.0
    assert profiling.busy_share([(5, 10), (0, 2)]) == pytest.approx(0.7)
    assert profiling.busy_share([(0, 6), (1, 3), (4, 8), (9, 10)]) == pytest.approx(0.9)
