"""What Stable-Baselines3's own tests expect of an algorithm: the rows of the page's table."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import (
    ConditioningError,
    ConfigError,
    DecisionMambaError,
    ModelFileError,
    NotFittedError,
    ParametersError,
    SpaceError,
)
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.tasks import Task
from tests.models import Memory, Recorder, differences, everything_in, tiny_model, use_memory
from tests.sb3.setting import TARGET, PickledEnv, fitted, make_conditioned, make_env
from tests.toys import random_trajectories

DATA = random_trajectories(observation_shape=(2,))


def reload(model: DecisionMamba, how: dict[str, Any] | None = None, **load: Any) -> DecisionMamba:
    buffer = io.BytesIO()
    model.save(buffer, **(how or {}))
    buffer.seek(0)
    return DecisionMamba.load(buffer, **load)


def refused(
    calls: dict[str, tuple[type[DecisionMambaError], str | None, Callable[[], Any]]],
) -> list[str]:
    """Name the calls that raise something else than the error with the setting."""
    wrong = []
    for name, (kind, setting, call) in calls.items():
        try:
            call()
        except kind as error:
            if error.setting != setting:
                wrong.append(f"{name}: setting {error.setting}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        else:
            wrong.append(f"{name}: nothing raised")
    return wrong


# --- Callbacks and logs --------------------------------------------------------------------------


def test_a_callback_writes_the_log_in_between() -> None:
    model = tiny_model()
    memory = use_memory(model)
    recorder = Recorder()
    model.fit(DATA, 7, callback=[recorder, LogEveryNTimesteps(2)], log_interval=3)
    assert [step for step, _ in memory.rows] == [2, 3, 4, 6, 7]  # and nothing twice
    for (_, row), (first, last) in zip(
        memory.rows, ((0, 2), (2, 3), (3, 4), (4, 6), (6, 7)), strict=True
    ):
        assert row["train/loss"] == pytest.approx(np.mean(recorder.losses[first:last]))
        assert row["train/n_updates"] == row["time/total_timesteps"] == last
    model.dump_logs()
    assert memory.rows[-1][0] == 7
    assert "train/loss" not in memory.rows[-1][1]
    with pytest.raises(NotFittedError):
        tiny_model().dump_logs()
    with pytest.raises(NotFittedError):
        reload(model).dump_logs()


def test_frames_per_second_are_updates_of_this_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().fit(DATA, 2)
    memory, now = use_memory(model), [10.0]
    monkeypatch.setattr(time, "time_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def tick(_: Any, __: Any) -> bool:
        now[0] += 0.25
        return True

    model.fit(n_steps=6, callback=tick, log_interval=6)
    assert memory.rows[-1][1]["time/fps"] == memory.rows[-1][1]["time/updates_per_second"] == 4
    assert memory.rows[-1][1]["time/time_elapsed"] == 1
    model.fit(n_steps=2, log_interval=1)  # a clock that stands still
    assert np.isfinite(memory.rows[-1][1]["time/updates_per_second"])


def test_callbacks_that_need_episodes_are_refused() -> None:
    def read(key: str) -> Callable[[Any, Any], bool]:
        return lambda local, _: local[key] is not None

    model = tiny_model(PickledEnv)
    stops = StopTrainingOnMaxEpisodes(3)
    callbacks: dict[str, Any] = {
        "alone": stops,
        "nested": EveryNTimesteps(2, stops),
        "dones": read("dones"),
        "infos": [read("infos")],
    }
    assert (
        refused(
            {
                name: (ConfigError, "callback", lambda each=each: model.fit(DATA, 2, callback=each))  # type: ignore[misc]
                for name, each in callbacks.items()
            }
        )
        == []
    )

    class Rollouts(Recorder):
        def _on_rollout_start(self) -> None:
            raise AssertionError

        _on_rollout_end = _on_rollout_start

    model.fit(DATA, 1, callback=Rollouts())
    with pytest.raises(KeyError, match="mine"):
        model.fit(DATA, 1, callback=read("mine"))


def test_an_evaluation_brings_its_own_environment() -> None:
    gone = tiny_model(Task(name="gone", env_id="Gone-v0"))
    env = ReturnToGo(Monitor(make_env()), TARGET)
    callback = EvalCallback(env, eval_freq=1, n_eval_episodes=1, verbose=0)
    gone.fit(DATA, 2, callback=callback)
    assert callback.last_mean_reward != -np.inf
    assert gone.get_env() is callback.eval_env


def test_the_size_of_the_statistics_window() -> None:
    model: Any = reload(tiny_model(stats_window_size=42).fit(DATA, 1)).fit(DATA, 1)
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == 42
    with pytest.raises(ConfigError) as raised:
        tiny_model(stats_window_size=0)
    assert raised.value.setting == "stats_window_size"


def test_the_learning_rate_as_a_function_of_what_remains() -> None:
    model, recorder = tiny_model(lr_schedule="cosine", warmup_updates=3), Recorder()
    before = [model.lr_schedule(1.0 - n / 12) for n in range(12)]
    model.fit(DATA, 12, callback=recorder)
    assert recorder.learning_rates == pytest.approx(before)
    assert before == [model.lr_schedule(1.0 - n / 12) for n in range(12)]
    model.lr_schedule = lambda remaining: 1e-3 * remaining
    model.learn(4, recorder)
    assert recorder.learning_rates[12:] == [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]
    assert reload(model).lr_schedule(1.0) == model.config.learning_rate / 3


# --- Before fit ----------------------------------------------------------------------------------


def test_before_fit() -> None:
    venv = VecNormalize(make_vec_env(make_env, 3), training=False)
    for model in (tiny_model(venv), tiny_model(None, env=venv), DecisionMamba(None, venv)):
        assert model.get_vec_normalize_env() is venv
        assert model.n_envs == 3
        space: Any = model.observation_space
        assert space["observation"] == venv.observation_space
        assert space["return_to_go"].shape == (1,)
        assert model.action_space == venv.action_space
        assert not hasattr(model, "policy")
        with pytest.raises(NotFittedError):
            _ = model.policy
    model.set_env("CartPole-v1")
    assert (model.action_space, model.n_envs) == (spaces.Discrete(2), 1)
    assert model.get_vec_normalize_env() is None
    unknown = tiny_model(Task(name="gone", env_id="Gone-v0"))
    for nowhere in (tiny_model(), unknown):
        for name in ("policy", "observation_space", "action_space"):
            with pytest.raises(NotFittedError):
                getattr(nowhere, name)
    with pytest.raises(AttributeError, match="replay_buffer"):
        _ = getattr(unknown, "replay_buffer")  # noqa: B009  # which has none


def test_a_policy_is_no_task() -> None:
    env = make_env()
    calls: dict[str, Any] = {
        name: (ConfigError, "task", lambda task=task: DecisionMamba(task, env))
        for name, task in (
            *((name, name) for name in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")),
            ("class", DecisionMambaPolicy),
        )
    }
    assert refused(calls) == []


# --- Acting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_actions": 5}, {"shape": (3, 36, 40), "normalize_observations": False}],
    ids=str,
)
def test_a_policy_acts_on_tensors_as_on_arrays(settings: dict[str, Any]) -> None:
    model = fitted(**settings)
    policy: Any = model.policy
    assert policy.observation_space == model.observation_space
    space, rng = policy.flat_space, np.random.default_rng(0)
    many = {
        "observation": rng.integers(0, 200, (4, *space.shape)).astype(space.dtype),
        "return_to_go": rng.normal(size=(4, 1)).astype(np.float32),
    }
    one = {name: each[0] for name, each in many.items()}
    shown: list[tuple[dict[str, Any], bool]] = [(many, True), (one, False)]
    if len(space.shape) == 3:
        shown.append(({**many, "observation": np.moveaxis(many["observation"], 1, -1)}, True))
    for observation, is_batch in shown:
        assert policy.is_vectorized_observation(observation) is is_batch
        tensors, was_batch = policy.obs_to_tensor(observation)
        assert was_batch is is_batch
        expected = model.predict(observation)[0]
        for act in (policy, policy._predict):
            actions = act(tensors, deterministic=True)
            found = actions.numpy() if is_batch else actions[0].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_resets_tuple_is_named() -> None:
    model, env = fitted(), make_conditioned()
    with pytest.raises(ConditioningError) as raised:
        model.predict(env.reset())
    assert raised.value.setting == "observation"
    assert "observation, info = env.reset()" in str(raised.value)
    assert "ReturnToGo" not in str(raised.value)
    model.predict(env.reset()[0])
    with pytest.raises(SpaceError, match="the first"):
        model.as_stateful_wrapper(1.0).predict(make_env().reset(), 0.0)  # type: ignore[arg-type]


# --- Parameters and files ------------------------------------------------------------------------


def compile_whole(model: Any) -> None:
    model.policy = torch.compile(model.policy, backend="eager")


def compile_inside(model: Any) -> None:
    model.policy.model = torch.compile(model.policy.model, backend="eager")


@pytest.mark.parametrize("compile_it", [compile_whole, compile_inside])
def test_a_compiled_policy_is_saved_as_any_other(compile_it: Any, tmp_path: Path) -> None:
    plain, model = (tiny_model(PickledEnv).fit(DATA, 2) for _ in range(2))
    compile_it(model)
    loaded = reload(model)
    assert differences(everything_in(plain), everything_in(loaded)) == []
    names = model.get_parameters()["policy"]
    assert list(names) == list(plain.policy.state_dict())
    model.policy.save(tmp_path / "policy.pth")
    DecisionMambaPolicy.load(tmp_path / "policy.pth")
    other = tiny_model(seed=9).fit(DATA, 1)
    for give in (other.get_parameters(), other.get_parameters()):
        model.set_parameters(give)
    buffer = io.BytesIO()
    other.save(buffer)
    plain.set_parameters(model.get_parameters())
    model.set_parameters(io.BytesIO(buffer.getvalue()))
    for each in (plain, reload(model)):
        assert differences(everything_in(other), everything_in(each)) == ["counters"]
    shown = make_conditioned().reset()[0]
    np.testing.assert_array_equal(model.predict(shown)[0], other.predict(shown)[0])


def test_parameters_that_do_not_fit() -> None:
    model = fitted()
    before = everything_in(model)

    def lacks() -> dict[str, Any]:
        given = model.get_parameters()
        given["policy"] = dict(given["policy"])
        del given["policy"]["model.head.projection.weight"]
        return given

    name = "model.head.projection.weight"
    wrong_moments = {**model.get_parameters(), "policy.optimizer": {"state": {}}}
    assert (
        refused(
            {
                "lacks": (ParametersError, name, lambda: model.set_parameters(lacks())),
                "moments": (
                    ParametersError,
                    "policy.optimizer",
                    lambda: model.set_parameters(wrong_moments),
                ),
                "nothing": (ConfigError, "load_path_or_dict", lambda: model.set_parameters({})),
            }
        )
        == []
    )
    assert issubclass(ParametersError, (RuntimeError, ModelFileError))
    assert differences(before, everything_in(model)) == []
    model.set_parameters(lacks(), exact_match=False)


def test_what_is_kept_left_out_and_replaced() -> None:
    settings: dict[str, Any] = {"verbose": 2, "tensorboard_log": "logs"}
    model: Any = tiny_model(PickledEnv, **settings)
    model.set_logger(Logger(None, [Memory()]))
    model.fit(DATA, 2)
    model.target_return = TARGET

    def state(each: Any) -> list[Any]:
        counters = each.num_timesteps, each._n_updates
        return [each.verbose, each.tensorboard_log, each._context.chosen_target_return, *counters]

    kept = [2, "logs", TARGET, 2, 2]
    names = ["verbose", "tensorboard_log", "target_return", "num_timesteps", "_n_updates"]
    for include in ([], ["verbose"], names, ["policy", "learning_rate"]):
        defaults = [0, None, None, 0, 0]
        for exclude in ([], *([name] for name in names), names, ["env", "replay_buffer"]):
            found = state(reload(model, {"exclude": exclude, "include": include}))
            left_out = set(exclude) - set(include)
            assert found == [
                default if name in left_out else value
                for name, value, default in zip(names, kept, defaults, strict=True)
            ], (exclude, include)
    light = reload(model, {"exclude": "policy.optimizer"})
    assert light._updater is not None
    assert light._updater.state() == {}
    assert state(reload(model, verbose=0, tensorboard_log="other"))[:2] == [0, "other"]

    def save(**how: Any) -> tuple[Any, ...]:
        return (ConfigError, next(iter(how)), lambda: reload(model, how))

    calls: Any = {str(name): save(exclude=[name]) for name in ("policy", "seed", "verbos", 3)}
    calls |= {name: save(include=[name]) for name in ("env", "replay_buffer", "_logger")}
    assert refused(calls) == []


def test_custom_objects() -> None:
    model = fitted()
    replaced: dict[str, Any] = {
        "verbose": 0,
        "seed": 11,
        "tensorboard_log": "logs",
        "target_return": 3.5,
        "num_timesteps": 7,
        "learning_rate": 0.25,
    }
    loaded: Any = reload(model, custom_objects=replaced)
    assert {name: getattr(loaded, name) for name in replaced} == replaced
    assert loaded.config.learning_rate == 0.25
    assert reload(model, custom_objects={"memory": "stream"}).policy.memory == "stream"
    assert reload(model, custom_objects={"memory": "stream"}, memory="window").config == (
        model.config
    )
    # What RL Zoo passes for every algorithm: nothing is learnt any more.
    zoo: dict[str, Any] = {name: lambda _: 0.0 for name in ("lr_schedule", "clip_range")}
    frozen: Any = reload(model, custom_objects={"learning_rate": 0.0, **zoo})
    assert (frozen.learning_rate, frozen.lr_schedule(0.5)) == (0.0, 0.0)
    recorder = Recorder()
    frozen.fit(DATA, 2, callback=recorder)
    assert recorder.learning_rates == [0.0, 0.0]
    halved: Any = reload(model, custom_objects={"lr_schedule": lambda left: 0.5 * left})
    assert halved.lr_schedule(1.0) == 0.5
    spaces_of = {"observation_space": model.observation_space, "action_space": model.action_space}
    reload(model, custom_objects=spaces_of)
    wrong: Any = {
        "memory": (ConfigError, "memory", {"memory": "forever"}),
        "network": (ConfigError, "hidden_size", {"hidden_size": 32}),
        "seed": (ConfigError, "seed", {"seed": -1}),
        "action": (SpaceError, "action_space", {"action_space": spaces.Discrete(3)}),
        "observation": (
            SpaceError,
            "observation_space",
            {"observation_space": gym.spaces.Box(0, 1, (9,))},
        ),
    }
    calls: Any = {
        name: (kind, setting, lambda given=given: reload(model, custom_objects=given))
        for name, (kind, setting, given) in wrong.items()
    }
    assert refused(calls) == []
