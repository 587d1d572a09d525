"""Every wrong use raises a typed error that names the setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConditioningError, ConfigError, DecisionMambaError, SpaceError
from tests.models import tiny_model
from tests.sb3.setting import TARGET, fitted, make_conditioned, make_env
from tests.toys import random_trajectories

pytestmark = pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a")

DATA = random_trajectories(observation_shape=(2,))


def seen(n: int = 2, **changes: Any) -> Any:
    shown = {"observation": np.zeros((n, 2), np.float32), "return_to_go": np.ones((n, 1))}
    return {**shown, **changes}


def state_of(**settings: Any) -> Any:
    return fitted(**settings).predict(seen())[1]


ACTING: list[tuple[Any, type[DecisionMambaError], str]] = [
    (lambda m: evaluate_policy(m, make_env(), 1), ConditioningError, "observation"),
    (lambda m: evaluate_policy(m, DummyVecEnv([make_env]), 1), ConditioningError, "observation"),
    (lambda m: m.predict(np.zeros(2)), ConditioningError, "observation"),
    (lambda m: m.predict({"return_to_go": np.ones(1)}), ConditioningError, "observation"),
    (lambda m: m.predict({"observation": np.ones(2)}), ConditioningError, "observation"),
    (lambda m: m.predict(seen(observation=np.zeros((2, 3)))), SpaceError, "observation"),
    (lambda m: m.predict(seen(observation=np.full((2, 2), np.nan))), SpaceError, "observation"),
    (
        lambda m: m.as_stateful_wrapper(1.0).predict(np.array([np.inf, 0.0]), 0.0),
        SpaceError,
        "observation",
    ),
    (
        lambda m: m.predict(seen(return_to_go=np.array([1.0, np.nan]))),
        ConditioningError,
        "return_to_go",
    ),
    (lambda m: m.predict(seen(return_to_go=np.ones(3))), ConditioningError, "return_to_go"),
    (lambda m: m.predict(seen(), m.predict(seen(3))[1]), ConditioningError, "state"),
    (lambda m: m.predict(seen(), (np.zeros(2), np.zeros(2))), ConditioningError, "state"),
    (
        lambda m: m.predict(seen(), state_of(hidden_size=32, memory="stream")),
        ConditioningError,
        "state",
    ),
    (
        lambda m: m.predict(seen(), state_of(mixer="attention", memory="stream")),
        ConditioningError,
        "state",
    ),
    (lambda m: m.predict(seen(), state_of(context_length=7)), ConditioningError, "state"),
    (lambda m: m.predict(seen(), None, np.ones(3, bool)), ConditioningError, "episode_start"),
    (lambda m: m.predict(seen(), None, True), ConditioningError, "episode_start"),
]


def test_acting() -> None:
    for call, error, setting in ACTING:
        with pytest.raises(error) as caught:
            call(fitted())
        assert caught.value.setting == setting
    with pytest.raises(ConditioningError) as caught:
        fitted().predict(np.zeros(2))
    for line in ("env = ReturnToGo(env, target_return)", "model.get_env()", "as_stateful_wrapper("):
        assert line in str(caught.value)


def test_a_memory_that_the_time_encoding_rules_out() -> None:
    stream = fitted(memory="stream").policy.initial_state(2)
    with pytest.raises(ConfigError, match='memory="window"'):
        fitted(time_encoding="global").predict(seen(), stream)


@pytest.mark.parametrize("inside", [True, False])
def test_a_scaled_return_to_go(inside: bool) -> None:
    venv = DummyVecEnv([make_conditioned]) if inside else ReturnToGo(make_vec_env(make_env), TARGET)
    model = tiny_model().fit(DATA, 1)
    before = model.get_env()
    calls: list[Any] = [
        lambda env: model.set_env(env),
        lambda env: model.fit(n_steps=1, eval_env=env, eval_freq=1),
        lambda env: model.fit(n_steps=1, callback=EvalCallback(env, eval_freq=1)),
    ]
    for call in calls:
        with pytest.raises(ConditioningError) as caught:
            call(VecNormalize(venv))
        assert caught.value.setting == "norm_obs_keys"
    assert model.get_env() is before
    model.set_env(VecNormalize(venv, norm_obs_keys=["observation"]))
    model.set_env(VecNormalize(venv, norm_obs=False))
