"""Statistics: worked examples, other implementations, and coverage by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation.statistics import (
    Estimate,
    compute_interquartile_mean,
    estimate,
    resample,
)
from sb3_dmamba.evaluation.statistics import compute_mean as mean
from sb3_dmamba.experiments.statistics import (
    compute_distance,
    compute_performance_profile,
    compute_probability_of_improvement,
    compute_rank_correlation,
    find_winner,
)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert compute_interquartile_mean(np.array([9, 1, 2, 100, 3, 4, 5, -50])) == (2 + 3 + 4 + 5) / 4
    assert compute_interquartile_mean(np.array([7.0])) == 7
    assert compute_interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3  # a quarter of 3 is none
    for n in (1, 4, 5, 39):
        values = np.random.default_rng(n).normal(size=(2, n))
        expected = np.sort(values, axis=1)[:, n // 4 : n - n // 4].mean(axis=1)
        np.testing.assert_allclose(compute_interquartile_mean(values), expected)


def test_resampling_draws_seeds_and_then_their_own_episodes() -> None:
    returns = np.array([[0.0, 0.0], [10.0, 12.0]])
    draws = resample(returns, lambda values: values, n_resamples=2000).reshape(2000, 2, 2)
    of_first = draws == 0
    assert (of_first.all(axis=2) | (~of_first).all(axis=2)).all()  # a seed's episodes together
    assert np.isclose(of_first.mean(), 0.5, atol=0.05)
    both_from_second = draws[~of_first.any(axis=(1, 2))]
    assert {tuple(sorted(row)) for row in both_from_second.reshape(-1, 2)} == {
        (10.0, 10.0),
        (10.0, 12.0),
        (12.0, 12.0),
    }


def test_with_one_episode_a_seed_it_is_student_s_interval() -> None:
    scores = np.array([[3.0], [4.0], [8.0], [9.0], [1.0]])
    found = estimate(scores, mean, n_resamples=200_000)
    expected = stats.t.interval(0.95, 4, loc=5.0, scale=stats.sem(scores[:, 0]))
    np.testing.assert_allclose((found.low, found.high), expected, rtol=0.01)
    assert (found.value, found.n_seeds, found.n_episodes) == (5.0, 5, 5)


def test_estimates_of_special_cases() -> None:
    single = estimate(np.array([[4.0]]))
    assert single.value == 4.0
    assert single.to_dict()["low"] is None
    returns = np.random.default_rng(0).normal(size=(3, 20))
    assert estimate(returns) == estimate(returns.copy())
    both = estimate([np.zeros((3, 4)), np.full((3, 4), 8.0)], mean)
    assert (both.value, both.n_episodes) == (4.0, 24)
    assert both.low == both.high == 4.0  # tasks are not resampled


def simulate_coverage(n_seeds: int, n_episodes: int, between: float, draw: Any) -> float:
    """Return how often the interval of a mean covers it, seeds and episodes drawn anew."""
    rng = np.random.default_rng(n_seeds)
    n_trials, hits = 300, 0
    for _ in range(n_trials):
        centres = draw(rng, n_seeds) * between
        returns = centres[:, None] + rng.normal(size=(n_seeds, n_episodes))
        found = estimate(returns, n_resamples=300)
        hits += found.low <= 0.0 <= found.high
    return hits / n_trials


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def two_kinds(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seeds that find the good gait or do not, as on Hopper."""
    return rng.choice([-1.0, 1.0], size=n)


@pytest.mark.parametrize(
    ("n_seeds", "between", "draw", "lowest"),
    [
        (3, 0.0, normal, 0.93),  # seeds alike
        (3, 1.0, normal, 0.92),
        (5, 1.0, normal, 0.92),
        (10, 1.0, normal, 0.92),
        (5, 2.0, two_kinds, 0.88),  # all five of one kind: 1 in 16
    ],
)
def test_intervals_cover(n_seeds: int, between: float, draw: Any, lowest: float) -> None:
    assert simulate_coverage(n_seeds, 10, between, draw) >= lowest


def test_returns_and_levels_that_cannot_be_are_refused() -> None:
    mistakes: list[Any] = [[], np.zeros(3), np.zeros((2, 0)), [np.zeros((2, 2)), np.zeros(2)]]
    for returns in mistakes:
        with pytest.raises(ConfigError):
            estimate(returns)
    with pytest.raises(ConfigError, match="level"):
        estimate(np.zeros((2, 2)), level=95)


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 3, 30)


def test_a_winner_is_above_every_other_interval() -> None:
    assert find_winner({"a": interval(5, 6), "b": interval(1, 4)}) == "a"
    assert find_winner({"a": interval(5, 6), "b": interval(1, 5)}) is None
    assert find_winner({"a": interval(5, 6), "b": interval(1, 4), "c": interval(5.5, 7)}) is None
    assert find_winner({"a": interval(5, 6)}) is None  # of nobody
    assert find_winner({"a": interval(5, 6), "b": interval(math.nan, math.nan)}) is None


