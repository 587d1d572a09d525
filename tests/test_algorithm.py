"""The algorithm from outside: learning, continuing, acting, evaluating."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    NotFittedError,
    SpaceError,
    UnknownTaskError,
)
from sb3_dmamba.experiments.models import measure_return_importance
from sb3_dmamba.tasks import ReferenceScores, Task
from tests.models import (
    MIXERS,
    TINY,
    Recorder,
    differences,
    everything_in,
    global_generators,
    tiny_model,
)
from tests.toys import CHOICE_LENGTH, ChoiceEnv, choice_trajectories, random_trajectories

DATA = choice_trajectories(50)
FAST: dict[str, Any] = {
    "hidden_size": 16,
    "n_layers": 1,
    "context_length": CHOICE_LENGTH,
    "batch_size": 32,
    "return_scale": 10.0,
    "learning_rate": 1e-2,
    "warmup_updates": 10,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
}


def train(mixer: str, n_steps: int = 12, seed: int = 3, **fit: Any) -> DecisionMamba:
    return tiny_model(ChoiceEnv, mixer=mixer, seed=seed).fit(DATA, n_steps, **fit)


@pytest.mark.parametrize("mixer", MIXERS)
def test_one_seed_one_result(mixer: str) -> None:
    first = everything_in(train(mixer))
    torch.rand(1)
    assert differences(first, everything_in(train(mixer))) == []
    changed = differences(first, everything_in(train(mixer, seed=4)))
    assert {name for name in first if "exp_avg" in name} <= set(changed)


@pytest.mark.parametrize(("mixer", "stop_at"), [*((mixer, 7) for mixer in MIXERS), ("mamba", 1)])
def test_interrupted_and_continued_is_uninterrupted(
    mixer: str, stop_at: int, tmp_path: Path
) -> None:
    whole = Recorder()
    expected = everything_in(train(mixer, callback=whole))

    before, after = Recorder(stop_at), Recorder()
    model = train(mixer, callback=before)
    assert model.num_timesteps == stop_at
    model.save(tmp_path / "model")
    model.fit(callback=after)  # with no number, the rest of the run
    assert differences(expected, everything_in(model)) == []
    assert before.learning_rates + after.learning_rates == whole.learning_rates
    assert before.losses + after.losses == whole.losses
    assert after.seen == list(range(stop_at + 1, 13))

    loaded = DecisionMamba.load(tmp_path / "model").fit(DATA, 12 - stop_at)
    assert differences(expected, everything_in(loaded)) == []


def test_evaluations_in_between_change_nothing() -> None:
    expected = everything_in(train("mamba"))
    assert differences(expected, everything_in(train("mamba", eval_freq=4))) == []
    assert differences(expected, everything_in(train("mamba", log_interval=1))) == []
    model = train("mamba", callback=Recorder(stop_at=5), eval_freq=2, n_eval_episodes=1)
    model.evaluate(5.0, 2, deterministic=False, n_workers=0)
    assert differences(expected, everything_in(model.fit(eval_freq=5))) == []


CONTINUE = """
import random, sys
from sb3_dmamba import DecisionMamba
from tests.toys import ChoiceEnv, choice_trajectories
random.seed(0)
before = random.getstate()
for path in sys.argv[1:]:
    model = DecisionMamba.load(path).fit(choice_trajectories(50))
    model.save(path + ".continued.zip")
    model.evaluate(5.0, 2, env=ChoiceEnv, n_workers=0)
