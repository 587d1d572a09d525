from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmamba.data import Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import ConfigError, DatasetError

Make = Callable[..., Trajectories]
FIELDS = ("observations", "actions", "returns_to_go", "timesteps", "padding_mask")


def _assert_equal(left: WindowBatch, right: WindowBatch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(left, name), getattr(right, name)), name


def _assert_is_slice(data: Trajectories, batch: WindowBatch, row: int, first_step: int) -> None:
    """One window against plain slicing of its episode."""
    episode = int(np.searchsorted(data.episode_offsets, first_step, side="right")) - 1
    start = first_step - int(data.episode_offsets[episode])
    steps = slice(start, start + batch.padding_mask.shape[1])
    real = len(data[episode].rewards[steps])
    whole = np.cumsum(data[episode].rewards[::-1].astype(np.float64))[::-1]
    expected = {
        "observations": data[episode].observations[steps],
        "actions": data[episode].actions[steps],
        "returns_to_go": whole[steps].astype(np.float32),
        "timesteps": np.arange(len(data[episode]))[steps],
        "padding_mask": np.ones(real, dtype=bool),
    }
    for name, values in expected.items():
        window = getattr(batch, name)[row].numpy()
        np.testing.assert_array_equal(window[:real], values, err_msg=name)
        assert not window[real:].any(), f"{name} is padded with something"


def test_shapes_and_types(make_trajectories: Make) -> None:
    batch = WindowSampler(make_trajectories([30, 5]), 7, 4, seed=0).sample(0)
    assert len(batch) == 4
    shapes = {
        name: (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) for name in FIELDS
    }
    assert shapes == {
        "observations": ((4, 7, 3), torch.float32),
        "actions": ((4, 7, 2), torch.float32),
        "returns_to_go": ((4, 7), torch.float32),
        "timesteps": ((4, 7), torch.int64),
        "padding_mask": ((4, 7), torch.bool),
    }


def test_discrete_actions_and_frames(make_trajectories: Make) -> None:
    frames = np.random.default_rng(0).integers(1, 256, (12, 8, 9, 2), dtype=np.uint8)
    data = make_trajectories(
        [8, 4],
        observations=frames,
        observation_space=spaces.Box(0, 255, frames.shape[1:], np.uint8),
        actions=np.arange(12) % 3 + 5,
        action_space=spaces.Discrete(3, start=5),
    )
    batch = WindowSampler(data, 5, 12, seed=0).window_at(np.arange(12))
    assert (batch.observations.dtype, batch.actions.dtype) == (torch.uint8, torch.int64)
    for step in range(12):
        _assert_is_slice(data, batch, step, step)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    context_length=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    update=st.integers(0, 2**40),
)
def test_every_window_is_a_slice_of_one_episode(
    make_trajectories: Make, lengths: list[int], context_length: int, seed: int, update: int
) -> None:
    # The first observation is the flat step, which tells which window was drawn.
    n_steps = sum(lengths)
    data = make_trajectories(
        lengths,
        observations=np.arange(1, n_steps + 1)[:, None],
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )
    sampler = WindowSampler(data, context_length, 5, seed)
    batch = sampler.sample(update)
    for row in range(5):
        _assert_is_slice(data, batch, row, int(batch.observations[row, 0, 0]) - 1)
    every = sampler.window_at(np.arange(n_steps))
    for step in range(n_steps):
        _assert_is_slice(data, every, step, step)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    context_length=st.integers(1, 12),
    batch_size=st.integers(1, 7),
)
def test_iterate_all_visits_each_step_once_in_order(
    make_trajectories: Make, lengths: list[int], context_length: int, batch_size: int
) -> None:
    data = make_trajectories(lengths)
    batches = list(WindowSampler(data, context_length, batch_size, 0).iterate_all())
    seen = torch.cat([batch.observations[batch.padding_mask] for batch in batches])
    np.testing.assert_array_equal(seen.numpy(), data.observations)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batch.padding_mask.any(dim=1).all() for batch in batches)


