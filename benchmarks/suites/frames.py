"""Memory and speed of Atari frames: converting a replay, drawing windows, beside d3rlpy."""

from __future__ import annotations

import functools
import gzip
import io
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Agreement, Candidate, Contender, race
from benchmarks.peak import resident_memory
from benchmarks.peers import make_buffer, require_d3rlpy
from benchmarks.reports import Column, Report, Table
from benchmarks.request import Request
from sb3_dmamba import Trajectories, load_trajectories
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.data.sources.dopamine import MEMBERS, find_checkpoints
from sb3_dmamba.errors import ConfigError

_OURS, _PEER = "ours", "d3rlpy's frame-stacking slicer"
MOST_MEMORY = 1.5e9  # bytes above the start of a process, beyond the batch itself
LEAST_TIMES_AS_FAST = 10
LARGEST_SHARE = 0.25  # of d3rlpy's batch

_METHOD = (
    "a recorded DQN replay is tiled to half a million frames in one checkpoint, converted to a "
    "store in one process and drawn from in another, which say how far above its start their "
    "memory went. Then batches are drawn from the replay as it is, in memory. Before the "
    "stopwatch, our stacks are compared with those of the episodes, frame by frame."
)
_MEMORY = (
    Column("name", ""),
    Column("above", "above the start [MB]", ",.1f", 1e-6),
    Column("seconds", "s", ",.3f"),
    Column("size", "result [MB]", ",.1f", 1e-6),
    Column("before", "before [MB]", ",.1f", 1e-6),
    Column("peak", "peak [MB]", ",.1f", 1e-6),
)
_SPEED = (
    Column("name", ""),
    Column("against peer", "time against d3rlpy", ".3f", 1.0, "x"),
    Column("size ratio", "size against d3rlpy", ".3f", 1.0, "x"),
    Column("seconds", "s", ".4f"),
    Column("low", "quartiles", ".4f"),
    Column("high", "", ".4f"),
    Column("size", "observations [MB]", ",.1f", 1e-6),
    Column("drawing", "peak while drawing [MB]", ",.1f", 1e-6),
)


def tile(logs: Path, folder: Path, n_frames: int) -> int:
    """Write one checkpoint of at least ``n_frames`` rows, the replay's over and over.

    Gzip files may be put one behind the other, so every file is packed again only once. The last
    row of the replay ends its episode, so that the next round begins with a new one.

    Returns:
        Rows written.
    """
    numbers = find_checkpoints(logs)
    folder.mkdir(parents=True)
    n_rows = 0
    for member in MEMBERS:
        packed: list[tuple[bytes, int]] = []
        for number in numbers:
            with gzip.open(logs / f"$store$_{member}_ckpt.{number}.gz") as file:
                array = np.load(file)
            if member == "terminal" and number == numbers[-1]:
                array[-1] = 1
            packed.append((gzip.compress(array.tobytes(), 6), len(array)))
        rounds = -(-n_frames // sum(count for _, count in packed))
        n_rows = rounds * sum(count for _, count in packed)
        with (folder / f"$store$_{member}_ckpt.0.gz").open("wb") as out:
            out.write(gzip.compress(_header(array, n_rows)))
            for _ in range(rounds):
                for block, _ in packed:
                    out.write(block)
    return n_rows


def _header(array: np.ndarray, n_rows: int) -> bytes:
    header = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(array[:1])
    np.lib.format.write_array_header_1_0(header, {**described, "shape": (n_rows, *array.shape[1:])})
    return header.getvalue()


def convert(folder: Path, store: Path) -> dict[str, float]:
    """Convert a tiled replay; run in a process of its own."""
    before = resident_memory()
    start = time.perf_counter()
    data = load_trajectories(folder, game="Breakout", store=store)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in store.iterdir())
    return {
        "steps": data.n_steps,
        "episodes": len(data),
        "seconds": seconds,
        "size": size,
        "before": before,
        "peak": resident_memory(),
    }


def draw(store: Path, batch_size: int, context_length: int, n_batches: int) -> dict[str, float]:
    """Draw batches from a store; run in a process of its own."""
    before = resident_memory()
    sampler = WindowSampler(load_trajectories(store), context_length, batch_size)
    start = time.perf_counter()
    for update in range(n_batches):
        batch = sampler.sample(update)
    seconds = (time.perf_counter() - start) / n_batches
    tensors = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    size = sum(tensor.nbytes for tensor in (*tensors, batch.padding_mask))
    return {"seconds": seconds, "size": size, "before": before, "peak": resident_memory()}


def in_a_process_of_its_own(*arguments: object) -> dict[str, float]:
    """Run one of the two above and return what it found."""
    command = [sys.executable, "-m", "benchmarks.suites.frames", *map(str, arguments)]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def check_stacks(data: Trajectories, context_length: int) -> Agreement:
    """Compare windows with what stacking their episodes one step at a time gives."""
    n_wrong = 0
    steps = np.random.default_rng(1).integers(data.n_steps, size=8)
    firsts = [*steps, 0, data.episode_offsets[1] - 2]  # a beginning, and an end
    batch = WindowSampler(data, context_length, len(firsts)).window_at(np.array(firsts))
    for row, step in enumerate(firsts):
        episode = int(np.searchsorted(data.episode_offsets, step, side="right")) - 1
        first = int(data.episode_offsets[episode])
        for within in range(min(context_length, int(data.episode_offsets[episode + 1] - step))):
            for back in range(data.frame_stack):
                at = step + within - back
                expected = data.observations[at] if at >= first else 0
                found = batch.observations[row, within, data.frame_stack - 1 - back].numpy()
                n_wrong += int(not (found == expected).all())
    return Agreement("frames of windows", float(n_wrong), 0.0)