assert random.getstate() == before
"""


def test_a_checkpoint_continues_in_another_process(tmp_path: Path) -> None:
    expected, paths = {}, {}
    for mixer in MIXERS:
        callback = CheckpointCallback(5, str(tmp_path), name_prefix=mixer)
        expected[mixer] = everything_in(train(mixer, callback=callback))
        paths[mixer] = str(tmp_path / f"{mixer}_5_steps.zip")
        assert (tmp_path / f"{mixer}_10_steps.zip").is_file()
    command = [sys.executable, "-c", CONTINUE, *paths.values()]
    # Matrix products round differently on another number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=120)
    for mixer in MIXERS:
        model = DecisionMamba.load(f"{paths[mixer]}.continued.zip")
        assert differences(expected[mixer], everything_in(model)) == []


def test_fit_again_continues() -> None:
    recorder = Recorder()
    model = tiny_model().fit(DATA, 4)
    first = everything_in(model)
    model.fit(n_steps=3, callback=recorder)
    assert recorder.seen == [5, 6, 7]
    assert (model.num_timesteps, model._total_timesteps, model._n_updates) == (7, 7, 7)
    assert differences(first, everything_in(model)) != []
    for name, step in model.policy.optimizer.state_dict()["state"].items():
        assert int(step["step"]) == 7, name


def rates(model: DecisionMamba, n_steps: int, **arguments: Any) -> list[float]:
    recorder = Recorder()
    model.fit(DATA, n_steps, callback=recorder, **arguments)
    return recorder.learning_rates


def test_a_recipe_s_schedule_is_as_long_as_the_run() -> None:
    recipe = {"n_updates": 1000, "warmup_updates": 100, "lr_schedule": "cosine"}
    task = Task("toy", overrides={**recipe, "decay_updates": 500})
    asked = rates(tiny_model(task, n_updates=20, lr_schedule="cosine"), 20)
    assert max(asked) == DecisionMambaConfig().learning_rate
    assert asked[1] == max(asked)  # two updates of warm-up
    assert asked[9] > asked[10] == asked[19]  # ten of decay
    longer = tiny_model(task, n_updates=1000, lr_schedule="cosine")
    assert rates(longer, 20) == asked
    assert rates(longer, 20, reset_num_timesteps=True) == asked
    given = rates(tiny_model(task, n_updates=1000, warmup_updates=5), 20)
    assert given[4] == max(given) > given[3]


def test_a_run_that_goes_on_does_not_warm_up_again(tmp_path: Path) -> None:
    model = tiny_model(n_updates=1000, lr_schedule="constant")
    first = rates(model, 20)
    assert first[0] < first[1] == first[19]
    model.save(tmp_path / "model")
    assert set(rates(model, 40)) == {first[19]}
    assert set(rates(DecisionMamba.load(tmp_path / "model"), 40)) == {first[19]}
    slower = DecisionMamba.load(tmp_path / "model", warmup_updates=40)
    assert rates(slower, 12)[10] < first[19]


def test_every_batch_is_a_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn, sample = [], WindowSampler.sample

    def note(self: WindowSampler, update: int) -> Any:
        drawn.append(update)
        return sample(self, update)

    monkeypatch.setattr(WindowSampler, "sample", note)
    model = tiny_model().fit(DATA, 2).learn(2).fit(n_steps=1, reset_num_timesteps=True)
    model.save(tmp_path / "model")
    DecisionMamba.load(tmp_path / "model").fit(DATA, 2)
    assert drawn == [0, 1, 2, 3, 4, 5, 6]


def test_fit_on_other_data_keeps_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().fit(DATA, 2)
    mean = model.policy.state_dict()["model.embedding.observation_encoder.mean"].clone()
    assert mean.any()
    other = choice_trajectories(5, seed=1)
    monkeypatch.setattr("sb3_dmamba.algorithm.load_trajectories", {"toy": other}.__getitem__)
    model.task = Task(name="toy", dataset="toy")
    model._trajectories = None
    model.learn(2)  # on the task's dataset
    assert torch.equal(mean, model.policy.state_dict()["model.embedding.observation_encoder.mean"])
    assert model.dataset.returns.tolist() == other.returns.tolist()


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_does_what_is_asked_in_a_discrete_task(mixer: str) -> None:
    model = DecisionMamba(ChoiceEnv, seed=0, mixer=mixer, **FAST).fit(
        choice_trajectories(), 150 if mixer == "mamba" else 300
    )
    # Drawn: each action is 1 with the probability that keeps the return on course. Likeliest: 1
    # whenever at least half of the remaining steps must be 1, which comes out right as well,
    # because the return-to-go remembers what is still owed.
    for deterministic in (False, True):
        for memory in ("window", "stream"):
            report = model.evaluate(
                [2.0, 5.0, 9.0], 20, memory=memory, deterministic=deterministic, n_workers=0
            )
            for result in report.results:
                assert abs(result.mean - result.target_return) < 0.75, (deterministic, memory)


class DialEnv(gym.Env[np.ndarray, np.ndarray]):
    """Ten steps; pays 1 less the distance of the action to what is shown, in [0, 1]."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
        reward = max(0.0, 1.0 - abs(float(action[0]) - float(self.shown[0])))
        self.t += 1
        return self._show(), reward, False, self.t == 10, {}

    def _show(self) -> np.ndarray:
        self.shown = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.shown


