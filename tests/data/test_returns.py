from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmamba.data import compute_returns, compute_returns_to_go
from sb3_dmamba.errors import DatasetError

REWARDS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)


def test_episodes_do_not_mix() -> None:
    result = compute_returns_to_go(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 1, 4]))
    assert result.dtype == np.float32
    assert result.tolist() == [1.0, 14.0, 12.0, 8.0]
    assert compute_returns(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 1, 4])).tolist() == [1, 14]


@given(REWARDS)
def test_recurrence(rewards: list[float]) -> None:
    result = compute_returns_to_go(np.array(rewards))
    # R_t = r_t + R_{t+1}, exactly rounded: sums of up to 40 float32 fit a float64 to 1e-12.
    exact = Fraction(0)
    for reward, value in zip(reversed(rewards), result[::-1], strict=True):
        exact += Fraction(reward)
        assert math.isclose(value, float(exact), rel_tol=2e-7, abs_tol=1e-9)


@given(st.lists(REWARDS, min_size=1, max_size=30))
def test_flat_equals_one_by_one(episodes: list[list[float]]) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(episode) for episode in episodes])])
    rewards = np.concatenate([np.array(episode) for episode in episodes])
    one_by_one = np.concatenate([compute_returns_to_go(np.array(e)) for e in episodes])
    np.testing.assert_array_equal(compute_returns_to_go(rewards, offsets), one_by_one)
    sums = [math.fsum(episode) for episode in episodes]
    np.testing.assert_allclose(compute_returns(rewards, offsets), sums, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("length", [20, 10_000])
def test_small_rewards_survive_a_long_dataset_of_large_ones(length: int) -> None:
    rewards = np.full(200_000, 1e12, dtype=np.float32)
    rewards[:length] = 1e-3
    offsets = np.arange(0, len(rewards) + 1, length)
    result = compute_returns_to_go(rewards, offsets)
    expected = np.float64(np.float32(1e-3)) * np.arange(length, 0, -1)
    np.testing.assert_allclose(result[:length], expected, rtol=1e-6)


def test_bad_input() -> None:
    wrong: list[tuple[Any, Any, str]] = [
        ([], None, "rewards"),
        ([[1.0]], None, "rewards"),
        ([1.0, np.nan], None, "rewards"),
        ([1.0, np.inf], [0, 1, 2], "rewards"),
        *(([1.0, 2.0], offsets, "episode_offsets") for offsets in ([0, 1], [1, 2], [0, 0, 2])),
        ([1.0, 2.0], [0, 2, 1, 2], "episode_offsets"),
    ]
    for rewards, offsets, name in wrong:
        with pytest.raises(DatasetError) as caught:
            compute_returns_to_go(np.array(rewards), None if offsets is None else np.array(offsets))
        assert caught.value.setting == name
