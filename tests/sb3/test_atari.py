"""Stable-Baselines3's Atari chain, life loss and all: ``evaluate_policy`` scores what we do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.sb3.setting import fitted

ale_py = pytest.importorskip("ale_py", reason="the Atari extra is missing")
pytest.importorskip("cv2", reason="the Atari extra is missing")


def breakout() -> gym.Env[Any, Any]:
    """As ``make_atari_env`` makes it: frames (84, 84, 1), an episode a life, rewards clipped."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return AtariWrapper(Monitor(env), noop_max=5)


@pytest.mark.parametrize("inside", [True, False])
def test_whole_games_are_scored_and_remembered(inside: bool) -> None:
    model = fitted(shape=(84, 84, 1), n_actions=4, memory="stream")
    report = model.evaluate(20.0, 1, env=breakout, clip_rewards=True, seed=7, n_workers=0)
    venv: Any = DummyVecEnv(
        [lambda: ReturnToGo(breakout(), 20.0, clip_rewards=True) if inside else breakout()]
    )
    if not inside:
        venv = ReturnToGo(venv, 20.0, clip_rewards=True)
    venv.seed(7)
    seen: list[tuple[float, bool]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["i"] == 0:
            to_go = float(local["new_observations"]["return_to_go"][0, 0])
            seen.append((to_go, bool(local["done"])))

    returns, lengths = evaluate_policy(model, venv, 1, return_episode_rewards=True, callback=note)
    assert sorted(returns) == sorted(report.results[0].returns.tolist())  # type: ignore[arg-type]
    # Monitor counts frames of the emulator, four a step, and the steps between lives
    assert all(length > 4 * 5 * 10 for length in lengths)  # type: ignore[union-attr]
    assert [done for _, done in seen].count(True) == 1
    assert seen[-1][1]


def test_frames_that_stable_baselines3_stacks() -> None:
    """A model of channels first acts in (84, 84, 4), as SB3's own policies do."""
    model = fitted(shape=(4, 84, 84), n_actions=4)
    venv: Any = ReturnToGo(VecFrameStack(DummyVecEnv([breakout]), 4), 20.0)
    model.set_env(venv)
    observations = venv.reset()
    assert observations["observation"].shape == (1, 84, 84, 4)
    last, _ = model.predict(observations)
    moved = np.moveaxis(observations["observation"], -1, 1)
    first, _ = model.predict({**observations, "observation": moved})
    assert last.tolist() == first.tolist()
