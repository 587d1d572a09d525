"""Windows gathered on the device: those of the sampler, to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmamba.data import Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.training.batches import ResidentWindows, count_resident_bytes
from tests.data.builders import make_trajectories

CPU = torch.device("cpu")


def assert_equal(left: WindowBatch | None, right: WindowBatch | None) -> None:
    """Compare every field, the steps before included."""
    assert (left is None) == (right is None)
    if left is None or right is None:
        return
    assert_equal(left.before, right.before)
    for field in dataclasses.fields(left):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if field.name == "before" or (mine is None and theirs is None):
            continue
        assert mine.dtype == theirs.dtype, field.name
        assert torch.equal(mine, theirs), field.name


def compare(data: Trajectories, context_length: int, burn_in: int = 0) -> None:
    sampler = WindowSampler(data, context_length, 4, 0, burn_in)
    resident = ResidentWindows(data, context_length, CPU)
    for first_steps in (np.arange(data.n_steps), np.array([data.n_steps - 1]), np.array([0, 0])):
        n_before = sampler.count_before(first_steps)
        found = resident.gather(torch.from_numpy(first_steps), n_before)
        assert_equal(found, sampler.window_at(first_steps))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    context_length=st.integers(1, 12),
    burn_in=st.integers(0, 12),
)
def test_every_window(lengths: list[int], context_length: int, burn_in: int) -> None:
    compare(make_trajectories(lengths), context_length, burn_in)


def frames(stack: int) -> Trajectories:
    rng = np.random.default_rng(0)
    shape = (8, 9) if stack > 1 else (2, 8, 9)
    return make_trajectories(
        [8, 1, 4],
        observations=rng.integers(1, 256, (13, *shape), dtype=np.uint8),
        observation_space=spaces.Box(0, 255, (max(stack, 2), 8, 9), np.uint8),
        actions=np.arange(13) % 3 + 5,
        action_space=spaces.Discrete(3, start=5),
        frame_stack=stack,
    )


def test_frames_and_discrete_actions_in_memory_and_mapped(tmp_path: Path) -> None:
    for stack, burn_in in ((1, 0), (1, 3), (2, 3), (4, 0), (4, 3)):
        compare(frames(stack), 5, burn_in)
    frames(4).save(tmp_path / "store")
    compare(Trajectories.open(tmp_path / "store"), 5, 3)


def test_large_arrays_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dmamba.data.mapping._CHUNK_BYTES", 40)
    compare(make_trajectories([30, 5, 17]), 7, 2)


def test_bytes_are_counted() -> None:
    for data in (make_trajectories([30, 5]), frames(4)):
        resident = ResidentWindows(data, 5, CPU)
        tensors: list[Any] = [each for each in vars(resident).values() if torch.is_tensor(each)]
        held = sum(each.numel() * each.element_size() for each in tensors)
        assert count_resident_bytes(data) == held
