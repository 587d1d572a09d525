"""Drawing a batch beside d3rlpy."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from benchmarks.contenders import Agreement, Candidate, Contender, race
from benchmarks.peers import make_buffer
from benchmarks.pictures import draw_bars
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from sb3_dmamba import Trajectories, load_trajectories
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.experiments.efficiency import OBSERVATION_SPACE, make_trajectories
from sb3_dmamba.training.batches import ResidentFeed

_PEER = "d3rlpy"
_METHOD = (
    "a batch of windows. Ours are torch tensors with time steps and a mask, on the device; "
    "d3rlpy's are NumPy arrays, which its update still converts and copies. Before the stopwatch, "
    "our windows are compared with slices of the episodes, value by value, and d3rlpy's batch has "
    "to hold as many steps in the same shape."
)


@dataclass(frozen=True)
class Case:
    """A shape of data: a title, observations, episodes and the steps in each."""

    title: str
    space: spaces.Box
    n_episodes: int
    length: int


def make_cases(quick: bool) -> dict[str, Case]:
    """Return Hopper's shape and that of images, by a name for files."""
    images = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    n_vectors, n_images = (4, 2) if quick else (600, 20)
    return {
        "vectors": Case("Hopper's 11 numbers", OBSERVATION_SPACE, n_vectors, 333),
        "images": Case("images, 4 frames of 84 x 84", images, n_images, 40 if quick else 200),
    }


def measure(request: Request) -> Report:
    """Time the drawing of a batch."""
    tables, pictures = [], []
    left_out: dict[str, str] = {}
    shape = request.shape
    for name, case in make_cases(request.quick).items():
        data = make_trajectories(case.n_episodes, case.length, case.space)
        with _candidates(data, request) as candidates:
            outcome = race(candidates, request.make_timer())
        outcome.add_ratio("against peer", _PEER)
        title = f"A batch of {shape.batch_size} windows of {shape.context} steps: {case.title}"
        tables.append(Table(name, title, _COLUMNS, outcome.rows))
        bars = {
            row["name"]: (1e3 * row["seconds"], 1e3 * row["low"], 1e3 * row["high"])
            for row in outcome.rows
        }
        draw = functools.partial(draw_bars, title=title, label="ms a batch", bars=bars)
        pictures.append(Picture(f"data_{name}", title, draw))
        left_out |= outcome.left_out
    return Report("data", "Drawing a batch", _METHOD, tables, pictures, left_out)


_COLUMNS = (
    Column("name", ""),
    Column("against peer", "against d3rlpy", ".3f", 1.0, "x"),
    Column("seconds", "ms", ".3f", 1e3),
    Column("low", "quartiles", ".3f", 1e3),
    Column("high", "", ".3f", 1e3),
    Column("megabytes", "batch [MB]", ".2f"),
)


@contextmanager
def _candidates(data: Trajectories, request: Request) -> Iterator[list[Candidate]]:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        data.save(store)
        ours = functools.partial(_make_ours, data, data, request)
        mapped = functools.partial(_make_ours, load_trajectories(store), data, request)
        yield [
            Candidate("ours, in memory", ours),
            Candidate("ours, from a store on disk", mapped),
            Candidate("ours, kept on the device", functools.partial(_make_resident, data, request)),
            Candidate(_PEER, functools.partial(_make_theirs, data, request)),
        ]


def _make_ours(source: Trajectories, data: Trajectories, request: Request) -> Contender:
    sampler = WindowSampler(source, request.shape.context, request.shape.batch_size)
    n_drawn = 0

    def draw() -> WindowBatch:
        nonlocal n_drawn
        n_drawn += 1
        return sampler.sample(n_drawn).to(request.device)

    facts = {"megabytes": batch_bytes(sampler.sample(0)) / 1e6}
    return Contender(draw, lambda: check_windows(sampler, data), facts)


def _make_resident(data: Trajectories, request: Request) -> Contender:
    """Return the batches of a dataset that lies on the device, as training gathers them there."""
    sampler = WindowSampler(data, request.shape.context, request.shape.batch_size)
    feed = ResidentFeed(sampler, torch.device(request.device))
    n_drawn = 0

    def draw() -> WindowBatch:
        nonlocal n_drawn
        n_drawn += 1
        return feed.stage(n_drawn).batch()

    def check() -> Agreement:
        pairs = [(feed.stage(n).batch().to("cpu"), sampler.sample(n)) for n in range(3)]
        fields = ("observations", "actions", "returns_to_go", "timesteps", "padding_mask")
        n_wrong = sum(
            not torch.equal(getattr(own, field), getattr(other, field))
            for own, other in pairs
            for field in fields
        )
        return Agreement("batches and those of the host", float(n_wrong), 0.0)

    return Contender(draw, check, {"megabytes": batch_bytes(draw()) / 1e6})


def batch_bytes(batch: WindowBatch) -> int:
    """Return the size of a batch's tensors."""
    tensors = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    return sum(each.nbytes for each in (*tensors, batch.padding_mask))


def check_windows(sampler: WindowSampler, data: Trajectories) -> Agreement:
    """Compare windows with slices of the episodes, of which all are as long."""
    steps = np.random.default_rng(1).integers(data.n_steps, size=16)
    batch = sampler.window_at(steps)
    worst = 0.0
    for row, step in enumerate(steps):
        episode, start = divmod(int(step), int(data.lengths[0]))
        whole: Mapping[str, Any] = {
            "observations": data[episode].observations,
            "actions": data[episode].actions,
        }
        for name, values in whole.items():
            expected = np.zeros((sampler.context_length, *values.shape[1:]), dtype=np.float64)
            real = values[start : start + sampler.context_length]
            expected[: len(real)] = real
            found = getattr(batch, name)[row].numpy()
            worst = max(worst, float(np.abs(found - expected).max()))
    return Agreement("windows and the episodes they come from", worst, 0.0)


def _make_theirs(data: Trajectories, request: Request) -> Contender:
    buffer = make_buffer(data)
    size, context = request.shape.batch_size, request.shape.context

    def draw() -> Any:
        return buffer.sample_trajectory_batch(size, context)

    def check() -> Agreement:
        wanted = (size, context, *data.observation_space.shape)
        return Agreement("shapes of batches", float(draw().observations.shape != wanted), 0.0)

    batch = draw()
    arrays = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    return Contender(draw, check, {"megabytes": sum(each.nbytes for each in arrays) / 1e6})