def dial_trajectories(n_episodes: int = 200) -> Trajectories:
    """Each episode misses what is shown by one constant, from nothing to 1."""
    rng = np.random.default_rng(0)
    shown = rng.uniform(-1.0, 1.0, (10 * n_episodes, 1)).astype(np.float32)
    miss = np.repeat(rng.uniform(0.0, 1.0, n_episodes), 10).astype(np.float32)
    arrays = {
        "observations": shown,
        "actions": shown + miss[:, None],
        "rewards": 1.0 - miss,
        "terminals": np.zeros(10 * n_episodes, bool),
        "timeouts": np.arange(1, 10 * n_episodes + 1) % 10 == 0,
    }
    env = DialEnv()
    return load_trajectories(
        arrays, observation_space=env.observation_space, action_space=env.action_space
    )


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_it_does_what_is_asked_in_a_continuous_task(mixer: str, conditioning: str) -> None:
    settings = {"mixer": mixer, "conditioning": conditioning, **FAST}
    model = DecisionMamba(DialEnv, seed=0, **settings).fit(dial_trajectories(), 200)
    report = model.evaluate([3.0, 6.0, 9.0], 10, n_workers=0)
    for result in report.results:
        assert abs(result.mean - result.target_return) < 0.75


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
def test_the_importance_of_the_return(conditioning: str) -> None:
    data = dial_trajectories()
    model = DecisionMamba(DialEnv, seed=0, conditioning=conditioning, **FAST).fit(data, 200)
    trained = measure_return_importance(model, data)
    assert trained is not None
    assert trained > 5.0
    for name, weights in model.policy.named_parameters():
        if "return_encoder" in name or "modulation" in name:
            weights.data.zero_()  # of the return nothing is left
    assert measure_return_importance(model, data) == 1.0


@pytest.fixture(scope="module")
def model() -> DecisionMamba:
    return tiny_model(ChoiceEnv).fit(DATA, 12)


def test_the_report_says_what_was_done(model: DecisionMamba) -> None:
    report = model.evaluate([2.0, 5.0], 3, memory="stream", seed=7, n_workers=0)
    assert (report.dataset, report.mixer, report.memory) == (DATA.source, "mamba", "stream")
    assert (report.training_seed, report.eval_seed, report.n_updates) == (3, 7, 12)
    assert (report.task, report.weights, report.deterministic) == (None, "last", True)
    assert report.dataset_returns is not None
    assert report.dataset_returns.tolist() == DATA.returns.tolist()
    assert [result.target_return for result in report.results] == [2.0, 5.0]
    assert [result.n_episodes for result in report.results] == [3, 3]
    assert model.evaluate(2.0, 1, n_workers=0).eval_seed == 3  # the model's own
    assert model.evaluate(2.0, 1, n_workers=0).memory == "window"  # the config's
    text = str(report)
    for part in (DATA.source, "mamba", "memory stream", "12 updates", "training seed 3"):
        assert part in text


def test_targets_by_default(model: DecisionMamba) -> None:
    asked = [each.target_return for each in model.evaluate(n_episodes=1, n_workers=0).results]
    np.testing.assert_allclose(asked, np.quantile(DATA.returns, [0.5, 0.9, 1.0]), rtol=1e-3)
    task = Task(name="toy", target_returns=(4.0, 1.0))
    other = tiny_model(task, env=ChoiceEnv).fit(DATA, 1)
    report = other.evaluate(n_episodes=1, n_workers=0)
    assert [each.target_return for each in report.results] == [4.0, 1.0]
    assert report.task == "toy"


def test_actions_are_drawn_where_asked(model: DecisionMamba) -> None:
    likeliest = model.evaluate(5.0, 8, n_workers=0).results[0].returns
    drawn = model.evaluate(5.0, 8, deterministic=False, n_workers=0).results[0].returns
    again = model.evaluate(5.0, 8, deterministic=False, n_workers=0).results[0].returns
    assert len(set(drawn.tolist())) > 2
    assert drawn.tolist() == again.tolist() != likeliest.tolist()


def test_normalised_scores_come_with_the_tasks_environment() -> None:
    gym.register("Choice-v0", "tests.toys:ChoiceEnv")
    try:
        scores = ReferenceScores(0.0, 10.0, "by hand")
        model = tiny_model(Task(name="toy", env_id="Choice-v0", reference=scores)).fit(DATA, 1)
        assert model.get_env() is not None
        result = model.evaluate(5.0, 2, n_workers=0).results[0]
        assert result.normalized_score == pytest.approx(10.0 * result.mean)
        assert model.evaluate(5.0, 2, env=ChoiceEnv, n_workers=0).reference is None
        model.set_env(ChoiceEnv())
        assert model.evaluate(5.0, 2, env="Choice-v0", n_workers=0).reference is None
    finally:
        del gym.registry["Choice-v0"]


