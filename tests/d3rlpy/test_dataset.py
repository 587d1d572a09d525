"""WindowReplayBuffer: our trajectories as a d3rlpy replay buffer."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import d3rlpy
import numpy as np
import pytest
from d3rlpy.dataset import InfiniteBuffer
from gymnasium import spaces

from sb3_dmamba.d3rlpy import as_replay_buffer
from sb3_dmamba.d3rlpy.dataset import WindowReplayBuffer
from sb3_dmamba.data import Trajectories, WindowSampler
from sb3_dmamba.errors import DatasetError, SpaceError
from tests.d3rlpy.cases import fit, make_algo, seeded
from tests.toys import random_trajectories

CASES: dict[str, dict[str, Any]] = {
    "continuous": {},
    "discrete": {"n_actions": 4},
    "images": {"observation_shape": (2, 5, 5)},
}
LENGTH = 5


def stacked_trajectories() -> Trajectories:
    rng = np.random.default_rng(0)
    return Trajectories(
        observations=rng.integers(0, 256, (9, 6, 6), dtype=np.uint8),
        actions=rng.integers(0, 3, 9),
        rewards=rng.normal(size=9).astype(np.float32),
        terminated=np.array([True, False]),
        truncated=np.array([False, True]),
        episode_offsets=np.array([0, 5, 9]),
        observation_space=spaces.Box(0, 255, (3, 6, 6), np.uint8),
        action_space=spaces.Discrete(3),
        frame_stack=3,
    )


@pytest.mark.parametrize("case", CASES)
def test_batches_are_our_windows_on_d3rlpys_side(case: str) -> None:
    data = random_trajectories(**CASES[case])
    buffer = as_replay_buffer(data, seed=7)
    sampler = WindowSampler(data, LENGTH, 6, seed=7)
    n_padded = 0
    for number in range(4):
        batch, windows = buffer.sample_trajectory_batch(6, LENGTH), sampler.sample(number)
        assert (batch.length, len(batch)) == (LENGTH, 6)
        assert batch.rewards.shape == batch.terminals.shape == (6, LENGTH, 1)
        for row in range(6):
            n_real = int(windows.padding_mask[row].sum())
            pad = LENGTH - n_real
            n_padded += pad
            assert batch.masks[row].tolist() == [0.0] * pad + [1.0] * n_real
            assert batch.timesteps[row, :pad].tolist() == [0.0] * pad
            for theirs, ours in (
                (batch.observations, windows.observations),
                (batch.actions.reshape(windows.actions.shape), windows.actions),
                (batch.returns_to_go[..., 0], windows.returns_to_go),
                (batch.timesteps - 1, windows.timesteps),
            ):
                np.testing.assert_array_equal(theirs[row, pad:], ours[row, :n_real].numpy())
            assert not batch.observations[row, :pad].any()
    assert n_padded
    assert buffer.n_batches == 4


@pytest.mark.parametrize("case", [*CASES, "stacked"])
def test_it_holds_what_d3rlpys_own_holds(case: str) -> None:
    data = stacked_trajectories() if case == "stacked" else random_trajectories(**CASES[case])
    ours, theirs = as_replay_buffer(data), data.to_d3rlpy()
    assert ours.dataset_info == theirs.dataset_info
    assert ours.size() == theirs.size()
    assert ours.transition_count == theirs.transition_count == len(ours.buffer)
    assert type(ours.trajectory_slicer) is type(theirs.trajectory_slicer)
    assert type(ours.transition_picker) is type(theirs.transition_picker)
    for one, other in zip(ours.episodes, theirs.episodes, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.terminated == other.terminated
    for index in range(ours.transition_count):
        (one, place), (other, their_place) = ours.buffer[index], theirs.buffer[index]
        assert place == their_place
        np.testing.assert_array_equal(one.actions, other.actions)
    with seeded(3):
        mine = ours.sample_trajectory(LENGTH), ours.sample_transition_batch(3)
    with seeded(3):
        other_ones = theirs.sample_trajectory(LENGTH), theirs.sample_transition_batch(3)
    np.testing.assert_array_equal(mine[0].observations, other_ones[0].observations)
    np.testing.assert_array_equal(mine[1].observations, other_ones[1].observations)
    assert len(ours.episodes[:1]) == 1


@pytest.mark.parametrize("name", ["transformer", "mamba"])
def test_both_algorithms_train_on_it_with_scalers(name: str) -> None:
    algo = make_algo(
        name,
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
        action_scaler=d3rlpy.preprocessing.MinMaxActionScaler(),
        reward_scaler=d3rlpy.preprocessing.ReturnBasedRewardScaler(),
        encoder_factory=d3rlpy.models.VectorEncoderFactory([8]),
    )
    data = random_trajectories(action_size=3)
    assert len(fit(algo, as_replay_buffer(data), 2).values["loss"]) == 2
    np.testing.assert_allclose(
        algo.observation_scaler.mean, data.observations.mean(axis=0), atol=1e-6
    )


def test_a_view_is_read_only() -> None:
    buffer = as_replay_buffer(random_trajectories())
    attempts: list[Callable[[], Any]] = [
        lambda: buffer.append(np.zeros(3), np.zeros(2), 0.0),
        lambda: buffer.append_episode(buffer.episodes[0]),
        lambda: buffer.clip_episode(True),
        lambda: WindowReplayBuffer.load(io.BytesIO(), InfiniteBuffer()),
        lambda: WindowReplayBuffer.from_episode_generator(None, InfiniteBuffer()),
    ]
    for attempt in attempts:
        with pytest.raises(DatasetError, match=r"to_d3rlpy\(\)"):
            attempt()


def test_datasets_that_d3rlpy_cannot_hold() -> None:
    data = random_trajectories(n_actions=3)
    shifted = dataclasses.replace(
        data, actions=data.actions + 5, action_space=spaces.Discrete(3, start=5)
    )
    with pytest.raises(SpaceError) as caught:
        as_replay_buffer(shifted)
    assert caught.value.setting == "action_space"
    short = random_trajectories((1, 1))
    short = dataclasses.replace(short, terminated=short.truncated, truncated=short.terminated)
    with pytest.raises(DatasetError) as empty:
        as_replay_buffer(short)
    assert empty.value.setting == "terminated"
