"""The training loop: log, progress, divergence, and Ctrl-C between and in updates."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.data import WindowSampler
from sb3_dmamba.errors import ConfigError, DivergenceError, MissingDependencyError
from sb3_dmamba.training import loop as training_loop
from sb3_dmamba.training.loop import Interrupts, UpdateInterrupted
from sb3_dmamba.training.updater import UpdateMetrics, Updater
from tests.models import Recorder, differences, everything_in, tiny_model, use_memory
from tests.toys import choice_trajectories

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


@pytest.mark.parametrize(
    ("field", "bad", "when"),
    [("loss", math.nan, 0), ("grad_norm", math.inf, 2), ("loss", math.inf, 5)],
)
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


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().fit(DATA, 20, progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in ("fit", "20/20", "loss", "updates/s"):
        assert part in captured.err


def test_the_progress_bar_says_that_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "is_compiling", lambda: True)
    bar = training_loop.UpdateProgress()
    bar.init_callback(tiny_model())
    bar.on_training_start({"total_timesteps": 2}, {})
    assert bar.progress.tasks[0].description == "preparing kernels"
    bar.update_locals({"metrics": SimpleNamespace(loss=torch.tensor(1.0))})
    bar.on_step()
    assert bar.progress.tasks[0].description == "fit"
    bar.on_training_end()


def test_a_failure_closes_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: WindowSampler, update: int) -> None:
        raise OSError("gone")

    monkeypatch.setattr(WindowSampler, "sample", fail)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="gone"):
        tiny_model().fit(DATA, 5, progress_bar=True)
    for thread in set(threading.enumerate()) - before:  # rich's, which draws the bar
        if thread.name == "sb3_dmamba kernels":
            continue
        thread.join(5.0)
        assert not thread.is_alive()


def test_counts_out_of_range() -> None:
    model: Any = tiny_model()
    for name, value in (("n_steps", 0), ("n_steps", True), ("log_interval", 0), ("eval_freq", -1)):
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError) as raised:
            model.fit(DATA, **wrong)
        assert (raised.value.setting, raised.value.value) == (name, value)


N_UPDATES = 6


def press(monkeypatch: pytest.MonkeyPatch, at: int, times: int = 1) -> None:
    """Press Ctrl-C while an update is under way: its loss is known, its weights are not."""
    compute_loss = Updater.compute_loss

    def pressed(self: Updater, batch: Any) -> Any:
        loss = compute_loss(self, batch)
        count[0] += 1
        if count[0] == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return loss

    count = [0]
    monkeypatch.setattr(Updater, "compute_loss", pressed)


@pytest.mark.parametrize("settings", [{}, {"carry_state": True}])
def test_the_update_is_finished_and_training_goes_on_exactly(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model(**settings).fit(DATA, N_UPDATES)
    model, recorder = tiny_model(**settings), Recorder()
    press(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        model.fit(DATA, N_UPDATES, callback=recorder)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (model.num_timesteps, model._n_updates, recorder.seen) == (3, 3, [1, 2])
    model.fit()
    assert differences(everything_in(model), everything_in(whole)) == []


def test_a_second_time_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "_ONE_PRESS_SECONDS", 0.0)
    model = tiny_model()
    press(monkeypatch, at=3, times=2)
    with pytest.raises(UpdateInterrupted):
        model.fit(DATA, N_UPDATES)
    assert model.num_timesteps == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher passes on what the terminal has sent already."""
    model = tiny_model()
    press(monkeypatch, at=3, times=3)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.fit(DATA, N_UPDATES)
    assert caught.type is KeyboardInterrupt
    assert model.num_timesteps == 3


def test_between_updates_nothing_is_held_back() -> None:
    class Impatient(Recorder):
        def _on_step(self) -> bool:
            if self.num_timesteps == 2:
                signal.raise_signal(signal.SIGINT)
            return super()._on_step()

    recorder = Impatient()
    with pytest.raises(KeyboardInterrupt):
        tiny_model().fit(DATA, N_UPDATES, callback=recorder)
    assert recorder.seen == [1]


def test_what_holds_already_holds_to_its_end() -> None:
    interrupts, reached = Interrupts(), []

    def train_together() -> None:
        with interrupts.held():
            with interrupts.held():
                signal.raise_signal(signal.SIGINT)
            reached.append(interrupts.is_pending)

    with pytest.raises(KeyboardInterrupt):
        train_together()
    assert reached == [True]
    assert not interrupts.is_pending


def test_a_failure_is_not_hidden() -> None:
    def fail() -> None:
        with Interrupts().held():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_handler_of_the_callers_own_is_left_alone(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    try:
        with Interrupts().held():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
