"""Updates as graphs: the same updates, to the last bit."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.errors import BackendError
from sb3_dmamba.training import cuda_graph as graphs
from sb3_dmamba.training.batches import make_sampler
from sb3_dmamba.training.cuda_graph import RECORDERS
from sb3_dmamba.training.updater import Updater
from tests.models import MIXERS, TINY, differences, everything_in, tiny_model
from tests.models import Recorder as Stop
from tests.toys import random_trajectories
from tests.training.emulation import HostLookedError, Recorder, nobody_looks

CPU = torch.device("cpu")
DATA = random_trajectories((23, 7, 40, 31))
# What the emulation records are torch's own operations: no kernels of Numba's.
# And learning rates are such that float32, which a graph reads them in, has them exactly.
SETTINGS: dict[str, Any] = {
    **TINY,
    "backend": "traceable",
    "max_grad_norm": 0.05,
    "learning_rate": 2.0**-9,
    "lr_schedule": "constant",
    "warmup_updates": 4,
}
N_UPDATES = 5


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(RECORDERS, "cpu", recorder)
    return recorder


def make_updater(**settings: Any) -> Updater:
    config = DecisionMambaConfig().replace(**{**SETTINGS, **settings})
    return Updater.create(DATA.observation_space, DATA.action_space, config, None, 0, CPU)


def run(updater: Updater, n_updates: int = N_UPDATES, start: int = 0) -> dict[str, Tensor]:
    """Return losses, norms, weights and moments of some updates."""
    sampler = make_sampler(DATA, updater.config, 0)
    numbers = range(start, start + n_updates)
    metrics = [updater.update(sampler, n, n, 9) for n in numbers]
    return {
        "losses": torch.stack([each.loss for each in metrics]),
        "norms": torch.stack([each.grad_norm for each in metrics]),
        **{name: each.clone() for name, each in updater.policy.state_dict().items()},
        **{f"moments {name}": each.clone() for name, each in updater.state().items()},
    }


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"data_device": "cpu"},
        {"carry_state": True, "data_device": "device"},
        {"conditioning": "decoupled", "data_device": "device"},
        {"burn_in": 4, "data_device": "device", "precision": "bf16"},
    ],
    ids=str,
)
def test_replays_are_the_plain_updates(
    recorder: Recorder, mixer: str, settings: dict[str, Any]
) -> None:
    plain = run(make_updater(mixer=mixer, cuda_graph="off", **settings))
    found = run(make_updater(mixer=mixer, cuda_graph="on", **settings))
    assert differences(plain, found) == []
    assert recorder.n_replays >= N_UPDATES
    assert recorder.n_recorded <= 2  # with burn-in, one for each number of steps before


def test_averages_are_part_of_a_replay(recorder: Recorder) -> None:
    """But for rounding: a graph reads the decay from a tensor."""
    plain = run(make_updater(cuda_graph="off", ema_decay=0.6))
    found = run(make_updater(cuda_graph="on", ema_decay=0.6))
    assert recorder.n_recorded == 1
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"carry_state": True, "precision": "bf16"}, {"burn_in": 4}], ids=str
)
@pytest.mark.parametrize("mixer", MIXERS)
def test_plain_updates_do_not_look_either(mixer: str, settings: dict[str, Any]) -> None:
    chosen = {"mixer": mixer, "data_device": "device", **settings}
    updater = make_updater(cuda_graph="off", **chosen)
    sampler = make_sampler(DATA, updater.config, 0)
    with nobody_looks():
        for number in range(3):
            updater.update(sampler, number, number, 9)


class _Guard(BaseCallback):
    """Forbids synchronising from the second update of a run to the last but one."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 1:
            self.guard = nobody_looks()
            self.guard.__enter__()
        elif self.num_timesteps == 7:
            self.guard.__exit__(None, None, None)
        return True


@pytest.mark.parametrize("cuda_graph", ["off", "on"])
def test_the_loop_looks_where_it_logs_alone(recorder: Recorder, cuda_graph: str) -> None:
    model = tiny_model(**{**SETTINGS, "cuda_graph": cuda_graph, "data_device": "device"})
    model.fit(DATA, 8, callback=_Guard(), log_interval=100)
    model = tiny_model(**{**SETTINGS, "cuda_graph": cuda_graph, "data_device": "device"})
    with pytest.raises(HostLookedError):
        model.fit(DATA, 8, callback=(guard := _Guard()), log_interval=3)
    guard.guard.__exit__(None, None, None)


def test_an_interrupted_run_is_an_uninterrupted_one(recorder: Recorder, tmp_path: Path) -> None:
    chosen = {**SETTINGS, "cuda_graph": "on", "data_device": "device"}
    for settings in ({}, {"carry_state": True}, {"ema_decay": 0.9}):
        expected = everything_in(tiny_model(**{**chosen, **settings}).fit(DATA, 12))
        plain = tiny_model(**{**chosen, **settings, "cuda_graph": "off"}).fit(DATA, 12)
        if "ema_decay" not in settings:
            assert differences(expected, everything_in(plain)) == []
        model = tiny_model(**{**chosen, **settings}).fit(DATA, 12, callback=Stop(stop_at=5))
        model.save(tmp_path / "model")
        assert differences(expected, everything_in(model.fit())) == []
        loaded = DecisionMamba.load(tmp_path / "model").fit(DATA, 7)
        assert differences(expected, everything_in(loaded)) == []


