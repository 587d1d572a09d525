"""The Optuna example runs: trials are sampled, reported, stopped early, and kept."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.experiments.toys import save_data
from tests.scripts import load_script

optuna = pytest.importorskip("optuna", reason='pip install "sb3-dmamba[optuna]"')


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "tune_with_optuna.py"
    module = load_script(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return module


@pytest.fixture
def options(example: ModuleType, tmp_path: Path) -> Any:
    data = save_data(tmp_path / "data")
    arguments = f"{data} --trials 3 --updates 4 --evaluations 2 --episodes 1 --sampler random"
    return example.parse_arguments([*arguments.split(), "--storage", f"sqlite:///{tmp_path}/t.db"])


def test_a_search_reports_trials_and_goes_on(example: ModuleType, options: Any) -> None:
    study = example.optimize(options)
    assert len(study.trials) == 3
    assert sorted(study.trials[0].intermediate_values) == [2, 4]
    assert len(example.optimize(options).trials) == 6  # from the storage
    command = example.describe_confirmation(study, options)
    assert "--seeds 101" in command
    assert f"learning_rate={study.best_params['learning_rate']}" in command


def test_a_trial_that_falls_behind_is_stopped(
    example: ModuleType, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)
    study = example.optimize(options)
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.PRUNED}
    assert all(sorted(trial.intermediate_values) == [2] for trial in study.trials)
