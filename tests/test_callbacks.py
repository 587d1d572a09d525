"""Stable-Baselines3's callbacks drive and follow the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConditioningError, ConfigError, SpaceError, UnknownTaskError
from sb3_dmamba.tasks import Task
from tests.models import Recorder, differences, everything_in, tiny_model, use_memory
from tests.toys import ChoiceEnv, choice_trajectories, random_trajectories

DATA = choice_trajectories(50)


def conditioned(target: float = 5.0) -> Any:
    return ReturnToGo(Monitor(ChoiceEnv()), target)


class NeedsEnvironment(BaseCallback):
    def _on_step(self) -> bool:
        return self.training_env.num_envs > 0


def test_one_step_an_update() -> None:
    recorder = Recorder()
    model = tiny_model().fit(DATA, 5, callback=recorder)
    assert recorder.seen == [1, 2, 3, 4, 5]
    assert recorder.n_calls == 5
    assert (recorder.starts, recorder.ends) == (1, 1)
    assert recorder.model is model
    assert recorder.locals["total_timesteps"] == 5
    model.fit(n_steps=2, callback=recorder)
    assert recorder.seen[5:] == [6, 7]
    assert recorder.locals["total_timesteps"] == 7


def test_every_form_of_callback() -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    calls = []

    def function(local: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(local["model"].num_timesteps)
        return True

    tiny_model().fit(DATA, 3, callback=[first, CallbackList([second]), function])  # type: ignore[list-item]
    tiny_model().fit(DATA, 3, callback=CallbackList([third]))
    assert first.seen == second.seen == third.seen == calls == [1, 2, 3]
    rare = Recorder()
    tiny_model().fit(DATA, 7, callback=EveryNTimesteps(3, rare))
    assert rare.seen == [3, 6]
    tiny_model().fit(DATA, 3, callback=function)
    assert calls == [1, 2, 3] * 2


def test_one_that_fails_leaves_a_model_that_goes_on() -> None:
    def fail(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["model"].num_timesteps == 4:
            raise OSError("disk gone")
        return True

    model = tiny_model()
    with pytest.raises(OSError, match="disk gone"):
        model.fit(DATA, 9, callback=fail)
    assert differences(everything_in(model.fit()), everything_in(tiny_model().fit(DATA, 9))) == []


def test_evaluation_best_model_and_log(tmp_path: Path) -> None:
    callback = EvalCallback(
        conditioned(),
        eval_freq=2,
        n_eval_episodes=3,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path),
        verbose=0,
    )
    model = tiny_model(ChoiceEnv)
    memory = use_memory(model)
    model.fit(DATA, 5, callback=callback)
    with np.load(tmp_path / "evaluations.npz") as log:
        assert log["timesteps"].tolist() == [2, 4]
        assert log["results"].shape == (2, 3)
        assert callback.best_mean_reward == log["results"].mean(axis=1).max()
    assert [row["eval/mean_reward"] for _, row in memory.rows if "eval/mean_reward" in row]
    best = DecisionMamba.load(tmp_path / "best" / "best_model")
    assert best.num_timesteps in (2, 4)
    assert best.evaluate(5.0, 1, env=ChoiceEnv, n_workers=0).results[0].lengths.tolist() == [10]


@pytest.mark.parametrize(
    "env",
    [None, ChoiceEnv, ChoiceEnv(), conditioned(3.0), make_vec_env(ChoiceEnv, 2)],
    ids=["own", "function", "env", "conditioned", "vectorised"],
)
def test_fit_evaluates_where_it_is_told_to(env: Any) -> None:
    model, recorder = tiny_model(ChoiceEnv() if env is None else None), Recorder()
    memory = use_memory(model)
    model.fit(DATA, 4, eval_env=env, eval_freq=2, n_eval_episodes=2, callback=recorder)
    assert [step for step, row in memory.rows if "eval/mean_reward" in row] == [2, 4]
    assert recorder.seen == [1, 2, 3, 4]


@pytest.mark.parametrize("nested", [False, True])
def test_an_evaluation_without_return_to_go_is_refused_at_once(nested: bool) -> None:
    callback: Any = EvalCallback(Monitor(ChoiceEnv()), eval_freq=1)
    if nested:
        callback = CallbackList([EveryNTimesteps(3, callback)])
    model = tiny_model(ChoiceEnv)
    with pytest.raises(ConditioningError, match=r"EvalCallback.*ReturnToGo"):
        model.fit(DATA, 4, callback=callback)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("nested", [False, True])
def test_an_evaluations_environment_is_the_models_where_no_other_is_known(nested: bool) -> None:
    evaluation = EvalCallback(conditioned(), eval_freq=2, n_eval_episodes=1, verbose=0)
    callback: Any = CallbackList([EveryNTimesteps(1, evaluation)]) if nested else evaluation
    model = tiny_model().fit(DATA, 4, callback=[callback, NeedsEnvironment()])
    assert evaluation.last_mean_reward >= 0.0
    assert model.get_env() is evaluation.eval_env


@pytest.mark.parametrize("task", [None, Task(name="gone", env_id="Gone-v0")])
def test_learning_needs_no_environment(task: Any) -> None:
    env_id = "NotHere-v3" if task is None else None
    trajectories = dataclasses.replace(choice_trajectories(5), env_id=env_id)
    model = tiny_model(task).fit(trajectories, 2)
    assert model.num_timesteps == 2
    with pytest.raises(UnknownTaskError, match=r"NotHere-v3|Gone-v0"):
        model.get_env()
    with pytest.raises(UnknownTaskError, match=r"NotHere-v3|Gone-v0"):
        model.evaluate(5.0, 1, n_workers=0)
    with pytest.raises(UnknownTaskError):
        model.fit(n_steps=2, callback=NeedsEnvironment())
    model.set_env(ChoiceEnv)
    assert model.fit(n_steps=2, callback=NeedsEnvironment()).num_timesteps >= 4


@pytest.mark.filterwarnings("ignore:rich is experimental")  # tqdm's own
def test_stable_baselines3s_progress_bar() -> None:
    pytest.importorskip("tqdm", reason="Stable-Baselines3's bar needs tqdm")
    callback = ProgressBarCallback()
    tiny_model(ChoiceEnv).fit(DATA, 6, callback=callback)
    assert callback.pbar.n == callback.pbar.total == 6
    callback = ProgressBarCallback()
    with pytest.raises(UnknownTaskError, match=r"fit\(progress_bar=True\) needs none"):
        tiny_model().fit(DATA, 4, callback=callback)
    callback.pbar.close()


def test_environments_that_cannot_be() -> None:
    known = ChoiceEnv
    for error, task, options in (
        (UnknownTaskError, None, {"eval_freq": 2}),
        (SpaceError, None, {"eval_freq": 2, "eval_env": "CartPole-v1"}),
        (UnknownTaskError, None, {"eval_freq": 2, "eval_env": "No-v0"}),
        (UnknownTaskError, None, {"callback": NeedsEnvironment()}),
        (ConfigError, known, {"eval_freq": 1, "n_eval_episodes": 0}),
    ):
        with pytest.raises(error):
            tiny_model(task).fit(DATA, 4, **options)
    with pytest.raises(SpaceError):
        tiny_model(ChoiceEnv).fit(random_trajectories(), 2)

    def fail(*_: Any) -> bool:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):  # not taken for a missing environment
        tiny_model().fit(DATA, 1, callback=fail)
