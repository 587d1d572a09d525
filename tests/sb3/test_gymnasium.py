"""Gymnasium's own utilities around a model: recorders, and vector environments of every kind."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.sb3.setting import TARGET, Episodes, by_hand, fitted, make_env

AutoresetMode: Any = getattr(gym.vector, "AutoresetMode", None)  # Gymnasium 1.1 and later
needs_modes = pytest.mark.skipif(
    AutoresetMode is None, reason="this Gymnasium has no autoreset modes"
)
MODES = ["NextStep", *(pytest.param(mode, marks=needs_modes) for mode in ("SameStep", "Disabled"))]


def close_to(expected: Episodes) -> list[Any]:
    return [(pytest.approx(total, rel=1e-5), length) for total, length in expected]


def make_vector(kind: str, mode: str, make: Any, n_envs: int) -> Any:
    options = {} if AutoresetMode is None else {"autoreset_mode": AutoresetMode(mode)}
    if kind == "sync":
        return SyncVectorEnv([make] * n_envs, **options)
    return AsyncVectorEnv([make] * n_envs, context="fork", **options)


def play_vector(model: Any, env: Any, mode: str, n_steps: int) -> list[Episodes]:
    """One loop for every mode: ``episode_start`` says whose observation begins an episode."""
    episodes: list[Episodes] = [[] for _ in range(env.num_envs)]
    totals, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    observations, _ = env.reset(seed=4)
    state = None
    for _ in range(n_steps):
        actions, state = model.predict(observations, state, env.episode_start)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        played = ~env.episode_start if mode == "NextStep" else np.ones(env.num_envs, bool)
        totals[played] += rewards[played]
        lengths += played
        over = terminated | truncated
        for row in np.flatnonzero(over):
            episodes[row].append((float(totals[row]), int(lengths[row])))
        totals[over], lengths[over] = 0.0, 0
        if mode == "Disabled" and over.any():
            observations, _ = env.reset(options={"reset_mask": over})
    env.close()
    return episodes


def check(episodes: list[Episodes], model: Any) -> None:
    for row, played in enumerate(episodes):
        assert len(played) >= 2
        assert played == close_to(by_hand(model, range(4 + row, 4 + row + len(played))))


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.mark.parametrize("mode", MODES)
@KINDS
def test_around_a_vector_environment(kind: str, mode: str) -> None:
    model = fitted(memory="window" if kind == "sync" else "stream")
    env: Any = ReturnToGo(make_vector(kind, mode, make_env, 3), TARGET)
    check(play_vector(model, env, mode, 14), model)
