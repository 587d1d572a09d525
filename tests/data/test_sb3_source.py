"""Stable-Baselines3's buffers, filled by SB3 itself and by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dmamba.data import Trajectories, load_trajectories
from tests.data.builders import refusal, unlike
from tests.evaluation.toys import SeededEnv, episode_length

pytestmark = pytest.mark.filterwarnings("ignore:the ring is full")

BOX = spaces.Box(-1e6, 1e6, (2,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Recorded(SeededEnv):
    """Notes what it was asked to do, episode by episode; its seeds go on where the last ended."""

    def __init__(self, kind: str = "box", first_seed: int = 0) -> None:
        super().__init__(kind)
        self.seed_now = first_seed - 1
        self.history: dict[int, list[Any]] = {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=None, options=options)  # SB3 seeds the first of each

    def step(self, action: Any) -> Any:
        self.history.setdefault(self.seed_now, []).append(np.array(action))
        return super().step(action)


def check(data: Trajectories, history: dict[int, list[Any]]) -> list[int]:
    """Check every number of episodes in such environments; return their seeds."""
    seeds = []
    for episode in data:
        observations = episode.observations
        seed, length = int(observations[0, 0]), len(episode)
        assert (observations[:, 0] == seed).all()
        np.testing.assert_array_equal(observations[:, 1], np.arange(length))
        actions = np.array(history[seed][:length])
        np.testing.assert_allclose(episode.actions, actions, atol=1e-6)
        sums = actions.reshape(length, -1).sum(axis=1, dtype=np.float64)
        np.testing.assert_allclose(episode.rewards, seed + np.arange(length) + sums, atol=1e-5)
        whole = length == episode_length(seed)
        assert episode.terminated == (whole and seed % 2 == 0)
        assert episode.truncated == (whole and seed % 2 == 1)
        seeds.append(seed)
    return seeds


def fill(buffer: Any, n_adds: int, envs: list[Recorded]) -> dict[int, list[Any]]:
    """Add steps as SB3's algorithms do; return what was done, by the episodes' seeds."""
    generator = np.random.default_rng(0)
    shown = [env.reset()[0] for env in envs]
    for _ in range(n_adds):
        done: Any = [generator.uniform(-1, 1, 2).astype(np.float32) for _ in envs]
        rewards, ends, infos, following, starts = [], [], [], [], []
        for env, action in zip(envs, done, strict=True):
            observation, reward, terminated, truncated, _ = env.step(action)
            following.append(observation)
            rewards.append(reward)
            ends.append(terminated or truncated)
            infos.append({"TimeLimit.truncated": truncated and not terminated})
            starts.append(env.reset()[0] if ends[-1] else observation)
        buffer.add(*map(np.array, (shown, following, done, rewards, ends)), infos)
        shown = starts
    return {seed: actions for env in envs for seed, actions in env.history.items()}


def ring(size: int, n_envs: int = 1, optimize: bool = False) -> ReplayBuffer:
    memory: dict[str, Any] = {
        "optimize_memory_usage": optimize,
        "handle_timeout_termination": not optimize,
    }
    return ReplayBuffer(size, BOX, ACTIONS, n_envs=n_envs, **memory)


def environments(n: int, kind: str = "box") -> list[Recorded]:
    return [Recorded(kind, first_seed=100 * index) for index in range(n)]


def test_limits_where_the_buffer_does_not_know_them() -> None:
    buffer = ring(90, optimize=True)
    fill(buffer, 12, environments(1))
    data = load_trajectories(buffer, max_episode_steps=3)
    assert data.lengths.tolist() == [2, 3, 4, 3]
    assert data.truncated.tolist() == [False, True, False, False]
    assert data.terminated.tolist() == [True, False, True, False]
    assert refusal(buffer, max_episode_steps=0).setting == "max_episode_steps"
    known = ReplayBuffer(90, BOX, ACTIONS)
    fill(known, 9, environments(1))
    assert refusal(known, max_episode_steps=3).setting == "max_episode_steps"


@pytest.mark.parametrize("n_adds", [11, 12, 20, 21, 22, 23, 24, 25, 47])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_ring_that_has_wrapped(n_adds: int, optimize: bool) -> None:
    n_envs = 1 + n_adds % 2
    buffer = ring(10 * n_envs, n_envs, optimize)
    history = fill(buffer, n_adds, environments(n_envs))
    oldest = n_adds - (9 if optimize else 10)  # by hand: the step that the oldest row holds
    lengths = [episode_length(seed) for seed in range(40)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first = int(np.searchsorted(starts, oldest + 1))  # the first episode that began after it
    last = int(np.searchsorted(starts, n_adds, side="left"))
    data = load_trajectories(buffer)
    if optimize:
        is_even = data.observations[data.episode_offsets[:-1], 0] % 2 == 0
        ends = {"terminated": data.terminated & is_even, "truncated": data.terminated & ~is_even}
        data = dataclasses.replace(data, **ends)
    seeds = check(data, history)
    assert seeds == [s + 100 * e for s in range(first, last) for e in range(n_envs)]
    partial = load_trajectories(buffer, keep_partial=True)
    assert partial.n_steps == (9 if optimize else 10) * n_envs
    assert partial.observations[0].tolist() == [first - 1, oldest - starts[first - 1]]


def test_a_file_that_save_replay_buffer_wrote(tmp_path: Path) -> None:
    """It is not unpickled, and the message says what does, which works."""
    agent = DQN("MlpPolicy", "CartPole-v1", learning_starts=100, buffer_size=100, seed=0).learn(60)
    path = tmp_path / "rb.pkl"
    agent.save_replay_buffer(path)
    said = "model.load_replay_buffer(path), and use load_trajectories(model.replay_buffer)"
    assert not unlike("saved", refusal(path), {"path": path, "said": said})
    expected = load_trajectories(agent.replay_buffer)
    agent.load_replay_buffer(path)
    np.testing.assert_array_equal(load_trajectories(agent.replay_buffer).actions, expected.actions)


def test_single_transitions_are_no_episodes() -> None:
    buffer = ReplayBuffer(90, BOX, ACTIONS)
    generator = np.random.default_rng(0)
    for _ in range(9):
        before, after = generator.normal(size=(2, 1, 2))
        buffer.add(before, after, np.zeros((1, 2)), np.ones(1), np.zeros(1), [{}])
    error = refusal(buffer)
    assert not unlike("single transitions", error, {"index": 0, "said": "after 8 of 8 rows"})


def test_buffers_without_an_episode() -> None:
    assert "empty" in str(refusal(ring(90)))
    assert "empty" in str(refusal(RolloutBuffer(90, BOX, ACTIONS), no_time_limit=True))
    one, two = ring(1, optimize=True), ring(2)
    for buffer in (one, two):
        fill(buffer, 8, environments(1))  # the third episode has four steps
    assert "one row" in str(refusal(one))
    assert refusal(two).setting == "keep_partial"
    assert load_trajectories(two, keep_partial=True).n_steps == 2


def with_actions(values: list[float], low: float, high: float) -> ReplayBuffer:
    buffer = ReplayBuffer(90, BOX, spaces.Box(low, high, (1,), np.float32))
    for value in values:
        zeros = np.zeros((1, 2))
        buffer.add(zeros, zeros, np.array([[value]]), np.ones(1), np.zeros(1), [{}])
    return buffer


def test_scaled_actions() -> None:
    buffer = with_actions([-1.0, 0.0, 0.5], -2.0, 4.0)
    assert load_trajectories(buffer, scaled_actions=True).actions[:, 0].tolist() == [-2, 1, 2.5]
    assert load_trajectories(buffer, scaled_actions=False).actions[:, 0].tolist() == [-1, 0, 0.5]
    with pytest.warns(UserWarning, match="they are taken for scaled") as caught:
        data = load_trajectories(buffer)
    assert caught[0].filename == __file__
    assert data.actions[:, 0].tolist() == [-2, 1, 2.5]


def test_scaling_that_the_values_tell() -> None:
    for values, low, high, expected in (
        ([-1.5, 0.5], -2.0, 2.0, [-1.5, 0.5]),  # beyond 1: in the environment's own numbers
        ([-1.0, 0.0], 0.0, 0.5, [0.0, 0.25]),  # outside the space: scaled
        ([-1.0, 0.5], -1.0, 1.0, [-1.0, 0.5]),  # the same either way
        ([-1.0, 0.5], -np.inf, np.inf, [-1.0, 0.5]),  # nothing to scale by
    ):
        finite = spaces.Box(-2.0, 2.0, (1,)) if np.isinf(low) else None
        data = load_trajectories(with_actions(values, low, high), action_space=finite)
        assert data.actions[:, 0].tolist() == expected
    error = refusal(with_actions([-0.5, 3.0], 0.0, 2.0))  # neither
    assert (error.setting, error.index, error.value) == ("actions", 0, -0.5)


class Wide(Recorded):
    """Takes actions from -2 to 3."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.action_space = spaces.Box(-2.0, 3.0, (2,), np.float32)


