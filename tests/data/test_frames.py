"""Frames that are stored once and stacked when they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import Trajectories, WindowSampler, compute_observation_statistics
from sb3_dmamba.errors import DatasetError, SpaceError

Make = Callable[..., Trajectories]


def _make(
    make: Make, lengths: list[int], frame: tuple[int, ...] = (3, 2), stack: int = 4, **changes: Any
) -> Trajectories:
    n_steps = sum(lengths)
    frames = np.random.default_rng(1).integers(1, 256, (n_steps, *frame), dtype=np.uint8)
    fields = {
        "observations": frames,
        "observation_space": spaces.Box(0, 255, (stack, *frame), np.uint8),
        "actions": np.arange(n_steps) % 4,
        "action_space": spaces.Discrete(4),
        "frame_stack": stack,
    }
    return make(lengths, **{**fields, **changes})


def _slowly(data: Trajectories, step: int) -> ndarray:
    """What the policy sees at a step, one frame at a time."""
    episode = int(np.searchsorted(data.episode_offsets, step, side="right")) - 1
    first = int(data.episode_offsets[episode])
    stack = np.zeros(data.observation_space.shape, np.uint8)
    for back in range(data.frame_stack):
        if step - back >= first:
            stack[data.frame_stack - 1 - back] = data.observations[step - back]
    return stack


def test_worked_by_hand(make_trajectories: Make) -> None:
    frames = np.arange(1, 6, dtype=np.uint8)[:, None]
    data = _make(make_trajectories, [3, 2], (1,), 3, observations=frames)
    stacks = data.stack_frames(np.arange(5))
    assert stacks.dtype == np.uint8
    assert stacks[..., 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 4], [0, 4, 5]]
    assert data[1].observations.tolist() == [[4], [5]]  # frames, as they are stored


stacked_data = given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    stack=st.integers(2, 6),
    context_length=st.integers(1, 12),
    mapped=st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@stacked_data
def test_windows_are_what_stacking_step_by_step_gives(
    make_trajectories: Make,
    tmp_path: Path,
    lengths: list[int],
    stack: int,
    context_length: int,
    mapped: bool,
) -> None:
    data = _make(make_trajectories, lengths, stack=stack)
    if mapped:
        data.save(tmp_path / "store", overwrite=True)
        data = Trajectories.open(tmp_path / "store")
        assert isinstance(data.observations, np.memmap)
        assert data.frame_stack == stack
    steps = np.random.default_rng(0).permutation(data.n_steps)
    expected = np.stack([_slowly(data, int(step)) for step in range(data.n_steps)])
    np.testing.assert_array_equal(data.stack_frames(steps), expected[steps])

    batch = WindowSampler(data, context_length, 4).window_at(steps)
    assert batch.observations.dtype == torch.uint8
    assert batch.observations.is_contiguous()
    for row, step in enumerate(steps):
        real = batch.padding_mask[row].numpy()
        seen = batch.observations[row].numpy()
        np.testing.assert_array_equal(seen[real], expected[step : step + real.sum()])
        assert not seen[~real].any()
    drawn = list(WindowSampler(data, context_length, 3).iterate_all())
    every = torch.cat([each.observations[each.padding_mask] for each in drawn])
    np.testing.assert_array_equal(every.numpy(), expected)


def test_steps(make_trajectories: Make) -> None:
    data = make_trajectories([3, 4])  # without a stack: observations as they are
    steps = np.array([6, 0, 3])
    np.testing.assert_array_equal(data.stack_frames(steps), data.observations[steps])
    wrong: list[Any] = [[-1], [0, 21], [], [0.5], [[0]]]
    for each in wrong:
        with pytest.raises(DatasetError) as caught:
            _make(make_trajectories, [7, 3, 11]).stack_frames(np.array(each))
        assert caught.value.setting == "steps"


def test_selections_stay_stacked(make_trajectories: Make) -> None:
    data = _make(make_trajectories, [7, 3, 11])
    for index in (slice(1, 3), [2, 0]):
        chosen = data[index]
        assert chosen.frame_stack == 4
        first = int(chosen.episode_offsets[1])
        np.testing.assert_array_equal(chosen.stack_frames(np.array([first]))[0, :3], 0)
        np.testing.assert_array_equal(
            chosen.stack_frames(np.array([first]))[0, 3], chosen[1].observations[0]
        )


def test_what_does_not_fit(make_trajectories: Make) -> None:
    floats = spaces.Box(0.0, 1.0, (4, 3, 2), np.float32)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        *(({"frame_stack": n}, DatasetError, "frame_stack") for n in (0, True, 2.0, None, "4")),
        ({"frame_stack": 3}, SpaceError, "frame_stack"),
        ({"observation_space": floats}, SpaceError, "frame_stack"),
        ({"observations": np.ones((10, 4, 3, 2), np.uint8)}, DatasetError, "observations"),
        ({"observations": np.ones((10, 3, 2))}, DatasetError, "observations"),
    ]
    for changes, kind, name in wrong:
        with pytest.raises((DatasetError, SpaceError)) as caught:
            _make(make_trajectories, [6, 4], **changes)
        assert (type(caught.value), caught.value.setting) == (kind, name)
    data = _make(make_trajectories, [6, 4], frame_stack=np.int64(4))
    assert type(data.frame_stack) is int


def test_statistics_of_other_frames_are_repeated_over_the_stack(make_trajectories: Make) -> None:
    data = _make(make_trajectories, [40, 60], (5,))
    statistics = compute_observation_statistics(data)
    assert compute_observation_statistics(_make(make_trajectories, [5], (84, 84))) is None  # images
    assert statistics is not None
    assert statistics.mean.shape == statistics.std.shape == (4, 5)
    for row in range(4):
        np.testing.assert_allclose(statistics.mean[row], data.observations.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics.std[row], data.observations.std(axis=0), rtol=1e-6)


def test_a_model_learns_from_stacks(make_trajectories: Make) -> None:
    """The action can be read off the frame before last alone, so stacking is what is learnt."""
    frame = (36, 36)
    data = _make(make_trajectories, [30] * 4, frame, 2)
    frames = np.zeros_like(data.observations)
    shown = np.random.default_rng(0).integers(0, 2, data.n_steps)
    frames[shown == 1] = 255
    before = np.r_[0, shown[:-1]]
    before[data.episode_offsets[:-1]] = 0
    data = _make(make_trajectories, [30] * 4, frame, 2, observations=frames, actions=before)
    model = DecisionMamba(
        None,
        seed=0,
        device="cpu",
        n_layers=1,
        hidden_size=16,
        context_length=1,
        learning_rate=3e-3,
        warmup_updates=1,
    ).fit(data, n_steps=100)
    batch = WindowSampler(data, 1, 120).window_at(np.arange(120))
    inputs = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    model.policy.set_training_mode(False)
    with torch.no_grad():
        chosen = model.policy.model(*inputs).argmax(dim=-1)
    assert (chosen == batch.actions).float().mean() > 0.95
