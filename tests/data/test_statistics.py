from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import Trajectories, compute_observation_statistics
from sb3_dmamba.data import validation as _checks

Make = Callable[..., Trajectories]


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 26])
def test_agrees_with_numpy_in_any_chunks(
    make_trajectories: Make, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    values = np.random.default_rng(0).normal([0.0, 1e4, -3.0], [1.0, 0.5, 1e-3], (700, 3))
    data = make_trajectories([300, 400], observations=values)
    statistics = compute_observation_statistics(data)
    assert statistics is not None
    assert statistics.mean.dtype == statistics.std.dtype == np.float32
    stored = data.observations.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, stored.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.std, stored.std(axis=0), rtol=1e-6)


def test_a_large_offset_costs_no_precision(make_trajectories: Make) -> None:
    # Naive float32 sums of squares would be off by more than the spread itself.
    values = np.tile([[4096.0], [4097.0]], (100_000, 3))
    statistics = compute_observation_statistics(make_trajectories([200_000], observations=values))
    assert statistics is not None
    assert statistics.mean.tolist() == [4096.5] * 3
    assert statistics.std.tolist() == [0.5] * 3


def test_constant_dimensions_are_left_as_they_are(make_trajectories: Make) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[:, 0], values[:, 1] = 0.1, 0.0
    statistics = compute_observation_statistics(make_trajectories([50], observations=values))
    assert statistics is not None
    assert statistics.std[:2].tolist() == [1.0, 1.0]
    assert statistics.std[2] == pytest.approx(values[:, 2].std(), rel=1e-5)


def test_small_units_are_not_constant(make_trajectories: Make) -> None:
    values = np.random.default_rng(0).normal(scale=1e-7, size=(50, 3))
    statistics = compute_observation_statistics(make_trajectories([50], observations=values))
    assert statistics is not None
    np.testing.assert_allclose(statistics.std, values.std(axis=0), rtol=1e-5)


def test_one_step(make_trajectories: Make) -> None:
    statistics = compute_observation_statistics(make_trajectories([1]))
    assert statistics is not None
    assert statistics.std.tolist() == [1.0] * 3


def test_images_have_none(make_trajectories: Make) -> None:
    frames = np.zeros((4, 40, 40, 3), dtype=np.uint8)
    space = spaces.Box(0, 255, frames.shape[1:], np.uint8)
    data = make_trajectories([4], observations=frames, observation_space=space)
    assert compute_observation_statistics(data) is None
