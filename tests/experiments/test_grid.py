"""Executing a run: once, and to the same result however often it is interrupted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.errors import ExperimentError, UnknownTaskError
from sb3_dmamba.experiments import grid, runs
from sb3_dmamba.experiments.grid import execute_run
from sb3_dmamba.experiments.plan import Plan
from sb3_dmamba.experiments.runs import RunFolder
from tests.experiments.toys import save_data, toy_plan


class Crash(BaseException):
    """What no handler expects, as a SIGKILL is."""


def plan_one(folder: Path) -> Plan:
    """One small training, evaluated three times, under both memories."""
    return toy_plan(folder, variants=("mamba",), seeds=(0,), evaluations=3)


@pytest.fixture(scope="module", autouse=True)
def long_stretches() -> Iterator[None]:
    """A loss curve of 20 updates in stretches of 5: checkpoints fall into the middle of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_LOSS_POINTS", 4)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, long_stretches: None) -> RunFolder:
    (planned,) = plan_one(tmp_path_factory.mktemp("undisturbed")).runs
    execute_run(planned.folder.path, "cpu")
    return planned.folder


def test_a_result_holds_every_evaluation_and_the_loss_curve(undisturbed: RunFolder) -> None:
    result = undisturbed.read_result()
    shape = [(each.update, each.memory, each.target_return) for each in result.evaluations]
    assert shape == [
        (update, memory, target)
        for update in (7, 14, 20)
        for memory in ("window", "stream")
        for target in (5.0, 10.0, 14.0)
    ]
    assert result.last_update == 20
    assert {len(each.returns) for each in result.evaluations} == {3}
    for each in result.evaluations:  # CartPole pays 1 a step
        assert each.returns.tolist() == each.lengths.tolist()
    assert [update for update, _ in result.losses] == [5, 10, 15, 20]
    model = DecisionMamba.load(undisturbed.model)
    assert result.n_parameters == sum(each.numel() for each in model.policy.parameters())
    assert model.num_timesteps == 20


def test_the_evaluation_is_the_model_s_own(undisturbed: RunFolder) -> None:
    model = DecisionMamba.load(undisturbed.model)
    report = model.evaluate([5.0, 10.0, 14.0], 3, memory="stream", seed=10_000)
    last = [
        each
        for each in undisturbed.read_result().evaluations
        if (each.update, each.memory) == (20, "stream")
    ]
    assert [e.returns.tolist() for e in last] == [e.returns.tolist() for e in report.results]


def test_a_run_that_is_done_is_left_alone(
    undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "_Execution", None)  # would fail
    execute_run(undisturbed.path)


def test_a_damaged_evaluation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (planned,) = plan_one(tmp_path).runs
    finish = grid._Execution._finish

    def damage(self: Any) -> None:
        (self.folder.evaluations / "000000007-window.json").write_text("[")
        (self.folder.evaluations / "000000020-window.json").write_text("[")
        finish(self)

    monkeypatch.setattr(grid._Execution, "_finish", damage)
    with pytest.raises(ExperimentError, match=r"000000007-window\.json is missing or damaged"):
        execute_run(planned.folder.path, "cpu")
    assert not planned.folder.is_done


def test_what_was_spent_is_kept_apart(undisturbed: RunFolder) -> None:
    (session,) = json.loads(undisturbed.machine.read_text())
    assert session["updates"] == 20
    assert session["until"] == 20
    assert session["train_seconds"] > 0 < session["evaluation_seconds"]
    assert "torch" in session["versions"]
    assert "seconds" not in undisturbed.result.read_text()


def crash_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its n-th call crashes before it does anything."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        return function(*args, **kwargs)

    return wrapped


# Where it crashes: checkpoints are due at every third look, so there are several in between.
CRASHES = {
    "before the first checkpoint": (DecisionMamba, "save", 1),
    "between loss curve and checkpoint": (DecisionMamba, "save", 3),
    "between checkpoint and evaluation": (DecisionMamba, "evaluate", 3),
    "between the memories of an evaluation": (DecisionMamba, "evaluate", 2),
    "before the last weights are kept": (grid._Execution, "_finish", 1),
}


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_changes_no_byte_of_the_result(
    where: str, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_one(tmp_path).runs
    assert planned.folder.path.name == undisturbed.path.name
    looks = iter(range(10_000))
    monkeypatch.setattr(grid.Session, "is_checkpoint_due", lambda _: next(looks) % 3 == 2)
    owner, name, call = CRASHES[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash_at(call, getattr(owner, name)))
        with pytest.raises(Crash):
            execute_run(planned.folder.path, "cpu")
    assert not planned.folder.is_done
    execute_run(planned.folder.path, "cpu")
    assert planned.folder.result.read_bytes() == undisturbed.result.read_bytes()


def test_crashes_upon_crashes_do_not_either(
    undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_one(tmp_path).runs
    monkeypatch.setattr(grid.Session, "is_checkpoint_due", lambda _: True)
    n_crashes = 0
    while not planned.folder.is_done:
        with monkeypatch.context() as patch:
            patch.setattr(DecisionMamba, "save", crash_at(5, DecisionMamba.save))
            try:
                execute_run(planned.folder.path, "cpu")
            except Crash:
                n_crashes += 1
    assert n_crashes >= 4
    assert planned.folder.result.read_bytes() == undisturbed.result.read_bytes()
    sessions = json.loads(planned.folder.machine.read_text())
    assert sum(session["updates"] for session in sessions) == 20  # lost work is not counted


def test_data_that_changed_in_between_is_refused(tmp_path: Path) -> None:
    (planned,) = plan_one(tmp_path).runs
    data = tmp_path / "data"
    data.rename(tmp_path / "old")
    save_data(data, seed=1)
    with pytest.raises(ExperimentError, match="has changed since data, mamba, seed 0"):
        execute_run(planned.folder.path)


def test_an_orphan_ends_by_itself(tmp_path: Path) -> None:
    (planned,) = plan_one(tmp_path).runs
    with pytest.raises(SystemExit, match="is gone"):
        execute_run(planned.folder.path, "cpu", parent=1 << 30)
    assert not planned.folder.is_done


def test_an_environment_that_cannot_be_made_is_noticed_before_training(tmp_path: Path) -> None:
    (planned,) = plan_one(tmp_path).runs
    task = dataclasses.replace(planned.run.task, env_id="absent/Nothing-v0")
    folder = RunFolder.prepare(tmp_path, dataclasses.replace(planned.run, task=task))
    with pytest.raises(UnknownTaskError):
        execute_run(folder.path, "cpu")
    assert not folder.model.exists()
    assert not any(folder.evaluations.glob("*"))
