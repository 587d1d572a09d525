"""Gymnasium's own utilities around a model: recorders, and vector environments of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.recording import collect
from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.models import TINY
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


class ThreeSteps(gym.Env[Any, Any]):
    """Episodes of three steps that pay 1 each: every one returns 3."""

    observation_space = gym.spaces.Box(0.0, 3.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, False, {}


def make_three_steps(**_kwargs: Any) -> gym.Env[Any, Any]:
    return ThreeSteps()


@pytest.fixture
def three_steps() -> Iterator[str]:
    gym.register("ThreeSteps-v0", entry_point=make_three_steps)
    yield "ThreeSteps-v0"
    del gym.registry["ThreeSteps-v0"]


@pytest.mark.parametrize("mode", MODES)
@KINDS
def test_three_steps_that_pay_1_return_3(kind: str, mode: str, three_steps: str) -> None:
    modes = {} if AutoresetMode is None else {"autoreset_mode": AutoresetMode(mode)}
    how = modes | ({"context": "fork"} if kind == "async" else {})
    for recorded in ("inside", "outside"):
        env: Any = gym.make_vec(three_steps, 2, kind, vector_kwargs=how)
        recorder = gym.wrappers.vector.RecordEpisodeStatistics
        inner = recorder(env) if recorded == "inside" else env
        wrapped: Any = ReturnToGo(inner, [3.0, 5.0])
        outer = recorder(wrapped) if recorded == "outside" else wrapped
        shown, _ = outer.reset(seed=0)
        seen, returns = [shown["return_to_go"][:, 0]], []
        for _ in range(12):
            shown, _, terminated, _, infos = outer.step(np.zeros(2, np.int64))
            if terminated.all():
                told = infos if "episode" in infos else infos["final_info"]
                returns += told["episode"]["r"].tolist()
            if mode == "Disabled" and terminated.any():
                seen.append(shown["return_to_go"][:, 0])
                shown, _ = outer.reset(options={"reset_mask": terminated})
            seen.append(shown["return_to_go"][:, 0])
        outer.close()
        assert set(returns) == {3.0}
        cycle = [3, 2, 1] if mode == "SameStep" else [3, 2, 1, 0]
        expected = np.resize(cycle, len(seen))
        np.testing.assert_array_equal(seen, np.stack([expected, expected + 2], axis=1))
    env = gym.make_vec(three_steps, 2, kind, vector_kwargs=how)
    assert collect("random", env, 18, seed=0).returns.tolist() == [3.0] * 6
    env.close()


def test_environments_that_are_vectors_themselves() -> None:
    env: Any = gym.make_vec("CartPole-v1", 3, "vector_entry_point")
    data = collect("random", env, 90, seed=0)
    whole = data.drop_cut_episodes()
    assert len(whole) >= 3
    np.testing.assert_array_equal(data.returns, data.lengths)
    wrapped: Any = ReturnToGo(env, 200.0)
    model = DecisionMamba("CartPole-v1", seed=0, **TINY).fit(data, 2)
    shown, _ = wrapped.reset(seed=4)
    state, played, lengths = None, [], np.zeros(3, int)
    for _ in range(60):
        actions, state = model.predict(shown, state, wrapped.episode_start)
        shown, _, terminated, truncated, _ = wrapped.step(actions)
        lengths = np.where(wrapped.episode_start, 0, lengths + 1)
        np.testing.assert_array_equal(shown["return_to_go"][:, 0], 200.0 - lengths)
        played += lengths[terminated | truncated].tolist()
    env.close()
    assert len(played) >= 3
