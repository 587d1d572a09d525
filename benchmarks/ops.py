"""Time the operations against their reference and against mambapy's parallel scan.

Run ``python -m benchmarks.ops``. Contenders take turns, so that a busy machine is busy for all of
them alike; the medians are printed. Token counts are about the same at every length.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from mambapy.pscan import pscan
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from sb3_dmamba.ops import causal_conv1d, selective_scan

CHANNELS, STATES, TAPS = 256, 16, 4
SIZES = ((64, 60), (25, 150), (12, 300), (6, 600), (3, 1500))  # (B, L)

Run = Callable[[], object]


def make_inputs(batch: int, length: int) -> dict[str, Tensor]:
    """Make the scan's inputs as the mixer gives them: slices of bigger buffers."""
    gates = torch.randn(batch, length, 2 * CHANNELS)
    projected = torch.randn(batch, length, 8 + 2 * STATES)
    inputs = {
        "u": torch.randn(batch, length, CHANNELS),
        "delta": torch.randn(batch, length, CHANNELS),
        "A": -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1),
        "B": projected[..., 8 : 8 + STATES],
        "C": projected[..., 8 + STATES :],
        "D": torch.ones(CHANNELS),
        "z": gates[..., CHANNELS:],
        "delta_bias": torch.full((CHANNELS,), -4.0),
    }
    return {name: x.detach().requires_grad_() for name, x in inputs.items()}


def mambapy_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Compute the scan as mambapy 1.2 does, on its parallel scan."""
    step = functional.softplus(delta + delta_bias)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), (step * u).unsqueeze(-1) * B.unsqueeze(2))
    y: Tensor = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y * functional.silu(z)


def contenders(batch: int, length: int, peers: bool) -> dict[str, Callable[..., Tensor]]:
    """Return the scans to compare, as functions of the inputs."""

    def on(backend: str) -> Callable[..., Tensor]:
        return lambda **inputs: selective_scan(**inputs, delta_softplus=True, backend=backend)

    scans: dict[str, Callable[..., Tensor]] = {"cpu": on("cpu")}
    if peers:
        scans |= {"reference": on("reference"), "mambapy": mambapy_scan}
    return scans


def measure(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Return each run's median seconds; they take turns after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def scan_runs(batch: int, length: int, peers: bool) -> dict[str, Run]:
    """Return the forward runs and the forward and backward runs at one size."""
    inputs = make_inputs(batch, length)
    weight = torch.randn(batch, length, CHANNELS)
    runs: dict[str, Run] = {}
    for name, scan in contenders(batch, length, peers).items():

        def forward(scan: Callable[..., Tensor] = scan) -> object:
            with torch.no_grad():
                return scan(**inputs)

        def both(scan: Callable[..., Tensor] = scan) -> object:
            return torch.autograd.grad(scan(**inputs), list(inputs.values()), weight)

        runs |= {f"{name} forward": forward, f"{name} both": both}
    return runs


def scan_table(threads: int, repeats: int, peers: bool) -> Table:
    """Time the scan at every size."""
    table = Table(title=f"selective_scan, D {CHANNELS}, N {STATES}, {threads} thread(s)")
    for column in ("B", "L", "backend", "forward ms", "forward + backward ms", "ns a token"):
        table.add_column(column, justify="right")
    for batch, length in SIZES:
        medians = measure(scan_runs(batch, length, peers), repeats)
        for name in contenders(batch, length, peers):
            forward, both = medians[f"{name} forward"], medians[f"{name} both"]
            cells = (f"{forward * 1e3:.2f}", f"{both * 1e3:.2f}")
            per_token = f"{both * 1e9 / (batch * length):.0f}"
            table.add_row(str(batch), str(length), name, *cells, per_token)
        table.add_section()
    return table


def convolution_runs() -> dict[str, Run]:
    """Return the convolution's runs at the training size."""
    x = torch.randn(64, 60, 2 * CHANNELS)[..., :CHANNELS].detach().requires_grad_()
    weight = torch.randn(CHANNELS, TAPS, requires_grad=True)
    bias = torch.randn(CHANNELS, requires_grad=True)
    grad = torch.randn(64, 60, CHANNELS)

    def make(backend: str) -> Run:
        def run() -> object:
            y = causal_conv1d(x, weight, bias, activation="silu", backend=backend)
            return torch.autograd.grad(y, [x, weight, bias], grad)

        return run

    return {f"causal_conv1d, B 64 L 60, {name}": make(name) for name in ("cpu", "reference")}


def acting_runs() -> dict[str, Run]:
    """Return one step of acting, for one environment."""
    inputs = {name: x.detach() for name, x in make_inputs(1, 1).items()}
    state = torch.randn(1, CHANNELS, STATES)
    taps, past = torch.randn(CHANNELS, TAPS), torch.randn(1, TAPS - 1, CHANNELS)

    def scan(backend: str) -> Run:
        return lambda: selective_scan(
            **inputs,
            delta_softplus=True,
            initial_state=state,
            return_final_state=True,
            backend=backend,
        )

    def convolution(backend: str) -> Run:
        return lambda: causal_conv1d(
            inputs["u"],
            taps,
            inputs["D"],
            activation="silu",
            initial_state=past,
            return_final_state=True,
            backend=backend,
        )

    runs: dict[str, Run] = {}
    for backend in ("cpu", "reference"):
        runs[f"selective_scan, acting, {backend}"] = scan(backend)
        runs[f"causal_conv1d, acting, {backend}"] = convolution(backend)
    return runs


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-peers", action="store_true", help="time the cpu backend alone")
    options = parser.parse_args()
    console = Console()
    for threads in options.threads:
        torch.set_num_threads(threads)
        console.print(scan_table(threads, options.repeats, not options.no_peers))
        small = Table(title=f"the rest, {threads} thread(s)")
        for column in ("what", "microseconds"):
            small.add_column(column, justify="right")
        for runs, repeats in ((convolution_runs(), 3 * options.repeats), (acting_runs(), 2000)):
            for name, seconds in measure(runs, repeats).items():
                small.add_row(name, f"{seconds * 1e6:.1f}")
        console.print(small)


if __name__ == "__main__":
    main()
