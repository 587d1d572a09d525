"""Stable-Baselines3's tools around a model: callbacks, parameters, files, logs, videos."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, ModelFileError
from sb3_dmamba.evaluation import SeedEpisodes
from sb3_dmamba.networks import DecisionMambaPolicy
from tests.models import global_generators, tiny_model
from tests.sb3.setting import TARGET, PickledEnv, by_hand, fitted, make_conditioned, make_env
from tests.toys import random_trajectories

DATA = random_trajectories(observation_shape=(2,))


def returns_of(model: Any, venv: Any, n_episodes: int) -> list[float]:
    returns, _ = evaluate_policy(model, venv, n_episodes, return_episode_rewards=True)
    assert isinstance(returns, list)
    return returns


def test_the_best_model_scores_what_the_callback_saw(tmp_path: Path) -> None:
    env = ReturnToGo(SeedEpisodes(Monitor(make_env()), 4), TARGET)
    stop = StopTrainingOnNoModelImprovement(50)
    callback = EvalCallback(
        env, callback_after_eval=stop, eval_freq=2, n_eval_episodes=3, verbose=0,
        best_model_save_path=str(tmp_path),
    )  # fmt: skip
    tiny_model(PickledEnv, learning_rate=0.05).fit(DATA, 6, callback=callback)
    assert callback.evaluations_timesteps == []  # logged only where log_path says
    best = DecisionMamba.load(tmp_path / "best_model.zip", env=PickledEnv)
    first = {2: 4, 4: 7, 6: 10}[best.num_timesteps]  # of the three episodes at that time
    played = [total for total, _ in by_hand(best, range(first, first + 3))]
    assert callback.best_mean_reward == pytest.approx(np.mean(played), rel=1e-5)


def first_observation() -> Any:
    return make_conditioned().reset(seed=4)[0]


def test_normalisation_is_synchronised() -> None:
    def normalized(**options: Any) -> Any:
        return VecNormalize(DummyVecEnv([lambda: Monitor(make_env())]), training=False, **options)

    venv, eval_venv = normalized(), normalized()
    venv.obs_rms.mean = np.array([0.5, -0.5])
    model = tiny_model(venv)
    callback = EvalCallback(ReturnToGo(eval_venv, TARGET), eval_freq=1, verbose=0)
    model.fit(DATA, 1, callback=callback)
    assert model.get_vec_normalize_env() is venv
    np.testing.assert_array_equal(eval_venv.obs_rms.mean, [0.5, -0.5])
    model.set_env(make_env)
    model.get_env()
    assert model.get_vec_normalize_env() is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_actions": 5, "mixer": "attention"},
        {"shape": (3, 36, 40), "normalize_observations": False},
    ],
    ids=str,
)
def test_a_policy_in_a_file_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    model = fitted(**settings)
    before = global_generators()
    model.policy.save(str(tmp_path / "policy.pth"))
    policy = DecisionMambaPolicy.load(tmp_path / "policy.pth", device="cpu")
    assert global_generators() == before
    assert policy.config == model.config
    assert policy.flat_space == model.policy.flat_space
    assert policy.action_space == model.action_space
    rng, shape = np.random.default_rng(0), model.policy.flat_space.shape
    for memory in ("window", "stream"):
        states: list[Any] = [each.initial_state(2, memory) for each in (model.policy, policy)]
        for _ in range(3):
            observation = rng.integers(0, 200, (2, *shape))
            shown = {
                "observation": observation.astype(model.policy.flat_space.dtype),
                "return_to_go": rng.normal(size=(2, 1)),
            }
            expected, states[0] = model.policy.predict(shown, states[0])
            found, states[1] = policy.predict(shown, states[1])
            np.testing.assert_array_equal(found, expected)


class Poison:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("poisoned"),))


def test_policy_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted().save("model.zip")
    fitted().policy.save("policy.pth")
    whole = Path("policy.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, "other.pth")
    torch.save({"data": Poison()}, "poison.pth")
    Path("poison.pickle").write_bytes(pickle.dumps(Poison()))
    for name in ("model.zip", "cut.pth", "other.pth", "poison.pth", "poison.pickle"):
        with pytest.raises(ModelFileError, match=r"DecisionMamba\.load\(path\)"):
            DecisionMambaPolicy.load(name)
    assert not Path("poisoned").exists()
    with pytest.raises(ModelFileError, match=r"no policy file at nowhere\.pth"):
        DecisionMambaPolicy.load("nowhere.pth")


def test_load_takes_what_stable_baselines3s_load_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fitted()
    model.save(tmp_path / "model")
    loaded = DecisionMamba.load(
        tmp_path / "model", None, "cpu", {"learning_rate": 0.0}, True, True, verbose=1, seed=8
    )
    assert "Stable-Baselines3" in capsys.readouterr().out
    assert (loaded.seed, loaded.verbose, loaded.learning_rate) == (8, 1, 0.0)
    loaded = DecisionMamba.load(
        tmp_path / "model", env=make_env, target_return=7.5, memory="stream", learning_rate=0.5
    )
    assert loaded.target_return == 7.5
    assert (loaded.config.memory, loaded.policy.memory, loaded.learning_rate) == (
        *("stream", "stream"),
        0.5,
    )
    venv: Any = loaded.get_env()
    venv.seed(4)
    expected = by_hand(model, [4, 5], target=7.5, memory="stream")
    found = returns_of(loaded, venv, 2)
    np.testing.assert_allclose(found, [total for total, _ in expected], rtol=1e-5)
    for settings in ({"hidden_size": 32}, {"mixer": "attention"}, {"n_layers": 1}):
        with pytest.raises(ConfigError, match="another network"):
            DecisionMamba.load(tmp_path / "model", **settings)
    with pytest.raises(ConfigError, match="buffer_size"):
        DecisionMamba.load(tmp_path / "model", buffer_size=1)


def test_tensorboard(tmp_path: Path) -> None:
    EventAccumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the tensorboard extra is missing",
    ).EventAccumulator

    model = tiny_model(PickledEnv, tensorboard_log=str(tmp_path))
    model.fit(DATA, 4, eval_freq=2, n_eval_episodes=1, log_interval=1, tb_log_name="run")
    model.learn(2, tb_log_name="run", log_interval=1)
    model.fit(n_steps=2, tb_log_name="run", log_interval=1)  # goes on: the same run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_1", "run_2"]
    events = EventAccumulator(str(tmp_path / "run_1"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [2, 4]
    assert {"train/grad_norm", "train/learning_rate"} <= set(events.Tags()["scalars"])
    events = EventAccumulator(str(tmp_path / "run_2"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
