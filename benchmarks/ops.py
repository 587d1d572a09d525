"""Time the operations' backends, side by side: python -m benchmarks.ops.

Nothing is timed before its outputs and gradients, on two of the sequences, agree with the
reference in float64. Contenders take turns, so that a busy machine is busy for all of them alike;
medians are printed. On a GPU a run is captured as a CUDA graph and its replays are timed, so the
time is the device's and not Python's; the bandwidth is that of the bytes that the best algorithm
has to read and write, beside what a copy of 1 GiB reaches on the same card.

``--output`` is a folder for the tables in Markdown and JSON. ``--tune`` times the cuts of Triton's
scan instead, on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ops_cases import (
    TOLERANCES,
    Case,
    Contender,
    convolution_case,
    disagreement,
    gradient_weight,
    scan_case,
    step_case,
)

CPU_SIZES = ((64, 60), (25, 150), (12, 300), (6, 600), (3, 1500))  # (B, L), as many tokens
GPU_SIZES = ((64, 60), (64, 3000), (1, 3000), (25, 150), (1, 60))
COLUMNS = ("operation", "B", "L", "dtype", "backend", "forward us", "forward + backward us")

REPLAYS = 10  # between two events: a short kernel is near their resolution

Run = Callable[[], object]
Row = dict[str, Any]


def cases(device: torch.device) -> Iterator[Case]:
    """Make every case for a device, one at a time."""
    on_gpu = device.type == "cuda"
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        for batch, length in GPU_SIZES if on_gpu else CPU_SIZES:
            yield scan_case(batch, length, dtype, device, low_rank=False)
            yield scan_case(batch, length, dtype, device, low_rank=True)
        for batch, length in ((64, 60), (64, 3000)) if on_gpu else ((64, 60),):
            yield convolution_case(batch, length, dtype, device)
    for batch in (1, 100):
        yield step_case(batch, device)


def make_runs(case: Case, contender: Contender) -> list[Run]:
    """Return the forward run, and where there is one the run with the backward pass."""
    leaves = contender.take(case.inputs, None, case.both_bytes > 0)

    def forward() -> object:
        with torch.no_grad():
            return contender.run(leaves)

    if not case.both_bytes:
        return [forward]
    weight = gradient_weight(contender.run(leaves))

    def both() -> object:
        return torch.autograd.grad(contender.run(leaves), list(leaves.values()), weight)

    return [forward, both]


def time_case(case: Case, repeats: int) -> list[Row]:
    """Time the contenders of a case that agree with its reference."""
    dtype = next(iter(case.inputs.values())).dtype
    device = next(iter(case.inputs.values())).device
    rows: dict[str, Row] = {}
    runs: dict[tuple[str, int], Run] = {}
    for name, contender in case.contenders.items():
        error = disagreement(case, contender)
        rows[name] = {
            "operation": case.title,
            "B": case.batch,
            "L": case.length,
            "dtype": str(dtype).removeprefix("torch."),
            "backend": name,
            "error": error,
        }
        if error < TOLERANCES[dtype]:  # False for NaN
            for place, run in enumerate(make_runs(case, contender)):
                runs[name, place] = run if device.type == "cpu" else capture(run)
    for (name, place), seconds in measure(runs, repeats, device).items():
        moved = (case.forward_bytes, case.both_bytes)[place]
        rows[name][COLUMNS[5 + place]] = seconds * 1e6
        rows[name][f"GB/s {('forward', 'both')[place]}"] = moved / seconds / 1e9
    return list(rows.values())


def capture(run: Run) -> Run:
    """Return the replay of a run as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(runs: dict[Any, Run], repeats: int, device: torch.device) -> dict[Any, float]:
    """Return each run's median seconds; they take turns, after one round of warming up."""
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            seconds = _time_on_gpu(run) if device.type == "cuda" else _time_on_cpu(run)
            if repeat:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _time_on_cpu(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _time_on_gpu(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(REPLAYS):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / REPLAYS / 1e3


def copy_bandwidth() -> float:
    """Return the bytes a second, read and written, of a copy of 1 GiB on the GPU."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> object:
        return target.copy_(source)

    return 2 * source.numel() / measure({"copy": copy}, 20, source.device)["copy"]


def tune(device: torch.device, repeats: int) -> list[Row]:
    """Time the scan in Triton under other cuts than those it has."""
    scan = importlib.import_module("sb3_dmamba.ops.selective_scan.triton")
    names = ("TILE", "HISTORY", "STATES_A_THREAD", "MAX_BLOCK_D")
    before = [getattr(scan, name) for name in names]
    rows = []
    for cut in ((8, 4, 16, 32), (8, 4, 8, 32), (8, 4, 8, 16), (8, 2, 16, 32), (16, 4, 16, 32)):
        for name, value in zip(names, cut, strict=True):
            setattr(scan, name, value)
        for batch, length in GPU_SIZES:
            case = scan_case(batch, length, torch.float32, device, low_rank=True)
            case = case._replace(contenders={"triton": case.contenders["triton"]})
            (row,) = time_case(case, repeats)
            rows.append({**row, "backend": ", ".join(map("{} {}".format, names, cut))})
    for name, value in zip(names, before, strict=True):
        setattr(scan, name, value)
    return rows


def describe(device: torch.device) -> Row:
    """Say what was measured, on what, and when."""
    found: Row = {
        "date": datetime.date.today().isoformat(),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for name in ("triton", "mamba_ssm", "numba"):
        try:
            found[name] = importlib.import_module(name).__version__
        except (ImportError, AttributeError):
            found[name] = "none"
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["copy GB/s"] = copy_bandwidth() / 1e9
    return found


def make_table(rows: list[Row], machine: Row) -> list[list[str]]:
    """Return the rows as text, with their share of a copy's bandwidth on a GPU."""
    copy = machine.get("copy GB/s")
    headers = [*COLUMNS, *(["GB/s", "of a copy"] if copy else []), "error"]
    table = [headers]
    for row in rows:
        cells = [str(row[name]) for name in COLUMNS[:5]]
        cells += [f"{row[name]:.1f}" if name in row else "-" for name in COLUMNS[5:]]
        if copy:
            speed = row.get("GB/s both", row.get("GB/s forward"))
            cells += ["-", "-"] if speed is None else [f"{speed:.0f}", f"{speed / copy:.0%}"]
        table.append([*cells, f"{row['error']:.1e}"])
    return table


def write(folder: Path, name: str, rows: list[Row], machine: Row) -> None:
    """Write the rows as JSON, and as a table for the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    lines = [f"| {' | '.join(cells)} |" for cells in make_table(rows, machine)]
    lines.insert(1, "|---" * lines[0].count(" | ") + "|---|")
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    (folder / f"{name}.md").write_text("\n".join([facts, "", *lines, ""]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="on the CPU")
    parser.add_argument("--output", type=Path, help="folder for the tables")
    parser.add_argument("--tune", action="store_true", help="other cuts of Triton's scan")
    options = parser.parse_args()
    device, console = torch.device(options.device), Console(width=140)
    for threads in options.threads if device.type == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        machine = describe(device)
        console.print(machine)
        rows: list[Row] = []
        if options.tune:
            rows = tune(device, options.repeats)
        for case in () if options.tune else cases(device):
            longer = 50 if case.title == "mamba_step" and device.type == "cpu" else 1
            rows += time_case(case, longer * options.repeats)
        headers, *lines = make_table(rows, machine)
        table = Table(*headers)
        for line in lines:
            table.add_row(*line)
        console.print(table)
        if options.output is not None:
            name = "tune" if options.tune else f"ops_{device.type}_{threads}"
            write(options.output, name, rows, machine)


if __name__ == "__main__":
    main()