def measure(request: Request) -> Report:
    """Convert a tiled replay, draw from it, and draw from the replay beside d3rlpy.

    Raises:
        ConfigError: No replay is given.
    """
    if request.replay is None:
        raise ConfigError(
            "frames needs a recorded DQN replay of Breakout: give its folder by --replay"
        )
    n_frames, shape = (2000, (4, 4)) if request.quick else (500_000, (128, 30))
    memory, failures = _measure_memory(request.replay, n_frames, shape, request.quick)
    data = load_trajectories(request.replay, game="Breakout")
    candidates = [
        Candidate(_OURS, functools.partial(_make_ours, data, shape)),
        Candidate(_PEER, functools.partial(_make_theirs, data, shape)),
    ]
    outcome = race(candidates, request.make_timer(5))
    outcome.add_ratio("against peer", _PEER)
    peers = [row["size"] for row in outcome.rows if row["name"] == _PEER]
    for row in outcome.rows:
        row["size ratio"] = row["size"] / peers[0] if peers else None
    title = f"A batch of {shape[0]} x {shape[1]} stacks of 4 frames"
    speed = Table("speed", title, _SPEED, outcome.rows)
    if peers and not request.quick:
        failures += _find_failures(outcome.rows)
    return Report(
        "frames", "Atari frames", _METHOD, [memory, speed], [], outcome.left_out, failures
    )


def _find_failures(rows: list[dict[str, Any]]) -> list[str]:
    failures = []
    for row in rows:
        if row["name"] != _OURS:
            continue
        faster = 1 / row["against peer"]
        if faster < LEAST_TIMES_AS_FAST:
            failures.append(f"{faster:.1f} times as fast as d3rlpy, not {LEAST_TIMES_AS_FAST}")
        if row["size ratio"] > LARGEST_SHARE:
            failures.append(f"{row['size ratio']:.2f} of d3rlpy's bytes, not {LARGEST_SHARE}")
    return failures


def _measure_memory(
    replay: Path, n_frames: int, shape: tuple[int, int], quick: bool
) -> tuple[Table, list[str]]:
    """Convert and draw, each in a process of its own, and compare with the limit."""
    with tempfile.TemporaryDirectory() as folder:
        tiled, store = Path(folder) / "tiled", Path(folder) / "store"
        n_rows = tile(replay, tiled, n_frames)
        converted = in_a_process_of_its_own("convert", tiled, store)
        n_batches = 3 if quick else 100
        drawn = in_a_process_of_its_own("draw", store, *shape, n_batches)
    rows = []
    failures = []
    for name, found, own in (
        (f"conversion to {converted['steps']:,.0f} steps", converted, 0.0),
        (f"a batch of {shape[0]} x {shape[1]} stacks, of {n_batches}", drawn, drawn["size"]),
    ):
        above = found["peak"] - found["before"]
        rows.append({"name": name, **found, "above": above})
        if above - own >= MOST_MEMORY:
            failures.append(f"{name} took {above / 1e6:,.0f} MB")
    title = f"{n_rows:,} rows in one checkpoint, tiled from a replay"
    return Table("memory", title, _MEMORY, rows), failures


def _make_ours(data: Trajectories, shape: tuple[int, int]) -> Contender:
    sampler = WindowSampler(data, shape[1], shape[0])
    n_drawn = 0

    def draw() -> Any:
        nonlocal n_drawn
        n_drawn += 1
        return sampler.sample(n_drawn)

    return Contender(draw, functools.partial(check_stacks, data, shape[1]), _weigh(draw))


def _make_theirs(data: Trajectories, shape: tuple[int, int]) -> Contender:
    slicer = require_d3rlpy().dataset.FrameStackTrajectorySlicer(n_frames=data.frame_stack)
    buffer = make_buffer(data, slicer)

    def draw() -> Any:
        return buffer.sample_trajectory_batch(*shape)

    def check() -> Agreement:
        expected = (*shape, data.frame_stack, *data.observations.shape[1:])
        return Agreement("shapes of batches", float(draw().observations.shape != expected), 0.0)

    return Contender(draw, check, _weigh(draw))


def _weigh(draw: Callable[[], Any]) -> dict[str, float]:
    """Return the bytes of a batch's observations, and the most while it is drawn."""
    tracemalloc.start()
    batch = draw()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"size": float(batch.observations.nbytes), "drawing": float(most)}


if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    if part == "convert":
        print(json.dumps(convert(Path(arguments[0]), Path(arguments[1]))))
    else:
        print(json.dumps(draw(Path(arguments[0]), *map(int, arguments[1:]))))
