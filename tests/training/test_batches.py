"""Batch loaders: every one gives the sampler's batches."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.training import batches as feeds
from sb3_dmamba.training.batches import (
    HostFeed,
    PrefetchingFeed,
    ResidentFeed,
    count_resident_bytes,
    make_feed,
    make_sampler,
)
from tests.data.test_resident import assert_equal
from tests.models import TINY, tiny_model
from tests.toys import random_trajectories

CPU = torch.device("cpu")
DATA = random_trajectories((23, 7, 40, 31))
SETTINGS: list[dict[str, Any]] = [
    *({}, {"carry_state": True}, {"burn_in": 4}, {"burn_in": 4, "sampling": "balanced"})
]


def make_config(**settings: Any) -> DecisionMambaConfig:
    return DecisionMambaConfig().replace(**{**TINY, **settings})


@pytest.mark.parametrize("kind", [HostFeed, PrefetchingFeed, ResidentFeed])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_batches_are_the_samplers(kind: Any, settings: dict[str, Any]) -> None:
    config = make_config(**settings)
    for rows in (slice(None), slice(2, 5)):
        feed = kind(make_sampler(DATA, config, 0, rows), CPU)
        sampler = make_sampler(DATA, config, 0, rows)
        for update in (0, 1, 2, 3, 62, 63, 64, 65, 200, 7, 7):  # in order, jumping, and back
            assert_equal(feed.stage(update).batch(), sampler.sample(update))


def test_batches_are_fetched_ahead_by_another_thread() -> None:
    drawn: list[tuple[int, str]] = []
    third = threading.Event()

    class Watched(WindowSampler):
        def sample(self, update: int) -> WindowBatch:
            drawn.append((update, threading.current_thread().name))
            if update == 2:
                third.set()
            return super().sample(update)

    feed = PrefetchingFeed(Watched(DATA, 5, 8, 0), CPU)
    feed.stage(0)
    assert third.wait(timeout=60)
    assert [update for update, _ in drawn] == [0, 1, 2]
    assert all("dmamba" in name for _, name in drawn)


def test_a_sampler_that_fails_ahead_of_time_is_heard_in_time() -> None:
    class Failing(WindowSampler):
        def sample(self, update: int) -> WindowBatch:
            if update == 1:
                raise OSError("the disk is gone")
            return super().sample(update)

    feed = PrefetchingFeed(Failing(DATA, 5, 8, 0), CPU)
    feed.stage(0)
    with pytest.raises(OSError, match="disk"):
        feed.stage(1)


class OwnWay(WindowSampler):
    def sample(self, update: int) -> WindowBatch:
        return super().sample(update + 1)


def test_the_choice() -> None:
    sampler = WindowSampler(DATA, 5, 8, 0)
    assert isinstance(make_feed(sampler, make_config(), CPU), HostFeed)
    assert isinstance(make_feed(sampler, make_config(data_device="cpu"), CPU), HostFeed)
    resident = make_feed(sampler, make_config(data_device="device"), CPU)
    assert isinstance(resident, ResidentFeed)
    with pytest.raises(ConfigError, match=r"OwnWay.*data_device=\"auto\""):
        make_feed(OwnWay(DATA, 5, 8, 0), make_config(data_device="device"), CPU)


@pytest.mark.parametrize(("free", "fits"), [(0.3, False), (1.5, False), (2.5, True)])
def test_room_on_a_gpu(monkeypatch: pytest.MonkeyPatch, free: float, fits: bool) -> None:
    """At half of what is free, ``"auto"`` keeps the dataset elsewhere."""
    n_bytes = count_resident_bytes(DATA)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * n_bytes), 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: n_bytes)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: n_bytes)
    sampler, device = WindowSampler(DATA, 5, 8, 0), torch.device("cuda", 0)
    assert (feeds._why_not_resident(sampler, device, "auto") is None) == fits
    assert (feeds._why_not_resident(sampler, device, "device") is None) == (free > 1.0)


def test_a_dataset_stays_where_it_is_while_it_is_learnt_from() -> None:
    model = tiny_model(data_device="device").fit(DATA, 2)
    updater = model._updater
    assert updater is not None
    assert isinstance(updater._feed, ResidentFeed)
    windows = updater._feed.windows
    model.fit(DATA, 2)
    assert updater._feed.windows is windows
    model.fit(random_trajectories((9, 9)), 2)
    assert updater._feed.windows is not windows
