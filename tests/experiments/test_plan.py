"""From a request to runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.envs import ATARI_ID
from sb3_dmamba.errors import ConfigError, DecisionMambaError, UnknownTaskError
from sb3_dmamba.experiments import engines
from sb3_dmamba.experiments import plan as module
from sb3_dmamba.experiments.catalogue import Variant, list_small_tasks
from sb3_dmamba.experiments.plan import (
    LoadedData,
    PlannedTask,
    Request,
    _plan_evaluation,
    make_plan,
    resolve_data,
)
from sb3_dmamba.experiments.runs import EvaluationPlan, Run
from sb3_dmamba.tasks import Task
from tests.experiments.toys import TOY, cartpole_data, changed, save_data, toy_plan


def test_a_run_for_each_task_variant_and_seed(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    assert [(c.task, c.variant, c.seed) for c in plan.runs] == [
        ("data", "mamba", 0),
        ("data", "mamba", 1),
        ("data", "attention", 0),
        ("data", "attention", 1),
    ]
    assert len({c.folder.path for c in plan.runs}) == 4
    assert all(c.folder.read_run() == c.run for c in plan.runs)


def test_settings_add_up_in_order(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, settings={"n_layers": 2, "dropout": 0.3})
    mamba, attention = plan.runs[0].run.config, plan.runs[2].run.config
    assert (mamba.mixer, attention.mixer) == ("mamba", "attention")  # the variant's
    assert mamba.hidden_size == 8  # the experiment's, over the task's
    assert mamba.lr_schedule == "linear"  # the task's
    assert (mamba.n_layers, mamba.dropout) == (2, 0.3)  # the user's, over all
    assert (mamba.n_updates, mamba.warmup_updates) == (20, 2)  # in proportion


def test_a_variant_s_recipe_replaces_the_task_s(tmp_path: Path) -> None:
    named = {each: Variant({"d_conv": 3}, recipe=each) for each in ("default", "paper")}
    experiment = changed(TOY, variants={"own": Variant(), **named}, settings={})
    plan = toy_plan(tmp_path, experiment, data=(f"cartpole={save_data(tmp_path / 'data')}",))
    own, default, paper = (each.run.config for each in plan.runs[::2])
    assert own.hidden_size == 64  # the small task's
    plains = DecisionMambaConfig(), DecisionMambaConfig.from_recipe("paper")
    for config, plain in zip((default, paper), plains, strict=True):
        assert (config.hidden_size, config.learning_rate) == (128, plain.learning_rate)
        assert (config.context_length, config.d_conv) == (plain.context_length, 3)
    assert (paper.return_scale, own.return_scale) == (1000.0, 100.0)


def test_a_budget_buys_the_same_updates_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Run] = []

    def measure(run: Run) -> float:
        measured.append(run)
        return 0.1 * len(measured)

    monkeypatch.setattr(module, "measure_update_seconds", measure)
    budget: dict[str, Any] = {"n_updates": None, "processor_seconds": 4.0}
    plan = toy_plan(tmp_path, **budget)
    assert [each.run.config.n_updates for each in plan.runs] == [40, 40, 20, 20]
    assert [each.run.config.warmup_updates for each in plan.runs] == [4, 4, 2, 2]
    assert len(measured) == 2
    assert (plan.processor_seconds, measured[0].seed) == (4.0, 0)
    again = toy_plan(tmp_path, **{**budget, "n_episodes": 2, "seeds": (1,)})
    assert [each.run.config.n_updates for each in again.runs] == [40, 20]
    double = toy_plan(tmp_path, **{**budget, "processor_seconds": 8.0})
    assert [each.run.config.n_updates for each in double.runs] == [80, 80, 40, 40]
    assert len(measured) == 2  # kept beside the runs
    toy_plan(tmp_path, **budget, settings={"hidden_size": 16})
    assert len(measured) == 4  # another network has another cost
    own = changed(TOY, processor_seconds=2.0)
    assert toy_plan(tmp_path, own, n_updates=None).runs[0].run.config.n_updates == 20
    assert toy_plan(tmp_path, own).processor_seconds is None  # updates were asked for
    for wrong in ({"processor_seconds": 2.0}, {"n_updates": None, "processor_seconds": 0.0}):
        with pytest.raises(ConfigError) as caught:
            toy_plan(tmp_path, **wrong)
        assert caught.value.setting == "processor_seconds"
    with pytest.raises(ConfigError) as caught:
        engines._on_the_processor(engines.Engine(device="cuda"))
    assert (caught.value.setting, caught.value.value) == ("device", "cuda")
    assert engines._on_the_processor(engines.Engine()).device == "cpu"


def test_costs_are_told_and_an_interrupt_keeps_those_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[float] = []

    def measure(run: Run) -> float:
        costs.append(0.1)
        if len(costs) == 2:
            raise KeyboardInterrupt
        return costs[-1]

    monkeypatch.setattr(module, "measure_update_seconds", measure)
    request = Request(
        cells=tmp_path / "cells",
        data=(str(save_data(tmp_path / "data")),),
        target_returns=(5.0,),
        processor_seconds=4.0,
    )
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        make_plan(TOY, request, said.append)
    assert [line.partition(":")[0] for line in said] == ["data, mamba"] * 2 + ["data, attention"]
    assert "100 ms" in said[1]
    (kept,) = (tmp_path / "cells" / "costs").iterdir()
    assert str(kept) in said[1]
    plan = make_plan(TOY, request, said.append)
    assert [line.partition(":")[0] for line in said[3:]] == ["data, attention"] * 2
    assert {each.run.config.n_updates for each in plan.runs} == {40}


def test_data_without_a_task_gets_its_scale_and_targets_from_itself(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, target_returns=())
    (task,) = plan.tasks
    config = plan.runs[0].run.config
    assert task.task.env_id == "CartPole-v1"
    assert config.return_scale == 10.0  # its best is between 10 and 100
    assert config.max_timestep == cartpole_data().lengths.max()
    assert task.target_returns[-1] == cartpole_data().returns.max()
    assert list(task.target_returns) == sorted(set(task.target_returns))


def test_the_headline_target_is_the_highest_that_the_data_reached(tmp_path: Path) -> None:
    best = float(cartpole_data().returns.max())
    (task,) = toy_plan(tmp_path, target_returns=(best + 1, 2.0, best, 9.0)).tasks
    assert (task.headline, task.targets_in_range) == (best, (best, 9.0))
    (task,) = toy_plan(tmp_path, target_returns=(900.0, 800.0)).tasks
    assert (task.headline, task.targets_in_range) == (800.0, ())


def test_evaluations(tmp_path: Path) -> None:
    evaluation = toy_plan(tmp_path, n_updates=10_000, evaluations=3).runs[0].run.evaluation
    assert evaluation.evaluated_updates(10_000) == [3334, 6668, 10_000]
    assert toy_plan(tmp_path).runs[0].run.evaluation.every == 0
    plan = toy_plan(tmp_path, settings={"time_encoding": "global"})
    assert plan.runs[0].run.evaluation.memories == ("window",)


def test_a_game_s_actions_are_drawn_and_others_are_the_likeliest(tmp_path: Path) -> None:
    def evaluation(task: Task, **asked: Any) -> EvaluationPlan:
        planned = PlannedTask(task, "data", "f", np.ones(2), 2, (1.0,))
        request = Request(tmp_path, **asked)
        return _plan_evaluation(planned, TOY, request, DecisionMambaConfig())

    game, other = Task("game", env_id=ATARI_ID), Task("other", env_id="CartPole-v1")
    assert not evaluation(game).deterministic
    assert evaluation(other).deterministic
    assert evaluation(game, deterministic=True).deterministic
    assert not evaluation(other, deterministic=False).deterministic


def test_options_of_a_variant_change_the_data(tmp_path: Path) -> None:
    mamba = TOY.variants["mamba"]
    delayed = changed(mamba, data_options={"reward_mode": "delayed"})
    plan = toy_plan(tmp_path, changed(TOY, variants={"dense": mamba, "delayed": delayed}))
    dense, late = plan.runs[0].run.data, plan.runs[2].run.data
    assert dense.fingerprint == plan.tasks[0].fingerprint != late.fingerprint
    assert (dense.options, late.options) == ({}, {"reward_mode": "delayed"})


def test_mistakes_in_a_request_are_named(tmp_path: Path) -> None:
    data = str(save_data(tmp_path / "data"))
    mistakes: dict[str, dict[str, Any]] = {
        "variants": {"variants": ("mumba",)},
        "seeds": {"seeds": (0, 0)},
        "hiden_size": {"settings": {"hiden_size": 3}},
        "n_episodes": {"n_episodes": -1},
        "data": {"data": (data, data)},
    }
    for setting, request in mistakes.items():
        with pytest.raises(ConfigError) as caught:
            toy_plan(tmp_path, **request)
        assert caught.value.setting == setting
    with pytest.raises(DecisionMambaError):
        make_plan(TOY, Request(cells=Path("unused"), data=("no-such-data-anywhere",)))


def test_data_that_names_no_environment_needs_a_name(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    changed(cartpole_data(), env_id=None).save(nowhere)
    with pytest.raises(UnknownTaskError) as caught:
        toy_plan(tmp_path, data=(str(nowhere),))
    assert (caught.value.setting, caught.value.value) == ("data", str(nowhere))
    plan = toy_plan(tmp_path, data=(f"CartPole-v1={nowhere}",), target_returns=())
    assert plan.tasks[0].name == "CartPole-v1"
    assert plan.tasks[0].target_returns


def test_data_is_a_task_a_task_with_a_source_or_a_source() -> None:
    for small in list_small_tasks():
        assert resolve_data(small.name) == (small, small.dataset)
        assert resolve_data(str(small.dataset)) == (small, small.dataset)
        assert resolve_data(f"{small.name}=/else/where") == (small, "/else/where")
    task, source = resolve_data("hopper-medium-v2=data/hopper.hdf5")
    assert task is not None
    assert (task.name, source) == ("hopper-medium-v2", "data/hopper.hdf5")
    assert resolve_data("hopper-medium-v2")[1] == "hopper-medium-v2"
    assert resolve_data("some/where=else.hdf5") == (None, "some/where=else.hdf5")
    with pytest.raises(UnknownTaskError, match="--data qbert=PATH"):
        resolve_data("qbert")


def test_data_that_is_kept_may_come_from_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the DQN replay is converted to a store; other sources are loaded where they lie."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    source = "toy/cartpole-v0"
    cartpole_data().to_minari(source)
    options = {"top_fraction": 0.5}
    loaded = LoadedData(source, tmp_path / "stores")
    assert len(loaded.get(options)) == len(cartpole_data()) / 2
    found = loaded.describe(options)
    assert (found.source, found.options) == (source, options)
    plan = toy_plan(tmp_path, changed(TOY, keep_data=True), data=(f"CartPole-v1={source}",))
    assert {each.run.data.source for each in plan.runs} == {source}
