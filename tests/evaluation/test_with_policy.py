"""The real policy behind the roll-outs, the wrapper and the stateful actor: one behaviour."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.evaluation import StatefulActor, evaluate_targets
from sb3_dmamba.networks import DecisionMambaPolicy

ENV_ID = "Pendulum-v1"
TARGETS = [-100.0, -900.0]
N_STEPS = 30


def make_env() -> gym.Env[Any, Any]:
    return gym.make(ENV_ID, max_episode_steps=N_STEPS)


@pytest.fixture(scope="module")
def policy() -> DecisionMambaPolicy:
    torch.manual_seed(0)
    env = make_env()
    assert isinstance(env.observation_space, spaces.Box)
    config = DecisionMambaConfig(
        context_length=5, hidden_size=16, n_layers=2, return_scale=100.0, backend="reference"
    )
    return DecisionMambaPolicy(env.observation_space, env.action_space, config)


def by_wrapper(policy: DecisionMambaPolicy, target: float, seed: int) -> float:
    env = ReturnToGo(make_env(), target)
    shown, _ = env.reset(seed=seed)
    state, total, over = None, 0.0, False
    while not over:
        action, state = policy.predict(shown, state)
        shown, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def by_actor(policy: DecisionMambaPolicy, target: float, seed: int, memory: str) -> float:
    env, actor = make_env(), StatefulActor(policy, target, memory=memory)
    shown, _ = env.reset(seed=seed)
    reward: Any = 0.0
    total, over = 0.0, False
    while not over:
        shown, reward, terminated, truncated, _ = env.step(actor.predict(shown, reward))
        total, over = total + float(reward), terminated or truncated
    return total


@pytest.mark.parametrize("memory", ["window", "stream"])
@pytest.mark.parametrize("n_envs", [None, 3])
def test_episodes_together_are_the_episodes_alone(
    policy: DecisionMambaPolicy, memory: str, n_envs: int | None
) -> None:
    report = evaluate_targets(
        policy, make_env, TARGETS, 3, seed=1, memory=memory, n_envs=n_envs, n_workers=0
    )
    for result in report.results:
        alone = [by_actor(policy, result.target_return, seed, memory) for seed in (1, 2, 3)]
        np.testing.assert_allclose(result.returns, alone, rtol=1e-3)
        assert result.lengths.tolist() == [N_STEPS] * 3
    asked = [result.returns for result in report.results]
    assert not np.allclose(asked[0], asked[1], rtol=1e-5), "the target changes nothing"
    if memory == "window":
        np.testing.assert_allclose(asked[0][0], by_wrapper(policy, TARGETS[0], 1), rtol=1e-3)