@pytest.mark.parametrize("normalised", [False, True])
def test_sac(normalised: bool) -> None:
    envs = [Wide(first_seed=0), Wide(first_seed=100)]
    venv: Any = DummyVecEnv([lambda: envs[0], lambda: envs[1]])
    venv = VecNormalize(venv) if normalised else venv
    options: dict[str, Any] = {"learning_starts": 10, "policy_kwargs": {"net_arch": [4]}}
    model = SAC("MlpPolicy", venv, buffer_size=40, seed=0, **options)
    model.learn(34)
    history = {**envs[0].history, **envs[1].history}
    data = load_trajectories(model.replay_buffer, scaled_actions=True)
    # 2 + 3 + 4 + 5 + 2 and one step of the sixth, in each environment
    assert check(data, history) == [s + 100 * e for s in range(6) for e in range(2)]
    assert np.abs(data.actions).max() > 1
    model.learn(20)  # begins with a reset, in the middle of an episode; the ring wraps
    data = load_trajectories(model.replay_buffer, scaled_actions=True)
    seeds = check(data, {**envs[0].history, **envs[1].history})
    assert [s for s in seeds if s < 100] == [3, 4, 5, 6, 7, 8]
    assert data.cut.sum() == 4  # the sixths, at the second reset, and the last ones


