"""Every wrong use says the line to write."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import (
    ConditioningError,
    ConfigError,
    DecisionMambaError,
    ModelFileError,
    SpaceError,
    UnknownTaskError,
)
from tests.models import tiny_model
from tests.sb3.setting import TARGET, fitted, make_conditioned, make_env
from tests.toys import random_trajectories

pytestmark = pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a")

DATA = random_trajectories(observation_shape=(2,))
NO_TARGET: Any = None


def seen(n: int = 2, **changes: Any) -> Any:
    shown = {"observation": np.zeros((n, 2), np.float32), "return_to_go": np.ones((n, 1))}
    return {**shown, **changes}


def says(*lines: str) -> str:
    """A pattern for a message that holds every one of these lines of code."""
    return "".join(f"(?=.*{re.escape(line)})" for line in lines)


WRAP = says("env = ReturnToGo(env, target_return)", "model.get_env()", "as_stateful_wrapper(")

ACTING: dict[str, tuple[Any, type[DecisionMambaError], str]] = {
    "a plain env": (lambda m: evaluate_policy(m, make_env(), 1), ConditioningError, WRAP),
    "a plain VecEnv": (
        lambda m: evaluate_policy(m, DummyVecEnv([make_env]), 1),
        ConditioningError,
        WRAP,
    ),
    "a plain observation": (lambda m: m.predict(np.zeros(2)), ConditioningError, WRAP),
    "a return-to-go alone": (
        lambda m: m.predict({"return_to_go": np.ones(1)}),
        ConditioningError,
        WRAP,
    ),
    "an observation alone": (
        lambda m: m.predict({"observation": np.ones(2)}),
        ConditioningError,
        WRAP,
    ),
    "no finite return-to-go": (
        lambda m: m.predict(seen(return_to_go=np.array([1.0, np.nan]))),
        ConditioningError,
        says("[1.0, nan]", "ReturnToGo(env, target_return)"),
    ),
    "returns-to-go of other environments": (
        lambda m: m.predict(seen(return_to_go=np.ones(3))),
        ConditioningError,
        says("2 observations came with 3 returns-to-go: give one each"),
    ),
    "another environment's observation": (
        lambda m: m.predict(seen(observation=np.zeros((2, 3)))),
        SpaceError,
        says("(2, 3), and (2, 2) was expected", "ReturnToGo(env, target_return)"),
    ),
    "a state of a VecEnv of another size": (
        lambda m: m.predict(seen(), m.predict(seen(3))[1]),
        ConditioningError,
        says("holds 3 environments, but 2 observations came", "state.take(rows)", "or None at the"),
    ),
    "a state of a recurrent policy": (
        lambda m: m.predict(seen(), (np.zeros(2), np.zeros(2))),
        ConditioningError,
        says("pass the state that the last predict returned, or None at the first step"),
    ),
    "a state of another model": (
        lambda m: m.predict(seen(), fitted(hidden_size=32, memory="stream").predict(seen())[1]),
        ConditioningError,
        says("state is another model's", "layer0", "pass None at the first step"),
    ),
    "a state of another mixer": (
        lambda m: m.predict(seen(), fitted(mixer="attention", memory="stream").predict(seen())[1]),
        ConditioningError,
        says("state is another model's", "pass None at the first step"),
    ),
    "a state of another window": (
        lambda m: m.predict(seen(), fitted(context_length=7).predict(seen())[1]),
        ConditioningError,
        says("(7, 16), and this model's (5, 16)"),
    ),
    "episode starts of other environments": (
        lambda m: m.predict(seen(), None, np.ones(3, bool)),
        ConditioningError,
        says("shape (3,), and 2 observations came", "np.ones(2, dtype=bool)"),
    ),
    "deterministic in the place of episode_start": (
        lambda m: m.predict(seen(), None, True),
        ConditioningError,
        says("episode_start=True", "deterministic=True", "episode_start=np.full(2, True)"),
    ),
    "an observation that is not finite": (
        lambda m: m.predict(seen(observation=np.array([[0.0, 1.0], [0.0, np.nan]]))),
        SpaceError,
        says("environment 1 has nan at (1,)", "np.nan_to_num"),
    ),
    "an infinite observation, with rewards": (
        lambda m: m.as_stateful_wrapper(1.0).predict(np.array([np.inf, 0.0]), 0.0),
        SpaceError,
        says("environment 0 has inf at (0,)"),
    ),
}


@pytest.mark.parametrize("case", ACTING)
def test_acting(case: str) -> None:
    call, error, message = ACTING[case]
    with pytest.raises(error, match=message):
        call(fitted())


def test_a_memory_that_the_time_encoding_rules_out() -> None:
    stream = fitted(memory="stream").policy.initial_state(2)
    with pytest.raises(ConfigError, match='memory="window"'):
        fitted(time_encoding="global").predict(seen(), stream)


TARGETS: dict[str, Any] = {
    "nan": float("nan"),
    "infinite": float("inf"),
    "text": "high",
    "none": None,
    "of more environments": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets(case: str) -> None:
    target = TARGETS[case]
    for env in (make_env(), DummyVecEnv([make_env] * 2), make_vec_env(make_env, 2)):
        with pytest.raises(ConditioningError, match=r"target_return.*: give"):
            ReturnToGo(env, target)
    with pytest.raises(ConditioningError, match=r"target_return.*: give"):
        fitted().as_stateful_wrapper(target)
    if target is not None:
        with pytest.raises(ConfigError, match=r"target_return=.*give a finite number"):
            fitted().target_return = target
    if case != "of more environments":
        with pytest.raises(ConfigError, match=r"target_returns=.*give one finite number"):
            fitted().evaluate(target if target is not None else [NO_TARGET], 1, env=make_env)


def test_what_cannot_be_wrapped() -> None:
    wrong: Any
    for wrong in (None, "CartPole-v1", make_env):
        with pytest.raises(SpaceError, match=r"give a gymnasium\.Env"):
            ReturnToGo(wrong, 1.0)


# --- Environments ------------------------------------------------------------------------------


def scaled(venv: Any) -> Any:
    return VecNormalize(venv)


SCALED = says('VecNormalize(env, norm_obs_keys=["observation"])', "ReturnToGo(VecNormalize(env), ")


@pytest.mark.parametrize("inside", [True, False])
def test_a_scaled_return_to_go(inside: bool) -> None:
    venv = DummyVecEnv([make_conditioned]) if inside else ReturnToGo(make_vec_env(make_env), TARGET)
    model = tiny_model().fit(DATA, 1)
    before = model.get_env()
    with pytest.raises(ConditioningError, match=SCALED):
        model.set_env(scaled(venv))
    assert model.get_env() is before
    with pytest.raises(ConditioningError, match=SCALED):
        model.fit(n_steps=1, eval_env=scaled(venv), eval_freq=1)
    with pytest.raises(ConditioningError, match=SCALED):
        model.fit(n_steps=1, callback=EvalCallback(scaled(venv), eval_freq=1))
    model.set_env(VecNormalize(venv, norm_obs_keys=["observation"]))
    model.set_env(VecNormalize(venv, norm_obs=False))


def same(env: Any) -> Any:
    return env


def test_environments_of_other_spaces(tmp_path: Path) -> None:
    model = tiny_model().fit(DATA, 1)
    model.save(tmp_path / "model")
    wrong: dict[str, Any] = {
        r"observations of shape \(4,\).*\(2,\)": gym.make("CartPole-v1"),
        r"actions Discrete\(5\).*Box": make_env(actions="discrete"),
    }
    for message, env in wrong.items():
        for given in (env, ReturnToGo(env, 1.0), DummyVecEnv([partial(same, env)])):
            with pytest.raises(SpaceError, match=message):
                DecisionMamba.load(tmp_path / "model", env=given)
            with pytest.raises(SpaceError, match=message):
                model.set_env(given)
    with pytest.raises(SpaceError, match="environment and dataset of one task"):
        model.evaluate(1.0, 1, env="CartPole-v1", n_workers=0)


def test_evaluating_in_a_vec_env_that_cannot_be_made_again() -> None:
    with pytest.raises(UnknownTaskError, match=r"evaluate_policy\(model, ReturnToGo\(venv, target"):
        fitted().evaluate(1.0, 1, env=DummyVecEnv([make_env]))
    with pytest.raises(UnknownTaskError, match=r"env=lambda: PickledEnv\(\.\.\.\)"):
        fitted().evaluate(1.0, 1, env=make_env())


def test_a_callback_without_return_to_go() -> None:
    callback = EvalCallback(Monitor(make_env()), eval_freq=1)
    line = says("EvalCallback(ReturnToGo(env, target_return), ...)", "fit(eval_env=env, eval_freq")
    with pytest.raises(ConditioningError, match=line):
        tiny_model(make_env).fit(DATA, 1, callback=callback)


def test_files_of_other_algorithms(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(ModelFileError, match="Stable-Baselines3's own algorithms"):
        DecisionMamba.load(tmp_path / "ppo")
    with pytest.raises(ModelFileError, match=r"no model file at .*nowhere \(nor .*nowhere\.zip\)"):
        DecisionMamba.load(tmp_path / "nowhere")


def test_unknown_names() -> None:
    with pytest.raises(UnknownTaskError, match="hopper-medium-v2"):
        DecisionMamba("hoper-medium-v2")
    model = tiny_model().fit(DATA, 1)
    with pytest.raises(UnknownTaskError, match=r"env=, or model\.set_env"):
        model.evaluate(1.0, 1)
    with pytest.raises(UnknownTaskError, match="Nowhere-v0"):
        model.set_env("Nowhere-v0")
