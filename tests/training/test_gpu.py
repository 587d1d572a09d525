"""Updates on a real GPU, as graphs and without."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.training.batches import ResidentFeed, make_sampler
from sb3_dmamba.training.updater import Updater, local_seed
from tests.models import MIXERS, TINY, tiny_model
from tests.toys import random_trajectories

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
DATA = random_trajectories((23, 7, 40, 31))
N_UPDATES = 6


def make_updater(**settings: Any) -> Updater:
    config = DecisionMambaConfig().replace(**{**TINY, **settings})
    return Updater.create(DATA.observation_space, DATA.action_space, config, None, 0, DEVICE)


def run(updater: Updater) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of some updates, and the weights after them."""
    sampler = make_sampler(DATA, updater.config, 0)
    losses = [updater.update(sampler, n, n, 9).loss for n in range(N_UPDATES)]
    weights = torch.nn.utils.parameters_to_vector(updater.policy.parameters())
    return torch.stack(losses), weights.detach()


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


SETTINGS: list[dict[str, Any]] = [{}, {"carry_state": True}, {"burn_in": 4}]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("data_device", ["cpu", "device"])
def test_graphs_are_the_plain_updates(
    mixer: str, settings: dict[str, Any], precision: str, data_device: str
) -> None:
    chosen = {"mixer": mixer, "precision": precision, "data_device": data_device, **settings}
    plain = run(make_updater(cuda_graph="off", **chosen))
    updater = make_updater(cuda_graph="on", **chosen)
    found = run(updater)
    assert updater._graphs is not None
    assert updater._graphs._graphs
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    torch.testing.assert_close(found[0], plain[0], rtol=tolerance, atol=0.0)
    assert (found[1] - plain[1]).norm() <= 10 * tolerance * plain[1].norm()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cuda_graph", ["off", "on"])
@pytest.mark.parametrize("data_device", ["cpu", "device"])
def test_the_host_does_not_wait(
    settings: dict[str, Any], cuda_graph: str, data_device: str
) -> None:
    updater = make_updater(cuda_graph=cuda_graph, data_device=data_device, **settings)
    long = random_trajectories((400, 400))  # every batch has all steps of burn-in: one shape
    sampler = make_sampler(long, updater.config, 0)
    for number in range(3):
        updater.update(sampler, number, number, 99)
    with nobody_waits():
        for number in range(3, 70):  # the places of windows are drawn anew on the way
            updater.update(sampler, number, number, 99)


def test_updates_are_graphs_without_being_asked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_model(device="cuda").fit(DATA, 4)
    updater = model._updater
    assert updater is not None
    assert updater._graphs is not None
    assert updater._graphs._graphs
    assert isinstance(updater._feed, ResidentFeed)


def test_the_devices_generator_is_left_alone() -> None:
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state(DEVICE)
    run(make_updater(cuda_graph="on"))
    assert torch.equal(torch.cuda.get_rng_state(DEVICE), before)
    with local_seed(DEVICE, 3):
        first = torch.rand(4, device=DEVICE)
    with local_seed(DEVICE, 3):
        assert torch.equal(torch.rand(4, device=DEVICE), first)


def test_a_failed_recording_leaves_random_numbers_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    updater = make_updater(cuda_graph="auto", dropout=0.3)
    take_step = updater.take_step

    def looks(batch: Any) -> Any:
        results = take_step(batch)
        results.sum().item()
        return results

    monkeypatch.setattr(updater, "take_step", looks)
    with pytest.warns(UserWarning, match="one by one"):
        found = run(updater)
    expected = run(make_updater(cuda_graph="off", dropout=0.3))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=0.0)
