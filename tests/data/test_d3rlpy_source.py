"""d3rlpy's buffers, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.errors import DatasetError, SpaceError
from tests.data.builders import import_d3rlpy, make_trajectories, refusal, unlike

d3rlpy = import_d3rlpy()
Episode, InfiniteBuffer = d3rlpy.dataset.Episode, d3rlpy.dataset.InfiniteBuffer
MDPDataset, ReplayBuffer = d3rlpy.dataset.MDPDataset, d3rlpy.dataset.ReplayBuffer

LENGTHS = (3, 1, 4)
TERMINALS = np.array([0, 0, 1, 1, 0, 0, 0, 0], dtype=np.float32)
TIMEOUTS = np.array([0, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32)


def make(observations: Any = None, actions: Any = None, **changes: Any) -> Any:
    """Eight steps: two terminated episodes, and one that timed out."""
    generator = np.random.default_rng(0)
    fields = {
        "observations": generator.normal(size=(8, 2)) if observations is None else observations,
        "actions": generator.uniform(-1, 1, (8, 3)) if actions is None else actions,
        "rewards": np.arange(8.0),
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
    }
    return MDPDataset(**{**fields, **changes})


def test_discrete_actions() -> None:
    actions, space = np.array([0, 2, 1, 0, 0, 1, 2, 0]), spaces.Discrete(4)
    assert load_trajectories(make(actions=actions)).action_space == spaces.Discrete(3)
    sized = load_trajectories(make(actions=actions, action_size=5))
    assert sized.action_space == spaces.Discrete(5)
    assert load_trajectories(make(actions=actions), action_space=space).action_space == space


def test_continuous_actions_that_d3rlpy_takes_for_discrete() -> None:
    actions = np.full((8, 1), 0.5)
    actions[:3] = 1.0
    source = make(actions=actions)
    assert source.dataset_info.action_space.name == "DISCRETE"
    error = refusal(source)
    assert (error.episode, error.setting, error.value) == (1, "action_space", 0.5)
    data = load_trajectories(source, action_space=spaces.Box(-1, 1, (1,)))
    np.testing.assert_array_equal(data.actions, actions)


def test_actions_beyond_one() -> None:
    source = make(actions=np.linspace(-2, 2, 8)[:, None] + 0.01)
    assert refusal(source).setting == "action_space"
    space = spaces.Box(-3.0, 3.0, (1,), np.float32)
    assert load_trajectories(source, action_space=space).action_space == space


def test_frames_that_d3rlpy_stacks() -> None:
    frames = np.random.default_rng(0).integers(1, 256, (8, 1, 5, 6), dtype=np.uint8)
    picker = d3rlpy.dataset.FrameStackTransitionPicker(3)
    source = make(observations=frames, transition_picker=picker)
    assert load_trajectories(source).frame_stack == 3
    slicer = d3rlpy.dataset.FrameStackTrajectorySlicer(3)
    source = make(observations=frames, trajectory_slicer=slicer)
    data = load_trajectories(source)
    assert data.frame_stack == 3
    assert data.observation_space == spaces.Box(0, 255, (3, 5, 6), np.uint8)
    for episode, theirs in enumerate(source.episodes):
        steps = np.arange(*data.episode_offsets[episode : episode + 2])
        stacks = slicer(theirs, theirs.size() - 1, theirs.size()).observations
        np.testing.assert_array_equal(data.stack_frames(steps), stacks)
    single = load_trajectories(source, frame_stack=1)
    assert single.observation_space.shape == (1, 5, 6)
    space = spaces.Box(0, 255, (3, 5, 6), np.uint8)
    assert load_trajectories(source, observation_space=space).observation_space == space


def test_frames_of_several_channels_are_not_stacked() -> None:
    slicer = d3rlpy.dataset.FrameStackTrajectorySlicer(4)
    source = make(observations=np.zeros((8, 3, 5, 6), np.uint8), trajectory_slicer=slicer)
    assert refusal(source, SpaceError).setting == "frame_stack"


def test_observations_of_several_arrays() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(8, 2)), generator.normal(size=(8, 3))]
    # d3rlpy's constructor takes them, its episode generator slices them
    data = load_trajectories(make(observations=parts))
    assert data.observation_space.shape == (5,)
    np.testing.assert_array_equal(data.observations, np.float32(np.concatenate(parts, axis=1)))
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Box(-9, 9, (3,)))
    given = load_trajectories(make(observations=parts), observation_space=space)
    np.testing.assert_array_equal(given.observations, data.observations)
    assert given.observation_space.high.max() == 9
    three = spaces.Tuple([spaces.Box(-9, 9, (2,))] * 3)
    assert refusal(make(observations=parts), observation_space=three).episode == 0


class Walk:
    """Just enough of an environment for d3rlpy to write down."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)