def test_hindsight_replay() -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=4)
    options: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 100}
    model = SAC("MultiInputPolicy", env, buffer_size=60, seed=0, **options).learn(50)
    data = load_trajectories(model.replay_buffer)
    assert (data.observation_space.shape, data.n_steps) == ((9,), 50)
    assert set(data.rewards.tolist()) <= {0.0, -1.0}  # as they were, not relabelled


@pytest.mark.parametrize(
    ("read", "n_envs", "kind"), [("before", 2, "box"), ("after", 1, "box"), ("after", 2, "dict")]
)
def test_rollouts(read: str, n_envs: int, kind: str) -> None:
    envs = environments(n_envs, kind)
    venv = DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
    policy = "MlpPolicy" if kind == "box" else "MultiInputPolicy"
    model = PPO(policy, venv, n_steps=16, batch_size=8, n_epochs=1, seed=0)
    model.learn(16 * n_envs)
    buffer = model.rollout_buffer
    assert isinstance(buffer, DictRolloutBuffer if kind == "dict" else RolloutBuffer)
    if read == "before":  # as a callback sees it
        model._last_episode_starts = np.ones(n_envs, dtype=bool)
        callback = CallbackList([])
        callback.init_callback(model)
        callback.on_training_start({}, {})
        model.collect_rollouts(venv, callback, buffer, 16)
    history = {seed: done for env in envs for seed, done in env.history.items()}
    data = load_trajectories(buffer, no_time_limit=True)
    observations = data.observations
    if kind == "dict":
        observations = np.stack([observations[:, 0], observations[:, 1:].argmax(1)], axis=1)
    firsts = observations[data.episode_offsets[:-1], 0].astype(int).tolist()
    for number, (seed, episode) in enumerate(zip(firsts, data, strict=True)):
        start, length = data.episode_offsets[number], len(episode)
        steps = observations[start : start + length, 1]
        np.testing.assert_array_equal(steps, np.arange(length))
        np.testing.assert_array_equal(episode.actions, np.array(history[seed][:length]))
        is_whole, is_last = length == episode_length(seed), seed + 1 not in firsts
        assert episode.terminated == (is_whole and not is_last)


