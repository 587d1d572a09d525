"""Mapped arrays: the same rows as in memory, and no pages that stay."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from sb3_dmamba.data import (
    DatasetInfo,
    Trajectories,
    TrajectoriesWriter,
    WindowSampler,
    _checks,
    compute_observation_statistics,
    load_trajectories,
)
from sb3_dmamba.data.mapping import mapped as mapping
from sb3_dmamba.errors import DatasetError

Make = Callable[..., Trajectories]
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")


def resident_bytes(folder: Path) -> int:
    """Return how much of the mapped files in a folder is in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


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


@linux
def test_no_page_of_a_store_stays(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 0)
    data = Trajectories.open(big)
    assert data.returns_to_go.shape == (40_000,)
    assert compute_observation_statistics(data) is not None
    DatasetInfo.of(data)
    sampler = WindowSampler(data, 20, 64)
    for update in range(50):
        sampler.sample(update)
    best = data.take_top(0.3).with_delayed_rewards()
    WindowSampler(best, 20, 64).sample(0)
    Trajectories.open(big, verify=True)
    assert resident_bytes(big) == 0
    assert float(data.observations.sum()) != 0  # the measure sees what is touched
    assert resident_bytes(big) > 9_000_000


@linux
def test_pages_of_anybodys_map_are_handed_back(big: Path) -> None:
    flat = {
        name: np.load(big / f"{name}.npy", mmap_mode="r")
        for name in ("observations", "actions", "rewards")
    }
    flat["terminals"] = np.arange(40_000) % 100 == 99
    data = load_trajectories(flat)
    assert isinstance(data.observations, np.memmap)
    compute_observation_statistics(data)
    sampler = WindowSampler(data, 20, 64)
    for update in range(50):
        sampler.sample(update)
    assert resident_bytes(big) == 0
    stored = WindowSampler(Trajectories.open(big), 20, 64)
    np.testing.assert_array_equal(sampler.sample(3).observations, stored.sample(3).observations)


@linux
def test_nothing_is_read_to_open(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("a step was read")

    monkeypatch.setattr(os, "preadv", refuse)
    data = Trajectories.open(big)
    assert data.n_steps == 40_000
    assert resident_bytes(big) == 0
    with pytest.raises(AssertionError, match="a step was read"):
        WindowSampler(data, 20, 64).sample(0)


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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ndarray, ndarray]:
    """The same rows in memory and mapped, behind a header."""
    rows = np.arange(24, dtype=np.int16).reshape(12, 2)
    path = tmp_path_factory.mktemp("mapped") / "rows"
    path.write_bytes(b"header" + rows.tobytes())
    with path.open("rb") as handle:
        mapped = mapping.map_file(handle, rows.dtype, rows.shape, 6, path)
    return rows, mapped


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(st.integers(-3, 15), min_size=1, max_size=12),
    cut=st.tuples(st.integers(0, 5), st.integers(6, 12)),
)
def test_rows_are_those_of_take(
    pair: tuple[ndarray, ndarray], steps: list[int], cut: tuple[int, int]
) -> None:
    rows, mapped = (array[slice(*cut)] for array in pair)
    out = np.empty((len(steps), 2), np.int16)
    mapping.take_rows(mapped, np.array(steps), out)
    np.testing.assert_array_equal(out, rows.take(steps, axis=0, mode="clip"))
    first, last = sorted((steps[0] % 12, steps[-1] % 15))
    found = mapping.read_rows(mapped, first, last)
    np.testing.assert_array_equal(found, rows[first:last])
    assert type(found) is ndarray


def test_views_that_are_not_contiguous(pair: tuple[ndarray, ndarray]) -> None:
    rows, mapped = pair
    out = np.empty((3, 1), np.int16)
    mapping.take_rows(mapped[::2, 1:], np.array([0, 2, 5]), out)
    np.testing.assert_array_equal(out, rows[::2, 1:][[0, 2, 5]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
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
    out = np.empty((1, 3), np.float32)
    mapping.take_rows(part, np.array([1]), out)  # a view keeps its own file
    np.testing.assert_array_equal(out[0], part[1])
    del part
    gc.collect()
    assert len(list(descriptors.iterdir())) == before
