"""One update beside its peers."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Candidate, Outcome, gate, race
from benchmarks.networks import Network, make_config, make_contender
from benchmarks.peers import make_peer_update
from benchmarks.pictures import draw_bars
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from benchmarks.timing import Timer
from sb3_dmamba import DecisionMambaConfig
from sb3_dmamba.experiments.efficiency import make_trajectories
from sb3_dmamba.machine import describe_machine
from sb3_dmamba.ops import available_backends

OURS, PEER = "ours: Mamba", "d3rlpy: Decision Transformer"
COMPILED = "d3rlpy: Decision Transformer, compile_graph=True"

DECOUPLED = "ours: Mamba, decoupled"

_METHOD = (
    "an update is a batch, forward, backward and AdamW, on noise in Hopper's shape; d3rlpy's batch "
    "is drawn beforehand, in its favour. Before the stopwatch, outputs and all gradients are "
    "compared with the plain torch reference's on equal weights, and single steps with windows; "
    "the blocks of mambapy and mamba-ssm hold our weights, and run without a CUDA graph unless a "
    "row says so; ours have one where fit() would. d3rlpy's network is another one, so it "
    "has to see as many steps, and its loss has to be finite and to fall. Contenders take turns; "
    "medians and quartiles. A projection multiplies, and is no measurement."
)


def networks(request: Request) -> dict[str, Network]:
    """Return the networks to time: mixers, precisions, backends, and peers' blocks."""
    bare = {"channel_mixing": False}
    found = {
        OURS: Network(bare),
        DECOUPLED: Network({**bare, "conditioning": "decoupled"}),
        "ours: Mamba, bf16": Network({**bare, "precision": "bf16"}),
        "ours: Mamba + MLP": Network({}),
        "ours: attention + MLP": Network({"mixer": "attention"}),
        "ours: convolution + MLP": Network({"mixer": "convolution"}),
    }
    for name in available_backends(request.device)[1:]:  # the first is what "auto" takes
        if name != "traceable":  # for exporting: as the reference, a loop
            found[f"ours: Mamba, backend={name}"] = Network({**bare, "backend": name})
    eager = {**bare, "cuda_graph": "off"}  # on a CPU all are
    found["the same network on mambapy's blocks"] = Network(eager, "mambapy")
    found["the same network on mamba_ssm.Mamba"] = Network(eager, "mamba_ssm")
    return found | (_only_on_gpu(bare, eager) if request.on_gpu else {})


def _only_on_gpu(bare: dict[str, Any], eager: dict[str, Any]) -> dict[str, Network]:
    """Return what differs there: graphs, the dataset's place, mamba-ssm in more than one way."""
    bf16 = {"precision": "bf16"}
    return {
        "ours: Mamba, tf32": Network({**bare, "precision": "tf32"}),
        "ours: Mamba, no CUDA graph": Network(eager),
        "ours: Mamba, dataset on the host": Network({**bare, "data_device": "cpu"}),
        "the same network on mamba_ssm.Mamba, bf16": Network({**eager, **bf16}, "mamba_ssm"),
        "the same network on mamba_ssm.Mamba, CUDA graph": Network(bare, "mamba_ssm"),
    }


def measure(request: Request) -> Report:
    """Time the updates."""
    shape = request.shape
    data = make_trajectories(20, 50 if request.quick else 1000)
    candidates = [
        Candidate(name, functools.partial(make_contender, network, data, request))
        for name, network in networks(request).items()
    ]
    for name, compiled in ((PEER, False), (COMPILED, True)):
        make = functools.partial(make_peer_update, data, request, compiled=compiled)
        candidates.append(Candidate(name, make))
    outcome = race(candidates, request.make_timer())
    busy = None if request.on_gpu else measure_beside_neighbours(candidates, request)
    outcome.add_ratio("against peer", PEER)
    outcome.add_ratio("against compiled", COMPILED)
    outcome.add_ratio("against ours", OURS)
    for row in outcome.rows:
        row["hours"] = row["seconds"] * request.updates / 3600
    title = (
        f"One update: width {shape.width}, {shape.n_layers} layers, K {shape.context}, "
        f"batch {shape.batch_size}"
    )
    return Report(
        "update",
        "One update",
        _METHOD,
        [
            Table("update", title, columns(request), outcome.rows, _notes(outcome, request)),
            *([busy] if busy else []),
        ],
        [Picture("update", title, _drawing(outcome, title))],
        outcome.left_out,
        [] if busy is None or request.quick else _find_collapsed(busy),
    )


LEAST_KEPT = 0.45  # of the rate alone, beside busy processes on half the cores
# Ends with the process that started it.
_NEIGHBOUR = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


