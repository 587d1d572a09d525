from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from sb3_dmamba.data import WindowSampler
from sb3_dmamba.errors import ConfigError, DivergenceError, MissingDependencyError
from sb3_dmamba.training.updater import UpdateMetrics, Updater
from tests.models import Recorder, tiny_model, use_memory
from tests.toys import choice_trajectories, random_trajectories

DATA = choice_trajectories(20)


def test_what_is_logged_and_when() -> None:
    model, recorder = tiny_model(), Recorder()
    memory = use_memory(model)
    model.fit(DATA, 10, callback=recorder, log_interval=4)
    assert [step for step, _ in memory.rows] == [4, 8, 10]
    for (step, row), since in zip(memory.rows, (0, 4, 8), strict=True):
        assert row["train/loss"] == pytest.approx(np.mean(recorder.losses[since:step]))
        assert row["train/learning_rate"] == recorder.learning_rates[step - 1]
        assert row["train/n_updates"] == step
        assert row["train/grad_norm"] > 0
        assert row["time/updates_per_second"] > 0


def test_a_run_that_is_stopped_logs_what_it_did() -> None:
    model, recorder = tiny_model(), Recorder(stop_at=3)
    memory = use_memory(model)
    model.fit(DATA, 10, callback=recorder)
    assert [step for step, _ in memory.rows] == [3]
    assert (recorder.starts, recorder.ends) == (1, 1)


def test_stdout_csv_and_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "tensorboard"]))
    model.fit(DATA, 4, log_interval=2)
    model.logger.close()
    assert "loss" in capsys.readouterr().out
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert "train/loss" in header.split(",")
    assert len(rows) == 2
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_verbose_prints_and_silence_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().fit(DATA, 2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    tiny_model(verbose=1).fit(DATA, 2)
    assert "loss" in capsys.readouterr().out


def test_tensorboard_log(tmp_path: Path) -> None:
    model = tiny_model(tensorboard_log=str(tmp_path))
    model.fit(DATA, 2, tb_log_name="try").fit(DATA, 2, tb_log_name="try")
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["try_1"]  # the second call continues the first one's curve
    model.learn(2, tb_log_name="try")
    model.logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["try_1", "try_2"]


def test_tensorboard_is_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_baselines3.common.utils.SummaryWriter", None)
    with pytest.raises(MissingDependencyError, match=r"sb3-dmamba\[tensorboard\]"):
        tiny_model(tensorboard_log=str(tmp_path)).fit(DATA, 1)


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", [0, 2, 5])
def test_divergence_names_the_update(
    field: str, bad: float, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(self: Updater, sampler: Any, n_done: int, *rest: Any) -> UpdateMetrics:
        values = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}
        if n_done == when:
            values[field] = torch.tensor(bad)
        return UpdateMetrics(learning_rate=0.125, **values)

    monkeypatch.setattr(Updater, "update", update)
    with pytest.raises(DivergenceError, match=rf"update {when + 1} .*{bad}.*0\.125"):
        tiny_model().fit(DATA, 6, log_interval=4)


def test_a_run_that_diverges_says_so() -> None:
    model = tiny_model(learning_rate=1e30, max_grad_norm=1e30, warmup_updates=0)
    with pytest.raises(DivergenceError, match="lower learning_rate"):
        model.fit(random_trajectories(), 50, log_interval=5)
    assert model.num_timesteps < 50


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().fit(DATA, 20, progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in ("fit", "20/20", "loss", "updates/s"):
        assert part in captured.err


def test_a_failure_closes_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: WindowSampler, update: int) -> None:
        raise OSError("gone")

    monkeypatch.setattr(WindowSampler, "sample", fail)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="gone"):
        tiny_model().fit(DATA, 5, progress_bar=True)
    for thread in set(threading.enumerate()) - before:  # rich's, which draws the bar
        thread.join(5.0)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_steps", 0),
        ("n_steps", -1),
        ("n_steps", 2.5),
        ("n_steps", True),
        ("log_interval", 0),
        ("eval_freq", -1),
        ("eval_freq", 0.5),
    ],
)
def test_counts_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name}={value}"):
        tiny_model().fit(DATA, **{name: value})
