from __future__ import annotations

import math
from typing import Any

import pytest

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.training.updater import compute_learning_rate

PEAK = 0.5
Settings = dict[str, Any]


def rate(update: int, n_updates: int = 100, **settings: Any) -> float:
    config = DecisionMambaConfig().replace(learning_rate=PEAK, **settings)
    return compute_learning_rate(config, update, n_updates)


@pytest.mark.parametrize(
    ("update", "expected"),
    [(0, 0.05), (1, 0.1), (4, 0.25), (8, 0.45), (9, 0.5), (10, 0.5), (99, 0.5), (1000, 0.5)],
)
def test_warm_up_is_a_tenth_of_the_run(update: int, expected: float) -> None:
    assert rate(update) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_updates", [1, 5, 9])
def test_a_run_too_short_for_a_tenth_has_no_warm_up(n_updates: int) -> None:
    assert rate(0, n_updates) == PEAK


@pytest.mark.parametrize(
    ("update", "expected"), [(0, 0.125), (2, 0.375), (3, 0.5), (4, 0.5), (99, 0.5)]
)
def test_warm_up_of_a_given_length(update: int, expected: float) -> None:
    assert rate(update, warmup_updates=4) == pytest.approx(expected, rel=1e-12)


def test_no_warm_up() -> None:
    assert rate(0, warmup_updates=0) == PEAK


@pytest.mark.parametrize(
    ("update", "expected"),
    [(20, 0.5), (40, 0.5 * 0.8), (60, 0.5 * 0.6), (80, 0.5 * 0.4), (100, 0.1), (5000, 0.1)],
)
def test_linear(update: int, expected: float) -> None:
    settings: Settings = {"lr_schedule": "linear", "warmup_updates": 20, "final_lr_fraction": 0.2}
    assert rate(update, **settings) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("update", "cosine"),
    [(20, 1.0), (40, math.sqrt(0.5)), (60, 0.0), (80, -math.sqrt(0.5)), (100, -1.0), (5000, -1.0)],
)
def test_cosine(update: int, cosine: float) -> None:
    settings: Settings = {"lr_schedule": "cosine", "warmup_updates": 20, "final_lr_fraction": 0.2}
    expected = PEAK * (0.2 + 0.8 * (1.0 + cosine) / 2.0)
    assert rate(update, **settings) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("update", "expected"), [(10, 0.5), (20, 0.375), (30, 0.25), (50, 0.0)])
@pytest.mark.parametrize("n_updates", [100, 60])
def test_decay_ends_where_it_is_told_to(update: int, expected: float, n_updates: int) -> None:
    settings: Settings = {"warmup_updates": 10, "decay_updates": 50, "final_lr_fraction": 0.0}
    value = rate(update, n_updates, lr_schedule="linear", **settings)
    assert value == pytest.approx(expected, abs=1e-12)


def test_a_decay_inside_the_warm_up_is_over_after_it() -> None:
    settings: Settings = {"warmup_updates": 10, "decay_updates": 5, "lr_schedule": "linear"}
    assert rate(9, **settings) == PEAK
    assert rate(11, **settings) == pytest.approx(0.1 * PEAK)