def measure_beside_neighbours(candidates: list[Candidate], request: Request) -> Table:
    """Time updates alone, and beside processes that keep half of the cores busy."""
    chosen = [each for each in candidates if each.name in (OURS, DECOUPLED, PEER)]
    runs = {name: contender.run for name, (contender, _) in gate(chosen)[0].items()}
    n_busy = max(1, int(describe_machine().cores) // 2)
    timer = request.make_timer()
    alone = timer.measure(runs)
    with _busy_neighbours(n_busy):
        beside = timer.measure(runs)
    rows = [
        {
            "name": name,
            "kept": alone[name].median / beside[name].median,
            "alone": alone[name].median,
            "beside": beside[name].median,
            "neighbours": n_busy,
        }
        for name in runs
    ]
    named = [
        Column("name", ""),
        Column("kept", f"rate kept (at least {LEAST_KEPT})", ".2f", 1.0, "x"),
        Column("alone", "ms alone", ".2f", 1e3),
        Column("beside", "ms beside them", ".2f", 1e3),
        Column("neighbours", "busy processes"),
    ]
    return Table("busy", "One update beside busy processes", named, rows)


@contextlib.contextmanager
def _busy_neighbours(n_processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", _NEIGHBOUR]
    processes = [subprocess.Popen(command) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _find_collapsed(busy: Table) -> list[str]:
    return [
        f"{row['name']} keeps {row['kept']:.2f} of its rate beside {row['neighbours']} busy "
        f"processes, and should keep {LEAST_KEPT}"
        for row in busy.rows
        if row["name"] != PEER and row["kept"] < LEAST_KEPT
    ]


def columns(request: Request) -> list[Column]:
    """Return the table's columns, ratios first."""
    compiled = [Column("against compiled", "against it compiled", ".2f", 1.0, "x")]
    return [
        Column("name", ""),
        Column("against peer", "against d3rlpy", ".2f", 1.0, "x"),
        *(compiled if request.on_gpu else []),
        Column("against ours", "against ours", ".2f", 1.0, "x"),
        *COLUMNS,
        Column("hours", f"{request.updates:,} updates, projected [h]", ".2f"),
        Column("parameters", "parameters", ","),
        Column("gate", "off by"),
    ]


COLUMNS = (
    Column("seconds", "ms", ".2f", 1e3),
    Column("low", "quartiles", ".2f", 1e3),
    Column("high", "", ".2f", 1e3),
)


def _drawing(outcome: Outcome, title: str) -> Callable[[Path], None]:
    bars = {
        row["name"]: (1e3 * row["seconds"], 1e3 * row["low"], 1e3 * row["high"])
        for row in outcome.rows
    }
    return lambda path: draw_bars(path, title, "ms an update, with quartiles", bars)


def _notes(outcome: Outcome, request: Request) -> list[str]:
    """Say how much of an update its matrix products alone would take on a CPU."""
    seconds = outcome.seconds(OURS)
    if request.on_gpu or seconds is None:
        return []
    config = make_config(request, channel_mixing=False)
    work, peak = count_products(config), measure_peak(request)
    return [
        f"Matrix products: {work / 1e9:.3g} GFLOP an update, which would take "
        f"{work / peak / seconds:.0%} of it at the {peak / 1e9:.0f} GFLOP/s that a product of a "
        f"layer's size reaches here."
    ]


def count_products(config: DecisionMambaConfig) -> float:
    """Count the floating-point operations of a bare Mamba model's matrix products in one update."""
    width, inner = config.hidden_size, config.expand * config.hidden_size
    n_projected = config.resolved_dt_rank + 2 * config.d_state
    every_token = width * inner + inner * n_projected + config.resolved_dt_rank * inner
    some_tokens = 2 * width * inner  # gate and output; in the last block at state tokens alone
    per_token = config.n_layers * every_token + (config.n_layers - 1 + 1 / 3) * some_tokens
    n_tokens = (3 * config.context_length - 1) * config.batch_size
    return 3 * 2 * n_tokens * per_token  # forward, and two products each backward


def measure_peak(request: Request) -> float:
    """Return the floating-point operations a second of the products a layer makes."""
    shape = request.shape
    n_tokens, width = 3 * shape.context * shape.batch_size, 2 * shape.width
    tokens, weight = torch.randn(n_tokens, width), torch.randn(width, width)
    timer = Timer(request.device, 3, turn_seconds=0.1)
    seconds = timer.measure({"mm": lambda: torch.mm(tokens, weight)})["mm"].low
    return 2 * n_tokens * width * width / seconds