def test_longer_than_every_episode(make_trajectories: Make) -> None:
    data = make_trajectories([2, 3])
    batch = WindowSampler(data, 50, 8, seed=1).sample(0)
    assert batch.padding_mask.shape == (8, 50)
    assert batch.padding_mask.sum(dim=1).max() <= 3


def test_pure_in_seed_and_update(make_trajectories: Make) -> None:
    data = make_trajectories([50, 20, 30])
    sampler = WindowSampler(data, 5, 16, seed=3)
    expected = sampler.sample(11)
    for update in (4, 0, 12):  # what was drawn before makes no difference
        sampler.sample(update)
    _assert_equal(sampler.sample(11), expected)
    _assert_equal(WindowSampler(data, 5, 16, seed=3).sample(11), expected)
    neighbour = WindowSampler(data, 5, 16, seed=4)
    for other in (sampler.sample(12), neighbour.sample(11), neighbour.sample(10)):
        assert not torch.equal(other.observations, expected.observations)


def test_global_randomness_is_left_alone(make_trajectories: Make) -> None:
    data = make_trajectories([50])
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    WindowSampler(data, 5, 16, seed=3).sample(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


def test_every_step_is_equally_likely(make_trajectories: Make) -> None:
    lengths = [1, 40, 3, 16]
    n_steps, draws, batch_size = 60, 400, 64
    data = make_trajectories(
        lengths,
        observations=np.arange(n_steps)[:, None],
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )
    sampler = WindowSampler(data, 20, batch_size, seed=5)
    firsts = torch.cat([sampler.sample(update).observations[:, 0, 0] for update in range(draws)])
    counts = np.bincount(firsts.long().numpy(), minlength=n_steps)
    expected = draws * batch_size / n_steps
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 59 degrees of freedom: mean 59, standard deviation 10.9; 99.99 % lie below 107.
    assert 25 < chi_square < 107


def test_memory_mapped_observations(tmp_path: Path, make_trajectories: Make) -> None:
    data = make_trajectories([9, 9])
    np.save(tmp_path / "observations.npy", data.observations)
    mapped = make_trajectories([9, 9], observations=np.load(tmp_path / "observations.npy", "r"))
    left, right = (WindowSampler(d, 4, 6, seed=0).sample(0) for d in (data, mapped))
    _assert_equal(left, right)
    right.observations.zero_()  # a tensor of its own: the file is read-only


def test_moving_a_batch(make_trajectories: Make) -> None:
    batch = WindowSampler(make_trajectories([9]), 4, 6, seed=0).sample(0)
    _assert_equal(batch.to("cpu"), batch)
    assert batch.to("meta").actions.device.type == "meta"
    assert batch.to("meta").padding_mask.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinning_a_batch(make_trajectories: Make) -> None:
    batch = WindowSampler(make_trajectories([9]), 4, 6, seed=0).sample(0).pin_memory()
    assert batch.observations.is_pinned()
    assert batch.to("cuda", non_blocking=True).actions.is_cuda


def test_a_batch_is_quick(make_trajectories: Make) -> None:
    data = make_trajectories([500] * 400, n_observations=11)
    sampler = WindowSampler(data, 20, 64, seed=0)
    sampler.sample(0)
    times = []
    for update in range(50):
        start = time.perf_counter()
        sampler.sample(update)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.5e-3  # seconds; measured 0.07e-3


@pytest.mark.parametrize(
    "arguments",
    [
        {"context_length": 0},
        {"context_length": 2.0},
        {"batch_size": 0},
        {"batch_size": True},
        {"seed": -1},
        {"seed": None},
    ],
)
def test_bad_settings(make_trajectories: Make, arguments: dict[str, Any]) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(ConfigError, match=f"{name}={value}: give an integer"):
        WindowSampler(
            make_trajectories([5]), **{"context_length": 2, "batch_size": 2, "seed": 0, **arguments}
        )


def test_numpys_integers_are_pythons(make_trajectories: Make) -> None:
    scalars: list[Any] = [np.int32(3), np.int64(8), np.uint8(4), np.int64(2), np.int64(6)]
    *settings, update = scalars
    sampler = WindowSampler(make_trajectories([5, 9]), *settings)
    kept = (sampler.context_length, sampler.batch_size, sampler.seed, sampler.burn_in)
    assert [(value, type(value)) for value in kept] == [(3, int), (8, int), (4, int), (2, int)]
    plain = WindowSampler(make_trajectories([5, 9]), 3, 8, 4, burn_in=2)
    assert torch.equal(sampler.sample(update).observations, plain.sample(6).observations)


def test_bad_updates_and_steps(make_trajectories: Make) -> None:
    sampler = WindowSampler(make_trajectories([5]), 2, 2, 0)
    with pytest.raises(ConfigError, match="update=-1"):
        sampler.sample(-1)
    with pytest.raises(DatasetError, match=r"first_steps\[1\] is 5: steps go from 0 to 4"):
        sampler.window_at(np.array([0, 5]))
    with pytest.raises(DatasetError, match=r"first_steps\[0\] is -1"):
        sampler.window_at(np.array([-1]))
    with pytest.raises(DatasetError, match="at least one integer"):
        sampler.window_at(np.array([0.5]))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    context_length=st.integers(1, 12),
    burn_in=st.integers(1, 12),
    update=st.integers(0, 2**40),
)
def test_the_steps_before_a_window(
    make_trajectories: Make, lengths: list[int], context_length: int, burn_in: int, update: int
) -> None:
    data = make_trajectories(lengths)
    plain = WindowSampler(data, context_length, 5, 1)
    batch = WindowSampler(data, context_length, 5, 1, burn_in=burn_in).sample(update)
    before = batch.before
    _assert_equal(batch, plain.sample(update))  # the windows are the same
    assert plain.sample(update).before is None
    ages = batch.timesteps[:, 0].numpy()
    if before is None:
        assert not ages.any()
        return
    assert before.padding_mask.shape[1] == min(burn_in, int(ages.max()))
    generator = np.random.default_rng((1, update))
    for row, first_step in enumerate(generator.integers(data.n_steps, size=5)):
        n_steps = min(burn_in, int(ages[row]))
        assert int(before.padding_mask[row].sum()) == n_steps
        steps = slice(first_step - n_steps, first_step)
        expected = {
            "observations": data.observations[steps],
            "actions": data.actions[steps],
            "returns_to_go": data.returns_to_go[steps],
            "timesteps": np.arange(ages[row] - n_steps, ages[row]),
            "padding_mask": np.ones(n_steps, dtype=bool),
        }
        for name, values in expected.items():
            part = getattr(before, name)[row].numpy()
            padded = len(part) - n_steps
            np.testing.assert_array_equal(part[padded:], values, err_msg=name)
            assert not part[:padded].any(), f"{name} is padded with something"


def test_the_steps_before_move_with_the_batch(make_trajectories: Make) -> None:
    sampler = WindowSampler(make_trajectories([30]), 5, 4, burn_in=3)
    before, moved = sampler.sample(0).before, sampler.sample(0).to("meta").before
    assert before is not None
    assert moved is not None
    assert moved.observations.device.type == "meta"
    assert moved.observations.shape == before.observations.shape


def test_stacked_frames_before_a_window(make_trajectories: Make) -> None:
    frames = np.random.default_rng(0).integers(1, 256, (9, 4, 5), dtype=np.uint8)
    data = make_trajectories(
        [5, 4],
        observations=frames,
        observation_space=spaces.Box(0, 255, (3, 4, 5), np.uint8),
        frame_stack=3,
    )
    before = WindowSampler(data, 2, 9, burn_in=2).window_at(np.array([1, 3, 5, 8])).before
    assert before is not None
    assert before.padding_mask.tolist() == [[False, True], [True, True], [False] * 2, [True] * 2]
    expected = data.stack_frames(np.array([0, 1, 2, 6, 7]))
    np.testing.assert_array_equal(before.observations[before.padding_mask].numpy(), expected)
    assert not before.observations[~before.padding_mask].any()
