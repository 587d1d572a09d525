"""Ctrl-C: an update that has begun is finished, and training goes on from it to the bit."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from sb3_dmamba.training import loop as interrupts
from sb3_dmamba.training.loop import Interrupts, UpdateInterrupted
from sb3_dmamba.training.updater import Updater
from tests.models import Recorder, differences, everything_in, tiny_model
from tests.toys import choice_trajectories

DATA = choice_trajectories(20)
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
    monkeypatch.setattr(interrupts, "_ONE_PRESS_SECONDS", 0.0)
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


def test_a_thread_may_train() -> None:
    """Python lets the main thread alone handle signals."""
    models = []
    thread = threading.Thread(target=lambda: models.append(tiny_model().fit(DATA, 2)))
    thread.start()
    thread.join()
    assert models[0].num_timesteps == 2
