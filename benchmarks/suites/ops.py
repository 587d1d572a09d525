"""Each operation in each backend, and its bandwidth on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.contenders import Agreement, Candidate, Contender, gate, make_row
from benchmarks.reports import Column, Report, Table
from benchmarks.request import Request
from benchmarks.suites.ops_cases import (
    TOLERANCES,
    Case,
    convolution_case,
    disagreement,
    gradient_weight,
    scan_case,
    step_case,
)
from benchmarks.suites.ops_cases import Contender as Implementation
from benchmarks.timing import Run, Timer

CPU_SIZES = ((64, 60), (25, 150), (12, 300), (6, 600), (3, 1500))  # (B, L), as many tokens
GPU_SIZES = ((64, 60), (64, 3000), (1, 3000), (25, 150), (1, 60))

_METHOD = (
    "operations at the sizes of a Hopper network. Before the stopwatch, outputs and all gradients "
    "on two of the sequences are compared with the reference's in float64. On a GPU a run is "
    "recorded as a CUDA graph and its replays are timed, so that the time is the device's and not "
    "Python's; bandwidth counts the bytes that the best algorithm reads and writes, beside what a "
    "copy of 1 GiB reaches on the same card."
)


def measure(request: Request) -> Report:
    """Time every case in every backend."""
    device = torch.device(request.device)
    timer = request.make_timer(5, turn_seconds=0.1)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for case in make_cases(device, request.quick):
        some, missing = time_case(case, timer)
        rows += some
        left_out |= {
            f"{case.title} ({case.batch}, {case.length}), {n}": missing[n] for n in missing
        }
    notes = []
    if request.on_gpu:
        copy = measure_copy(timer)
        for row in rows:
            row["of copy"] = row["bandwidth"] / copy
        notes.append(f"A copy reaches {copy / 1e9:,.0f} GB/s{_describe_nominal(device)}.")
    title = "Operations: 256 channels, 16 states, rank 8, 4 taps"
    table = Table("ops", title, make_columns(request), rows, notes)
    return Report("ops", "Operations", _METHOD, [table], [], left_out)


def make_columns(request: Request) -> list[Column]:
    """Return the columns, with bandwidth on a GPU."""
    bandwidth = [Column("of copy", "of a copy", ".0%"), Column("bandwidth", "GB/s", ",.0f", 1e-9)]
    return [
        Column("operation", "operation"),
        Column("batch", "B", ","),
        Column("length", "L", ","),
        Column("dtype", "dtype"),
        Column("name", "backend"),
        Column("against first", "against the first", ".2f", 1.0, "x"),
        *(bandwidth if request.on_gpu else []),
        Column("forward", "forward us", ",.1f", 1e6),
        Column("both", "forward + backward us", ",.1f", 1e6),
        Column("gate", "off by"),
    ]


def make_cases(device: torch.device, quick: bool = False) -> Iterator[Case]:
    """Make every case for a device, one at a time."""
    if quick:
        yield scan_case(2, 12, torch.float32, device, low_rank=False)
        yield convolution_case(2, 12, torch.float32, device)
        yield step_case(1, device)
        return
    on_gpu = device.type == "cuda"
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        for batch, length in GPU_SIZES if on_gpu else CPU_SIZES:
            yield scan_case(batch, length, dtype, device, low_rank=False)
            yield scan_case(batch, length, dtype, device, low_rank=True)
        for batch, length in ((64, 60), (64, 3000)) if on_gpu else ((64, 60),):
            yield convolution_case(batch, length, dtype, device)
    for batch in (1, 100):
        yield step_case(batch, device)


def time_case(case: Case, timer: Timer) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time the implementations of a case that agree with its reference.

    Returns:
        A row each, the fastest backend's first, and why others were left out.
    """
    like = next(iter(case.inputs.values()))
    candidates = [
        Candidate(name, functools.partial(_as_contender, case, each, like.dtype))
        for name, each in case.contenders.items()
    ]
    ready, left_out = gate(candidates)
    runs: dict[tuple[str, int], Run] = {}
    for name in ready:
        for place, run in enumerate(make_runs(case, case.contenders[name])):
            runs[name, place] = run if like.device.type == "cpu" else capture(run)
    timings = timer.measure(runs)
    rows: list[dict[str, Any]] = []
    for name, (_, agreement) in ready.items():
        last = 1 if case.both_bytes else 0
        row = make_row(name, timings[name, last], agreement)
        row |= {"operation": case.title, "batch": case.batch, "length": case.length}
        row["dtype"] = str(like.dtype).removeprefix("torch.")
        row["forward"] = timings[name, 0].median
        row["both"] = timings[name, 1].median if last else None
        row["bandwidth"] = (case.forward_bytes, case.both_bytes)[last] / row["seconds"]
        row["against first"] = row["seconds"] / (rows[0]["seconds"] if rows else row["seconds"])
        rows.append(row)
    return rows, left_out


def _as_contender(case: Case, implementation: Implementation, dtype: torch.dtype) -> Contender:
    def check() -> Agreement:
        error = disagreement(case, implementation)
        return Agreement("outputs and gradients", error, TOLERANCES[dtype])

    return Contender(lambda: None, check)


def make_runs(case: Case, implementation: Implementation) -> list[Run]:
    """Return the forward run, and where there is one the run with the backward pass."""
    leaves = implementation.take(case.inputs, None, case.both_bytes > 0)

    def forward() -> object:
        with torch.no_grad():
            return implementation.run(leaves)

    if not case.both_bytes:
        return [forward]
    weight = gradient_weight(implementation.run(leaves))

    def both() -> object:
        return torch.autograd.grad(implementation.run(leaves), list(leaves.values()), weight)

    return [forward, both]


def capture(run: Run) -> Callable[[], None]:
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


def measure_copy(timer: Timer) -> float:
    """Return the bytes a second, read and written, of a copy of 1 GiB on the GPU."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    seconds = timer.measure({"copy": lambda: target.copy_(source)})["copy"].median
    return 2 * source.numel() / seconds


def _describe_nominal(device: torch.device) -> str:
    """Name the card's nominal bandwidth, where torch knows its memory clock and bus."""
    properties = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "memory_clock_rate", 0)  # kHz
    width = getattr(properties, "memory_bus_width", 0)  # bits
    if not clock or not width:
        return ""
    return f", of nominally {2 * clock * 1e3 * width / 8 / 1e9:,.0f}"
