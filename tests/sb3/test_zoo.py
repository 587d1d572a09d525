"""RL Zoo's way to load, wrap and watch a model, written out.

Source: rl_zoo3 2.9.2, ``enjoy.py`` and ``utils.create_test_env``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.sb3.setting import TARGET, by_hand, fitted, make_env

CUSTOM_OBJECTS = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
WRAPPER: Any = ReturnToGo


def create_test_env(n_envs: int, statistics: Path | None = None, n_stack: int = 0) -> Any:
    """``env_wrapper: {sb3_dmamba.ReturnToGo: {target_return: 20}}`` in the hyper-parameters."""
    wrapper = {"target_return": TARGET}
    env: Any = make_vec_env(make_env, n_envs, 4, wrapper_class=WRAPPER, wrapper_kwargs=wrapper)
    if statistics is not None:
        env = VecNormalize.load(str(statistics), env)
        env.training = False
        env.norm_reward = False
    return VecFrameStack(env, n_stack) if n_stack else env


def enjoy(model: Any, env: Any, n_timesteps: int) -> tuple[list[float], list[int]]:
    """The loop: nothing but ``predict`` with the state and what ``step`` called done."""
    observation, states = env.reset(), None
    episode_start = np.ones((env.num_envs,), dtype=bool)
    total, length, totals, lengths = 0.0, 0, [], []
    for _ in range(n_timesteps):
        action, states = model.predict(
            observation, state=states, episode_start=episode_start, deterministic=True
        )
        observation, reward, done, _ = env.step(action)
        episode_start = done
        total, length = total + reward[0], length + 1
        if done[0]:
            totals.append(float(total))
            lengths.append(length)
            total, length = 0.0, 0
    env.close()
    return totals, lengths


@pytest.mark.parametrize(("n_envs", "normalize"), [(1, True), (2, False)])
def test_enjoy(tmp_path: Path, n_envs: int, normalize: bool) -> None:
    fitted().save(tmp_path / "PickledEnv-v0")
    statistics = None
    if normalize:  # as the zoo saved them, of an environment that shows the return-to-go
        statistics = tmp_path / "vecnormalize.pkl"
        VecNormalize(create_test_env(1), norm_obs_keys=["observation"]).save(str(statistics))
    model = DecisionMamba.load(
        str(tmp_path / "PickledEnv-v0.zip"), custom_objects=CUSTOM_OBJECTS, device="auto", seed=4
    )
    assert model.seed == 4
    totals, lengths = enjoy(model, create_test_env(n_envs, statistics, 1), 14)
    # seeds 4, 5, 6 and 7 last 2, 3, 4 and 5 steps; the statistics of nothing change nothing
    expected = by_hand(fitted(), [4, 5, 6, 7])
    np.testing.assert_allclose(totals, [total for total, _ in expected], rtol=1e-4)
    assert lengths == [2, 3, 4, 5]
