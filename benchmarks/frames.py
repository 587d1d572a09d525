"""Memory and speed of Atari frames: converting a replay, drawing windows, beside d3rlpy.

``python -m benchmarks.frames REPLAY`` tiles a recorded DQN replay to half a million frames in one
checkpoint, converts that into a store in one process and draws batches from the store in another,
and prints how far above its start each process's memory went. It then draws from the replay as it
is, in memory, by turns from ours and from d3rlpy's frame-stacking slicer. Exits with 1 where one of
the limits below is missed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sb3_dmamba.data import Trajectories, WindowSampler, load_trajectories
from sb3_dmamba.data.sources.dqn_replay.files import MEMBERS, find_checkpoints
from sb3_dmamba.errors import MissingDependencyError

MB = 1e6
MOST_MEMORY = 1.5e9  # bytes above the start of a process, beyond the batch itself
LEAST_TIMES_AS_FAST = 10
LARGEST_SHARE = 0.25  # of d3rlpy's batch


def peak_memory() -> int:
    """Return the most bytes that were resident in this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, without what the parent had when it started this
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    before = peak_memory()
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
        "peak": peak_memory(),
    }


def draw(store: Path, batch_size: int, context_length: int, n_batches: int) -> dict[str, float]:
    """Draw batches from a store; run in a process of its own."""
    before = peak_memory()
    sampler = WindowSampler(load_trajectories(store), context_length, batch_size)
    start = time.perf_counter()
    for update in range(n_batches):
        batch = sampler.sample(update)
    seconds = (time.perf_counter() - start) / n_batches
    tensors = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    size = sum(tensor.nbytes for tensor in (*tensors, batch.padding_mask))
    return {"seconds": seconds, "size": size, "before": before, "peak": peak_memory()}


def in_a_process_of_its_own(*arguments: str) -> dict[str, float]:
    """Run one of the two above and return what it found."""
    command = [sys.executable, "-m", "benchmarks.frames", *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def check_stacks(data: Trajectories, context_length: int) -> None:
    """Raise unless windows are what stacking their episodes one step at a time gives."""
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
                if not (found == expected).all():
                    raise RuntimeError(f"the window from step {step} is not its episode's stacks")


def make_d3rlpy_buffer(data: Trajectories) -> Any:
    """Return d3rlpy's replay buffer of the same episodes, with its frame-stacking slicer."""
    try:
        from d3rlpy.dataset import (
            Episode,
            FrameStackTrajectorySlicer,
            create_infinite_replay_buffer,
        )
    except ImportError as error:
        raise MissingDependencyError("d3rlpy", "compare with its sampler", "d3rlpy") from error
    episodes = [
        Episode(e.observations[:, None], e.actions[:, None], e.rewards[:, None], e.terminated)
        for e in data
    ]
    return create_infinite_replay_buffer(
        episodes, trajectory_slicer=FrameStackTrajectorySlicer(n_frames=data.frame_stack)
    )


def compare(
    data: Trajectories, batch_size: int, context_length: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Draw from both by turns; median seconds, bytes of a batch, and most bytes while drawing."""
    check_stacks(data, context_length)
    sampler = WindowSampler(data, context_length, batch_size)
    buffer = make_d3rlpy_buffer(data)

    def theirs(_: int) -> Any:
        return buffer.sample_trajectory_batch(batch_size, context_length)

    functions: dict[str, Callable[[int], Any]] = {"sb3_dmamba": sampler.sample, "d3rlpy": theirs}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function(repeat)
            if repeat:  # warm by then
                times[name].append(time.perf_counter() - start)
    found = {}
    for name, function in functions.items():
        tracemalloc.start()
        batch = function(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        seconds = float(np.median(times[name]))
        found[name] = {"seconds": seconds, "size": batch.observations.nbytes, "peak": peak}
    return found


def report_memory(replay: Path, n_frames: int, shape: tuple[int, int], n_batches: int) -> bool:
    """Convert and draw, print the memory of both, and say whether it is within the limit."""
    with tempfile.TemporaryDirectory() as folder:
        tiled, store = Path(folder) / "tiled", Path(folder) / "store"
        n_rows = tile(replay, tiled, n_frames)
        arguments = [str(tiled), "--store", str(store), "--batches", str(n_batches)]
        arguments += ["--batch-size", str(shape[0]), "--context-length", str(shape[1])]
        converted = in_a_process_of_its_own(*arguments, "--stage", "convert")
        drawn = in_a_process_of_its_own(*arguments, "--stage", "draw")
    table = Table(title=f"{n_rows:,} rows in one checkpoint, tiled from a replay")
    for heading in ("", "seconds", "result [MB]", "before [MB]", "peak [MB]", "above [MB]"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in (
        (f"conversion to {converted['steps']:,} steps", converted),
        (f"a batch of {shape[0]} x {shape[1]} stacks, of {n_batches}", drawn),
    ):
        numbers = (*(found[key] for key in ("size", "before", "peak")), _above(found))
        table.add_row(name, f"{found['seconds']:.3f}", *(f"{n / MB:,.1f}" for n in numbers))
    Console().print(table)
    return _above(converted) < MOST_MEMORY and _above(drawn) - drawn["size"] < MOST_MEMORY


def report_speed(replay: Path, shape: tuple[int, int], repeats: int) -> bool:
    """Print ours beside d3rlpy's, and say whether it is as quick and small as it should be."""
    both = compare(load_trajectories(replay, game="Breakout"), *shape, repeats)
    table = Table(title=f"One batch of {shape[0]} x {shape[1]} stacks, median of {repeats}")
    for heading in ("", "seconds", "observations [MB]", "peak while drawing [MB]"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in both.items():
        sizes = (f"{found[key] / MB:,.1f}" for key in ("size", "peak"))
        table.add_row(name, f"{found['seconds']:.4f}", *sizes)
    ours, theirs = both["sb3_dmamba"], both["d3rlpy"]
    times_as_fast = theirs["seconds"] / ours["seconds"]
    ratios = (f"{ours[key] / theirs[key]:.3f}" for key in ("size", "peak"))
    table.add_row("ratio", f"{times_as_fast:.1f} times as fast", *ratios)
    Console().print(table)
    return times_as_fast >= LEAST_TIMES_AS_FAST and ours["size"] <= LARGEST_SHARE * theirs["size"]


def _above(found: dict[str, float]) -> float:
    return found["peak"] - found["before"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("replay", type=Path, help="folder with $store$_*.gz files")
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=30)
    parser.add_argument("--batches", type=int, default=100, help="batches drawn from the store")
    parser.add_argument("--repeats", type=int, default=5, help="batches compared with d3rlpy's")
    parser.add_argument("--stage", choices=["convert", "draw"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = options.batch_size, options.context_length
    if options.stage == "convert":
        print(json.dumps(convert(options.replay, options.store)))
        return
    if options.stage == "draw":
        print(json.dumps(draw(options.store, *shape, options.batches)))
        return

    fits = report_memory(options.replay, options.frames, shape, options.batches)
    is_quick = report_speed(options.replay, shape, options.repeats)
    sys.exit(0 if fits and is_quick else 1)


if __name__ == "__main__":
    main()
