"""Three evaluators, the same seeds: the same returns, to the last bit."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation import SeedEpisodes, split_seeds
from tests.evaluation.toys import SeededEnv
from tests.models import tiny_model
from tests.toys import random_trajectories

SEED = 100


def pendulum() -> gym.Env[Any, Any]:
    """Continuous and chaotic: a rounding error grows into another return."""
    return gym.make("Pendulum-v1", max_episode_steps=25)


def cartpole() -> gym.Env[Any, Any]:
    """Discrete, and over after 8 to 25 steps."""
    return gym.make("CartPole-v1", max_episode_steps=25)


TARGETS = {pendulum: -200.0, cartpole: 30.0}
KINDS = pytest.mark.parametrize("make", [pendulum, cartpole], ids=lambda make: make.__name__)
MEMORIES = pytest.mark.parametrize("memory", ["window", "stream"])


@pytest.fixture(scope="module")
def models() -> dict[Any, DecisionMamba]:
    """Models that were hardly trained: their actions depend on all they see."""
    torques = random_trajectories((30, 40), action_size=1)
    pushes = random_trajectories((30, 40), observation_shape=(4,), n_actions=2)
    wide = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    torques = dataclasses.replace(torques, actions=2.0 * torques.actions, action_space=wide)
    return {pendulum: tiny_model().fit(torques, 2), cartpole: tiny_model().fit(pushes, 2)}


def seeded(make: Any, seed: int) -> gym.Env[Any, Any]:
    return SeedEpisodes(Monitor(make()), seed)


def score(model: Any, env: Any, n_episodes: int) -> Any:
    return evaluate_policy(model, env, n_episodes, return_episode_rewards=True)


@MEMORIES
@KINDS
def test_one_environment(models: dict[Any, DecisionMamba], make: Any, memory: Any) -> None:
    model, target = models[make], TARGETS[make]
    report = model.evaluate(
        target, 3, env=make, memory=memory, seed=SEED, n_envs=1, n_workers=0
    ).results[0]
    model.policy.memory = memory
    try:
        for _ in range(2):
            env = ReturnToGo(seeded(make, SEED), target)
            returns, lengths = score(model, env, 3)
            assert returns == [round(each, 6) for each in report.returns.tolist()]  # as Monitor's
            assert lengths == report.lengths.tolist()
    finally:
        model.policy.memory = "window"
    assert len(set(report.returns.tolist())) > 1


@MEMORIES
@KINDS
def test_d3rlpys_evaluator(models: dict[Any, DecisionMamba], make: Any, memory: Any) -> None:
    code = pytest.importorskip("d3rlpy.metrics.utility", reason="the d3rlpy extra is missing")
    model, target = models[make], TARGETS[make]
    actor = model.as_stateful_wrapper(target, memory=memory)
    mean = code.evaluate_transformer_with_environment(actor, SeedEpisodes(make(), SEED), n_trials=3)
    report = model.evaluate(target, 3, env=make, memory=memory, seed=SEED, n_envs=1, n_workers=0)
    assert mean == report.results[0].mean


@KINDS
def test_several_environments(models: dict[Any, DecisionMamba], make: Any) -> None:
    model, target = models[make], TARGETS[make]
    for n_envs in (2, 5):
        report = model.evaluate(target, 7, env=make, seed=SEED, n_envs=n_envs, n_workers=0)
        seeds = split_seeds(SEED, n_episodes=7, n_envs=n_envs)
        venv = ReturnToGo(DummyVecEnv([partial(seeded, make, seed) for seed in seeds]), target)
        returns, lengths = score(model, venv, 7)
        # Rows of a batch round by their place, and the two fill their batches in other orders.
        np.testing.assert_allclose(sorted(returns), sorted(report.results[0].returns), rtol=1e-5)
        assert sorted(lengths) == sorted(report.results[0].lengths.tolist())


def seeds_seen(env: gym.Env[Any, Any], n_resets: int, **first: Any) -> list[int]:
    env.reset(**first)
    seen = [env.unwrapped.seed_now]  # type: ignore[attr-defined]
    for _ in range(n_resets - 1):
        env.step(np.zeros(2, np.float32))
        env.reset()
        seen.append(env.unwrapped.seed_now)  # type: ignore[attr-defined]
    return seen


def test_episodes_count_on() -> None:
    env = SeedEpisodes(SeededEnv(), 7)
    assert seeds_seen(env, 3) == [7, 8, 9]
    env.reset()
    assert seeds_seen(env, 2) == [9, 10]  # nobody stepped: the same episode again
    assert seeds_seen(env, 2, seed=3) == [3, 4]
    again = gym.make(SeedEpisodes(gym.make("CartPole-v1"), np.int64(5)).spec)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.reset()[0], gym.make("CartPole-v1").reset(seed=5)[0])


def test_a_lost_life_is_no_new_episode() -> None:
    from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv

    from tests.evaluation.test_wrappers import Lives

    env = ReturnToGo(SeedEpisodes(EpisodicLifeEnv(Lives()), 7), 10.0)
    for seed in (7, 8):
        env.reset()
        for _ in range(5):
            *_, terminated, _, _ = env.step(np.zeros(2, np.float32))
            assert env.unwrapped.seed_now == seed  # type: ignore[attr-defined]
        assert terminated


def test_shares_are_those_of_evaluate_policy() -> None:
    assert split_seeds(10, 5, 2) == [10, 12]
    assert split_seeds(*np.array([10, 5, 2])) == [10, 12]
    assert split_seeds(10, 2, 4) == [10, 10, 10, 11]  # the first two play nothing
    assert split_seeds(0, 9, 1) == [0]
    for n_episodes in range(1, 12):
        for n_envs in range(1, 12):
            counts = [(n_episodes + i) // n_envs for i in range(n_envs)]
            firsts = split_seeds(3, n_episodes, n_envs)
            played = [f + k for f, n in zip(firsts, counts, strict=True) for k in range(n)]
            assert played == list(range(3, 3 + n_episodes))


def test_seeds_that_cannot_be() -> None:
    for seed in (-1, 1.5):
        with pytest.raises(ConfigError) as caught:
            SeedEpisodes(SeededEnv(), seed)  # type: ignore[arg-type]
        assert (caught.value.setting, caught.value.value) == ("seed", seed)
    with pytest.raises(ConfigError) as caught:
        split_seeds(0, 3, 0)
    assert caught.value.setting == "n_envs"