def rollout(starts: list[int], rewards: list[float], actions: list[float]) -> RolloutBuffer:
    buffer = RolloutBuffer(len(starts), BOX, spaces.Box(-1.0, 1.0, (1,), np.float32))
    for step, (start, reward, action) in enumerate(zip(starts, rewards, actions, strict=True)):
        buffer.add(
            np.array([[step, 0.0]]),
            np.array([[action]]),
            np.array([reward]),
            np.array([start]),
            torch.zeros(1),
            torch.zeros(1),
        )
    return buffer


def test_time_limits_of_rollouts_must_be_said() -> None:
    buffer = rollout([1, 0, 0, 1, 0, 1, 0], list(range(7)), [0.0, 0.5, 2.0, -3.0, 0.0, 0.0, 0.0])
    contradictions: list[dict[str, Any]] = [{}, {"no_time_limit": True, "max_episode_steps": 3}]
    for options in contradictions:
        assert refusal(buffer, **options).setting == "max_episode_steps"
    free = load_trajectories(buffer, no_time_limit=True)
    assert free.lengths.tolist() == [3, 2, 2]
    assert free.terminated.tolist() == [True, True, False]
    assert free.actions[:4, 0].tolist() == [0.0, 0.5, 1.0, -1.0]  # clipped, as SB3 does
    limited = load_trajectories(buffer, max_episode_steps=3)
    assert limited.rewards.tolist() == [0, 1, 3, 4, 5, 6]  # without the reward that SB3 changed
    assert limited.terminated.tolist() == [False, True, False]
    assert limited.cut.tolist() == [True, False, True]
    assert refusal(buffer, max_episode_steps=2).value == 2
    scaled = rollout([1, 0], [0.0, 0.0], [0.5, -1.0])
    scaled.action_space = spaces.Box(0.0, 4.0, (1,), np.float32)
    data = load_trajectories(scaled, no_time_limit=True, scaled_actions=True)
    assert data.actions[:, 0].tolist() == [3.0, 0.0]


def test_rollouts_that_begin_in_the_middle() -> None:
    buffer = rollout([0, 0, 1, 0, 0, 1], list(range(6)), [0.0] * 6)
    data = load_trajectories(buffer, no_time_limit=True)
    assert data.rewards.tolist() == [2, 3, 4, 5]
    assert data.lengths.tolist() == [3, 1]
    refusal(rollout([0, 0], [0.0, 0.0], [0.0, 0.0]), no_time_limit=True)


def test_sb3_does_change_the_reward_at_a_limit() -> None:
    """Why rollouts need to be told: the day SB3 stops, this fails and the option can go."""
    model = A2C("MlpPolicy", gym.make("CartPole-v1", max_episode_steps=4), n_steps=8, seed=0)
    model.learn(8)
    rewards = model.rollout_buffer.rewards[:, 0]
    assert (rewards == 1.0).tolist() == [True, True, True, False] * 2
    data = load_trajectories(model.rollout_buffer, max_episode_steps=4)
    assert data.rewards.tolist() == [1.0] * 6
    assert data.cut.all()


def test_what_a_full_ring_leaves_out_is_said() -> None:
    buffer = ring(10)
    fill(buffer, 12, environments(1))
    with pytest.warns(UserWarning, match="of 10 steps are left out; keep_partial=True"):
        load_trajectories(buffer)
