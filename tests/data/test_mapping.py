"""Mapped arrays: the same rows as in memory, and bounded private memory."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import (
    Trajectories,
    TrajectoriesWriter,
    WindowSampler,
    compute_observation_statistics,
    load_trajectories,
    mapping,
)
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.errors import DatasetError

Make = Callable[..., Trajectories]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 12 MB in 400 episodes."""
    folder = tmp_path_factory.mktemp("big")
    generator = np.random.default_rng(0)
    with TrajectoriesWriter(
        folder / "big",
        observation_space=spaces.Box(-np.inf, np.inf, (60,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (15,), np.float32),
    ) as writer:
        for _ in range(400):
            writer.append(
                generator.standard_normal((100, 60), np.float32),
                generator.uniform(-1, 1, (100, 15)),
                generator.uniform(-1, 1, 100),
                terminated=True,
                truncated=False,
            )
        writer.finish()
    return folder / "big"


def test_private_memory_is_bounded(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(_checks, "CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    try:
        data = Trajectories.open(big)
        assert data.returns_to_go.shape == (40_000,)
        assert compute_observation_statistics(data) is not None
        sampler = WindowSampler(data, 20, 64)
        for update in range(50):
            sampler.sample(update)
        best = data.take_top(0.3).with_delayed_rewards()
        WindowSampler(best, 20, 64).sample(0)
        Trajectories.open(big, verify=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.observations.nbytes / 4


def test_maps_of_anybody(big: Path) -> None:
    flat = {
        name: np.load(big / f"{name}.npy", mmap_mode="r")
        for name in ("observations", "actions", "rewards")
    }
    flat["terminals"] = np.arange(40_000) % 100 == 99
    data = load_trajectories(flat)
    assert isinstance(data.observations, np.memmap)
    ours = WindowSampler(data, 20, 64).sample(3)
    stored = WindowSampler(Trajectories.open(big), 20, 64).sample(3)
    np.testing.assert_array_equal(ours.observations, stored.observations)
    copied = pickle.loads(pickle.dumps(data))
    assert not isinstance(copied.observations, np.memmap)
    np.testing.assert_array_equal(copied.observations, data.observations)


def test_windows_are_those_of_memory(make_trajectories: Make, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = {
        "observations": generator.integers(1, 256, (16, 5, 4), dtype=np.uint8),
        "observation_space": spaces.Box(0, 255, (3, 5, 4), np.uint8),
        "frame_stack": 3,
    }
    for name, changes in {"plain": {}, "frames": frames}.items():
        data = make_trajectories([3, 1, 6, 2, 4], **changes)
        data.save(tmp_path / name)
        opened = Trajectories.open(tmp_path / name)
        for ours, theirs in (
            (opened, data),
            (opened[1:4], data[1:4]),
            (opened[[3, 0]], data[[3, 0]]),
        ):
            steps = np.arange(theirs.n_steps)
            found = WindowSampler(ours, 4, 8).window_at(steps)
            expected = WindowSampler(theirs, 4, 8).window_at(steps)
            for field in ("observations", "actions", "returns_to_go", "timesteps", "padding_mask"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_maps_of_other_types_become_mapped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 16)
    monkeypatch.setattr(mapping, "_CHUNK_BYTES", 16)
    monkeypatch.setattr(_checks, "CHUNK_BYTES", 16)
    observations = np.arange(12).reshape(6, 2).astype(dtype)
    np.save(tmp_path / "observations.npy", observations)
    flat = {
        "observations": np.load(tmp_path / "observations.npy", mmap_mode="r"),
        "actions": np.zeros((6, 1), np.float32),
        "rewards": np.ones(6),
        "timeouts": [0, 0, 1, 0, 0, 1],
    }
    data = load_trajectories(flat)
    assert isinstance(data.observations, np.memmap)
    assert data.observations.dtype == np.float32
    np.testing.assert_array_equal(data.observations, observations)
    assert [path.name for path in tmp_path.iterdir()] == ["observations.npy"]


def test_mapped_actions_are_looked_at(tmp_path: Path) -> None:
    actions = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
    for name, array in {"inside": actions, "outside": 2 * actions}.items():
        np.save(tmp_path / f"{name}.npy", array)
    flat: dict[str, Any] = {
        "observations": np.zeros((6, 1)),
        "rewards": np.ones(6),
        "terminals": np.ones(6),
    }
    inside = np.load(tmp_path / "inside.npy", mmap_mode="r")
    assert load_trajectories({**flat, "actions": inside}).action_space.shape == (2,)
    outside = np.load(tmp_path / "outside.npy", mmap_mode="r")
    with pytest.raises(DatasetError, match=r"-2\.0 to 2\.0: pass action_space"):
        load_trajectories({**flat, "actions": outside})


def test_files_are_closed(make_trajectories: Make, tmp_path: Path) -> None:
    descriptors = Path("/dev/fd")
    make_trajectories([3, 2]).save(tmp_path / "store")
    gc.collect()
    before = len(list(descriptors.iterdir()))
    data = Trajectories.open(tmp_path / "store")
    part = data.observations[2:4]
    assert len(list(descriptors.iterdir())) > before
    del data
    gc.collect()
    assert part.shape == (2, 3)  # a view keeps its own file
    assert np.isfinite(part).all()
    del part
    gc.collect()
    assert len(list(descriptors.iterdir())) == before