def test_parameters_move_between_models(model: DecisionMamba, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    expected = everything_in(model)
    by_dict, by_file = tiny_model(seed=9).fit(DATA, 1), tiny_model(seed=9).fit(DATA, 1)
    by_dict.set_parameters(model.get_parameters())
    by_file.set_parameters(tmp_path / "model")
    for other in (by_dict, by_file):
        assert differences(expected, everything_in(other)) == ["counters"]
        other.fit(n_steps=2)
    assert differences(expected, everything_in(model)) == []  # nothing is shared
    with pytest.raises(ValueError, match="do not match"):
        by_dict.set_parameters({"policy": model.policy.state_dict()})


def test_set_random_seed_is_the_batches_seed(tmp_path: Path) -> None:
    first, second, third = (tiny_model(ChoiceEnv).fit(DATA, 2) for _ in range(3))
    before = global_generators()
    second.set_random_seed(11)
    second.set_random_seed(None)
    third.set_random_seed(12)
    assert global_generators() == before
    results = [everything_in(each.fit(n_steps=1)) for each in (first, second, third)]
    assert differences(results[0], results[1]) != []
    assert differences(results[1], results[2]) != []
    assert second.seed == 11
    second.save(tmp_path / "model")  # dropout's seed is the same as the file's
    continued = everything_in(DecisionMamba.load(tmp_path / "model").fit(DATA, 2))
    assert differences(everything_in(second.fit(n_steps=2)), continued) == []
    tiny_model().set_random_seed(1)
    with pytest.raises(ConfigError, match="seed=-1"):
        first.set_random_seed(-1)


def test_before_fit() -> None:
    model: Any = tiny_model(ChoiceEnv)
    for call in (
        lambda: model.predict({"observation": np.zeros(2), "return_to_go": np.ones(1)}),
        lambda: model.save("nowhere"),
        lambda: model.evaluate(5.0),
        lambda: model.as_stateful_wrapper(5.0),
        model.get_parameters,
        lambda: model.set_parameters({}),
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call()
    for call in (tiny_model().fit, lambda: tiny_model().learn(5), lambda: tiny_model().fit(5)):
        with pytest.raises(DatasetError):
            call()


def test_another_dataset_than_the_first() -> None:
    model = tiny_model().fit(DATA, 2)
    before = everything_in(model)
    with pytest.raises(SpaceError, match=r"dataset has actions Box"):
        model.fit(random_trajectories(observation_shape=(2,)), 1)
    with pytest.raises(SpaceError, match=r"dataset has observations of shape \(3,\)"):
        model.fit(random_trajectories(n_actions=2), 1)
    assert differences(before, everything_in(model)) == []
    assert model.dataset.source == DATA.source
    model.fit(n_steps=1)


def test_a_dataset_that_is_not_the_environments() -> None:
    for env in (ChoiceEnv(), ChoiceEnv, DummyVecEnv([ChoiceEnv])):
        with pytest.raises(SpaceError, match="environment has"):
            tiny_model(env).fit(random_trajectories(observation_shape=(2,)), 1)
    with pytest.raises(SpaceError, match="environment CartPole-v1 has observations"):
        tiny_model("CartPole-v1").fit(DATA, 1)


def test_settings_of_the_constructor(model: DecisionMamba) -> None:
    config = DecisionMambaConfig(**TINY)
    assert DecisionMamba(None, config=config, n_layers=3).config == config.replace(n_layers=3)
    with pytest.raises(UnknownTaskError):
        DecisionMamba("hopper-medum-v2")
    seeds: list[Any] = [-1, 1.5, True]
    wrong: list[tuple[str, Any]] = [
        ("hiden_size", lambda: DecisionMamba(None, hiden_size=3)),
        ("env", lambda: DecisionMamba(ChoiceEnv(), env=ChoiceEnv())),
        ("exclude", lambda: model.save("nowhere", exclude=["policy"])),
        *(("seed", partial(DecisionMamba, None, seed=bad)) for bad in seeds),
        *(
            ("target_return", partial(setattr, model, "target_return", bad))
            for bad in (float("nan"), float("inf"), "high", [1.0])
        ),
    ]
    before = model.target_return
    for setting, make in wrong:
        with pytest.raises(ConfigError) as raised:
            make()
        assert raised.value.setting == setting
    assert model.target_return == before
    seed: Any = np.int64(4)
    assert type(DecisionMamba(None, seed=seed).seed) is int


def test_learn_is_fit() -> None:
    model = tiny_model().fit(DATA, 4)
    recorder = Recorder()
    assert model.learn(5, recorder, 1, "name", True, False) is model
    assert recorder.seen == [1, 2, 3, 4, 5]  # the schedule starts again
    assert (model.num_timesteps, model._n_updates) == (5, 9)  # the batches do not
    model.learn(total_timesteps=2, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (7, 11)


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    before = global_generators()
    model = tiny_model(ChoiceEnv, seed=None).fit(DATA, 3, eval_freq=2, n_eval_episodes=2)
    assert global_generators() == before
    model.evaluate([2.0, 5.0], 3, deterministic=False, n_workers=0)
    model.save(tmp_path / "model")
    DecisionMamba.load(tmp_path / "model")
    assert global_generators() == before