def test_other_weights_moments_data_and_shapes_are_recorded_anew(recorder: Recorder) -> None:
    def train(cuda_graph: str) -> dict[str, Tensor]:
        model = tiny_model(**{**SETTINGS, "cuda_graph": cuda_graph, "data_device": "device"})
        model.fit(DATA, 3)
        kept = model.get_parameters()
        kept = copy.deepcopy(kept)
        model.fit(random_trajectories((30, 9), seed=4), 2)
        model.set_parameters(kept)
        model.fit(DATA, 2)
        model.set_parameters(kept)  # the same data, other moments
        model.fit(DATA, 2)
        vector = torch.nn.utils.parameters_to_vector(model.policy.parameters())
        model.policy.load_from_vector(vector.detach().numpy() * 0.5)
        model.fit(n_steps=2)
        return everything_in(model)

    assert differences(train("off"), train("on")) == []
    assert recorder.n_recorded == 5


@pytest.mark.parametrize("cuda_graph", ["off", "on"])
def test_what_acting_keeps_of_the_weights_follows_updates(
    recorder: Recorder, cuda_graph: str
) -> None:
    updater = make_updater(
        cuda_graph=cuda_graph, memory="stream", learning_rate=0.125, backend="reference"
    )
    sampler = make_sampler(DATA, updater.config, 0)
    mixers: list[Any] = [block.mixer for block in updater.policy.model.layers]
    for number in range(3):
        updater.update(sampler, number, number, 3)
        for mixer in mixers:
            kept, fresh = mixer._kept(), mixer._make_weights()
            assert torch.equal(kept.A, fresh.A)


def test_only_some_shapes_are_kept(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    updater = make_updater(cuda_graph="on")
    plain = make_updater(cuda_graph="off")
    for number, size in enumerate((8, 6, 4, 8, 4)):
        sampler = WindowSampler(DATA, 5, size, 0)
        results = [each.update(sampler, number, 0, 9).loss for each in (updater, plain)]
        assert results[0] == results[1]
    assert recorder.n_recorded == 2


class _Wrong(Recorder):
    """A recorder whose replays leave something out."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def __call__(self, run: Any, device: torch.device) -> Any:
        if self.fault == "capture":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        replay, results = super().__call__(run, device)
        if self.fault == "nothing":
            return lambda: None, results

        def change() -> None:
            replay()
            results[0].mul_(1.01)

        return change, results


@pytest.mark.parametrize("fault", ["capture", "nothing", "results"])
def test_a_wrong_graph_is_not_trusted(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plain = run(make_updater(cuda_graph="off"))
    monkeypatch.setitem(RECORDERS, "cpu", _Wrong(fault))
    with pytest.warns(UserWarning, match="one by one"):
        first = run(updater := make_updater(cuda_graph="auto"), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        rest = run(updater, N_UPDATES - 1, start=1)
    found = {**rest, **{key: torch.cat([first[key], rest[key]]) for key in ("losses", "norms")}}
    assert differences(plain, found) == []
    with pytest.raises(BackendError, match='use cuda_graph="auto" or "off"'):
        run(make_updater(cuda_graph="on"), 1)


@pytest.mark.parametrize("what", ["batch", "seed", "rate", "average", "host"])
def test_what_a_recording_holds_fast_is_noticed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """An update that takes something from elsewhere than where the graph reads it."""
    updater = make_updater(cuda_graph="on", dropout=0.3, ema_decay=0.9)
    take_step = updater.take_step
    kept: list[WindowBatch] = []

    def wrong(batch: WindowBatch) -> Tensor:
        if what == "batch":
            kept.append(WindowSampler(DATA, 5, 8, 1).sample(len(kept)))
            batch = kept[-1] if len(kept) > 1 else batch
        if what == "rate":
            for group in updater.optimizer.param_groups:
                group["lr"] = float(group["lr"]) if len(kept) else group["lr"]
        if what == "seed":
            torch.manual_seed(len(kept))
            kept.append(batch)
        if what == "average" and kept:
            updater._ema_rate = 0.5
        if what == "host":
            batch.padding_mask.sum().item()
        kept.append(batch)
        return take_step(batch)

    monkeypatch.setattr(updater, "take_step", wrong)
    with pytest.raises(BackendError):
        run(updater, 1)


def test_a_non_finite_update_decides_nothing(recorder: Recorder) -> None:
    updater = make_updater(cuda_graph="on")
    with torch.no_grad():
        next(iter(updater.policy.parameters())).fill_(float("nan"))
    run(updater, 2)
    assert recorder.n_recorded == 0


def test_without_a_gpu() -> None:
    run(make_updater(cuda_graph="auto"), 1)
    with pytest.raises(BackendError, match=r'cuda_graph="on".*CUDA.*"cpu"|cuda_graph="on".*CUDA'):
        run(make_updater(cuda_graph="on"), 1)


def test_copies_are_without_graphs(recorder: Recorder) -> None:
    updater = make_updater(cuda_graph="on", data_device="device")
    run(updater, 2)
    other = copy.deepcopy(updater)
    assert differences(run(updater, 2, start=2), run(other, 2, start=2)) == []