def test_an_online_buffer() -> None:
    buffer: Any = d3rlpy.dataset.create_fifo_replay_buffer(limit=100, env=Walk())
    for step in range(9):
        buffer.append(np.full(2, step, np.float32), np.zeros(1, np.float32), float(step))
        if step in (2, 5):
            buffer.clip_episode(terminated=step == 2)
    data = load_trajectories(buffer, action_space=Walk.action_space)
    assert data.lengths.tolist() == [3, 3, 3]
    assert data.rewards.tolist() == list(range(9))
    assert data.terminated.tolist() == [True, False, False]
    assert data.truncated.tolist() == [False, True, False]  # the last one is still written to
    buffer.append(np.zeros(2, np.float32), np.zeros(1, np.float32), 0.0)
    assert data.n_steps == 9


def test_a_mixed_buffer() -> None:
    first: Any = d3rlpy.dataset.create_infinite_replay_buffer(env=Walk())
    for step in range(2):
        first.append(np.full(2, step, np.float32), np.zeros(1, np.float32), 1.0)
    second = make(actions=np.full((8, 1), 0.5))
    mixed = d3rlpy.dataset.MixedReplayBuffer(first, second, 0.5)
    data = load_trajectories(mixed, action_space=Walk.action_space)
    assert data.lengths.tolist() == [2, *LENGTHS]
    assert data.summary().cut == 1


def test_episodes_that_do_not_fit() -> None:
    fields: dict[str, Any] = {
        "observations": np.zeros((3, 2)),
        "actions": np.full((3, 1), 0.5),
        "rewards": np.zeros((3, 1)),
        "terminated": True,
    }
    changes: list[tuple[str, np.ndarray]] = [
        ("actions", np.full((3, 2), 0.5)),
        ("rewards", np.zeros((3, 2))),
        ("observations", np.zeros((2, 2))),
        ("observations", np.zeros((3, 4))),
        ("observations", np.full((3, 2), np.nan)),
    ]
    wrong = []
    for name, values in changes:
        episodes = [Episode(**fields), Episode(**{**fields, name: values})]
        error = refusal(ReplayBuffer(InfiniteBuffer(), episodes=episodes))
        wrong += unlike(name, error, {"episode": 1, "setting": name})
    assert not wrong, "\n".join(wrong)
    refusal(d3rlpy.dataset.create_infinite_replay_buffer(env=Walk()))  # an empty one


def test_continuous_actions_that_happen_to_be_integers() -> None:
    data = make_trajectories([4], actions=np.ones((4, 2)))
    assert data.to_d3rlpy().dataset_info.action_space.name == "CONTINUOUS"


def test_episodes_that_d3rlpy_cannot_hold() -> None:
    flags = np.zeros(3, dtype=bool)
    data = make_trajectories([3, 1, 2], terminated=flags, truncated=~flags)
    with pytest.warns(UserWarning, match=r"1 episodes \(the first is 1\) have one step") as caught:
        source = data.to_d3rlpy()
    assert caught[0].filename == __file__
    assert load_trajectories(source, action_space=data.action_space).lengths.tolist() == [3, 2]
    with pytest.raises(DatasetError, match="every episode has one step"):
        data[[1]].to_d3rlpy()


def test_actions_that_do_not_start_at_zero() -> None:
    data = make_trajectories(
        [3], actions=np.array([1, 2, 1]), action_space=spaces.Discrete(2, start=1)
    )
    with pytest.raises(SpaceError, match="d3rlpy counts actions from 0"):
        data.to_d3rlpy()