def test_every_pair_of_trainings_counts_and_ties_half() -> None:
    first = np.array([[1.0, 3.0], [5.0, 5.0]])  # means 2, 5
    second = np.array([[2.0, 2.0], [9.0, 9.0], [0.0, 2.0]])  # means 2, 9, 1
    found = compute_probability_of_improvement(first, second)
    assert found.value == (0.5 + 1 + 1 + 1) / 6
    assert compute_probability_of_improvement(second, first).value == pytest.approx(1 - found.value)


def test_improvement_over_several_tasks_is_their_mean() -> None:
    strong = np.full((3, 2), 2.0), np.zeros((3, 2))
    even = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [2.0]])
    alone = [compute_probability_of_improvement(*each) for each in (strong, even)]
    both = compute_probability_of_improvement([strong[0], even[0]], [strong[1], even[1]])
    assert both.value == (1.0 + 0.5) / 2
    below = math.hypot(*(each.value - each.low for each in alone)) / 2
    assert both.low == pytest.approx(0.75 - below)
    assert both.high == pytest.approx(0.75 + (alone[1].high - 0.5) / 2)
    assert both.n_seeds == 3
    with pytest.raises(ConfigError):
        compute_probability_of_improvement([strong[0], even[0]], [strong[1]])


def test_the_distance_of_asked_and_achieved_is_of_each_training() -> None:
    means = np.array([[10.0, 30.0], [40.0, 20.0]])  # two targets, two seeds: 20 and 30 are asked
    found = compute_distance([20.0, 30.0], means, 100.0)
    assert found.value == pytest.approx(0.10)  # no seed's error makes up for another's
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))  # both seeds are as far away
    uneven = compute_distance([20.0], np.array([[20.0, 60.0]]), 100.0)
    assert uneven.value == pytest.approx(0.2)
    assert uneven.low == 0.0 < uneven.value < uneven.high
    assert math.isnan(compute_distance([20.0], np.array([[25.0]]), 100.0).low)


def test_few_seeds_on_one_side_prove_little() -> None:
    three = compute_probability_of_improvement(np.full((3, 2), 2.0), np.zeros((3, 2)))
    assert (three.value, three.high) == (1.0, 1.0)
    assert 0.4 < three.low < 0.7
    ten = compute_probability_of_improvement(np.full((10, 2), 2.0), np.zeros((10, 2)))
    assert three.low < ten.low < 1.0
    none = compute_probability_of_improvement(np.zeros((3, 2)), np.full((3, 2), 2.0))
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - three.low)
    one = compute_probability_of_improvement(np.ones((1, 9)), np.zeros((3, 9)))
    assert one.value == 1.0
    assert math.isnan(one.low)


def test_its_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    truth = float(stats.norm.cdf(0.7 / math.sqrt(2)))
    hits = 0
    for _ in range(400):
        first, second = rng.normal(0.7, size=(5, 1)), rng.normal(size=(5, 1))
        found = compute_probability_of_improvement(first, second)
        hits += found.low <= truth <= found.high
    assert hits / 400 >= 0.92


def test_a_profile_counts_the_episodes_above() -> None:
    returns = np.array([[1.0, 2.0], [3.0, 4.0]])
    profile = compute_performance_profile(returns, np.array([2.0, 0.0, 2.5, 4.0]))
    assert profile.thresholds.tolist() == [0.0, 2.0, 2.5, 4.0]
    assert profile.shares.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert (profile.low <= profile.shares).all()
    assert (profile.high >= profile.shares).all()
    assert profile.low[1] == 0.0  # both draws may be of the first seed
    assert profile.high[1] == 1.0


def test_rank_correlation_is_spearman_s() -> None:
    rng = np.random.default_rng(1)
    asked = [10.0, 20.0, 30.0, 40.0, 50.0]
    returns = [rng.normal(each, 30.0, size=(3, 8)) for each in asked]
    centres = [float(compute_interquartile_mean(each.reshape(-1))) for each in returns]
    found = compute_rank_correlation(asked, returns)
    assert found.value == pytest.approx(stats.spearmanr(asked, centres).statistic)
    assert found.low <= found.value <= found.high


def test_rank_correlation_at_its_ends() -> None:
    found = compute_rank_correlation([3.0, 1.0, 2.0], [np.full((2, 4), x) for x in (9.0, 7.0, 8.0)])
    np.testing.assert_allclose([found.value, found.low, found.high], 1.0)
    assert math.isnan(compute_rank_correlation([1.0, 2.0], [np.ones((2, 4))] * 2).value)
    with pytest.raises(ConfigError) as caught:
        compute_rank_correlation([1.0, 1.0], [np.ones((2, 4))] * 2)
    assert caught.value.setting == "target_returns"
