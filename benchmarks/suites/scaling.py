"""Time and memory as context, width, batch and episode grow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import Candidate, Contender, gate, make_row, race
from benchmarks.networks import Network, make_config, make_contender
from benchmarks.peak import measure_peak_memory
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from benchmarks.suites.predict import check_actor, make_actor
from benchmarks.trends import describe_crossover, fit_exponent
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.experiments.efficiency import (
    OBSERVATION_SPACE,
    count_kept,
    make_policy,
    make_trajectories,
)
from sb3_dmamba.experiments.report import draw_lines

NETWORKS = {
    "Mamba": Network({"channel_mixing": False}),
    "Mamba + MLP": Network({}),
    "attention + MLP": Network({"mixer": "attention"}),
}
_PAIRS = (("Mamba", "attention + MLP"), ("Mamba + MLP", "attention + MLP"))
_COSTS = {"seconds": "time", "kept": "kept memory", "peak": "peak memory"}
_LONG = 100  # K from which on the second exponent is fitted
_METHOD = (
    "updates, and steps of acting, of networks in Hopper's shape. Contexts are compared twice: "
    "with as many tokens in each batch, where a cost linear in K is flat, and with as many "
    "windows. Every size is checked as one update is. Kept memory is what a forward pass holds for "
    "the backward pass, counted by tensor; peak memory is above what was there before the first "
    "update, on a CPU resident memory of a process of its own, on a GPU torch's. Exponents are "
    "slopes of logarithms with a 95 % interval of the fit."
)


def measure(request: Request) -> Report:
    """Time and weigh."""
    lengths = (4, 8) if request.quick else (10, 20, 50, 100, 200, 500, 1000)
    n_steps = 32 if request.quick else 20_000 if request.on_gpu else 2000
    batch_size = 2 if request.quick else 64 if request.on_gpu else 4
    widths = (8, 16) if request.quick else (64, 128, 256, 512)
    batches = (2, 4) if request.quick else (4, 16, 64, 256)
    equal_tokens = [{"context_length": k, "batch_size": max(1, n_steps // k)} for k in lengths]
    equal_windows = [{"context_length": k, "batch_size": batch_size} for k in lengths]
    swept = [
        _sweep(request, "tokens", "context_length", equal_tokens, f"{n_steps:,} steps a batch"),
        _sweep(
            request, "windows", "context_length", equal_windows, f"{batch_size} windows a batch"
        ),
        _sweep(request, "width", "hidden_size", [{"hidden_size": n} for n in widths], "width"),
        _sweep(request, "batch", "batch_size", [{"batch_size": n} for n in batches], "batch"),
        _follow_episode(request),
    ]
    tables = [table for more, _, _ in swept for table in more]
    left_out = {name: why for _, _, missing in swept for name, why in missing.items()}
    pictures = [picture for _, more, _ in swept for picture in more]
    return Report("scaling", "How costs grow", _METHOD, tables, pictures, left_out)


_Swept = tuple[list[Table], list[Picture], dict[str, str]]
_LABELS = {"context_length": "K", "hidden_size": "width", "batch_size": "windows a batch"}


def _sweep(
    request: Request, name: str, field: str, settings: Sequence[Mapping[str, int]], title: str
) -> _Swept:
    """Time and weigh each network at each setting."""
    longest = max(each.get("context_length", request.shape.context) for each in settings)
    data = make_trajectories(4, max(1000, 2 * longest))
    cases = {
        f"{network}, {_LABELS[field]} {each[field]}": (network, each)
        for each in settings
        for network in NETWORKS
    }
    outcome = race(
        [
            Candidate(
                label, functools.partial(make_contender, NETWORKS[network], data, request, **each)
            )
            for label, (network, each) in cases.items()
        ],
        request.make_timer(5),
    )
    for row in outcome.rows:
        network, each = cases[row["name"]]
        row |= {"network": network, "size": each[field], "batch_size": each.get("batch_size")}
        row["token"] = row["seconds"] / row["tokens"]
        row["kept"] = _count_kept(NETWORKS[network], data, request, each)
        row["kept token"] = row["kept"] / row["tokens"]
        row["peak"] = None
        if field == "context_length" and (each is settings[-1] or not request.quick):
            complete = _complete(each, request)
            row["peak"] = measure_peak_memory(NETWORKS[network], complete, request)
    _add_growth(outcome.rows)
    notes = _describe(outcome.rows, field)
    heading = f"An update against {_LABELS[field]}; {title}"
    tables = [
        Table(name, heading, _columns(field), outcome.rows, notes),
        _make_exponents(name, field, outcome.rows),
    ]
    pictures = [
        _picture(f"scaling_{name}_time", heading, field, "us a token", outcome.rows, "token", 1e6)
    ]
    if field == "context_length":
        file, label = f"scaling_{name}_memory", "kept for the backward pass [MB]"
        pictures.append(_picture(file, heading, field, label, outcome.rows, "kept", 1e-6))
    return tables, pictures, outcome.left_out


def _complete(settings: Mapping[str, int], request: Request) -> dict[str, int]:
    shape = request.shape
    given = {
        "context_length": shape.context,
        "batch_size": shape.batch_size,
        "hidden_size": shape.width,
        "n_layers": shape.n_layers,
    }
    return {**given, **settings}


def _count_kept(
    network: Network, data: Any, request: Request, settings: Mapping[str, int]
) -> float:
    config = make_config(request, **{**network.settings, **settings})
    sampler = WindowSampler(data, config.context_length, config.batch_size)
    return count_kept(make_policy(config, request.device), sampler)


def _columns(field: str) -> list[Column]:
    return [
        Column("network", ""),
        Column("size", _LABELS[field], ","),
        Column("growth", "time a token against the first", ".2f", 1.0, "x"),
        Column("against attention", "against attention", ".2f", 1.0, "x"),
        Column("token", "us a token", ".2f", 1e6),
        Column("seconds", "ms an update", ".1f", 1e3),
        Column("low", "quartiles", ".1f", 1e3),
        Column("high", "", ".1f", 1e3),
        Column("tokens", "tokens", ","),
        Column("kept token", "kept a token [kB]", ".2f", 1e-3),
        Column("peak", "peak [MB]", ",.0f", 1e-6),
    ]


def _add_growth(rows: list[dict[str, Any]]) -> None:
    """Add each row's time a token over that of its network's first, and over attention's."""
    for network in NETWORKS:
        own = _of(rows, network)
        for row in own:
            row["growth"] = row["token"] / own[0]["token"]
            others = [
                other["seconds"]
                for other in _of(rows, "attention + MLP")
                if other["size"] == row["size"]
            ]
            row["against attention"] = row["seconds"] / others[0] if others else None


def _of(rows: Iterable[dict[str, Any]], network: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["network"] == network]


def _describe(rows: list[dict[str, Any]], field: str) -> list[str]:
    """Say how flat each network's time a token is, and where attention's passes Mamba's."""
    notes = []
    label = _LABELS[field]
    for network in NETWORKS:
        times = [row["token"] for row in _of(rows, network)]
        if times:
            notes.append(
                f"{network}: the longest time a token is {max(times) / min(times):.2f} times the "
                f"shortest."
            )
    for one, other in _PAIRS if field == "context_length" else ():
        own, others = _of(rows, one), _of(rows, other)
        sizes = [row["size"] for row in own]
        if sizes and sizes == [row["size"] for row in others]:
            for key, what in _COSTS.items():
                costs, theirs = ([row[key] for row in each] for each in (own, others))
                if all(costs) and all(theirs):
                    crossing = describe_crossover((one, other), sizes, costs, theirs, label)
                    notes.append(f"In {what}, {crossing}")
    return notes


def _make_exponents(name: str, field: str, rows: list[dict[str, Any]]) -> Table:
    """Return the exponents of each network's costs, over all sizes and over the long contexts."""
    found = []
    for network in NETWORKS:
        for key, what in _COSTS.items():
            own = [row for row in _of(rows, network) if row[key]]
            long = [row for row in own if row["size"] >= _LONG]
            everything, late = (
                fit_exponent([row["size"] for row in some], [row[key] for row in some])
                for some in (own, long)
            )
            entry = {"network": network, "what": what, "all": str(everything), "long": str(late)}
            entry |= {"exponent": everything.value, "exponent of long": late.value}  # type: ignore[dict-item]
            if own:
                found.append(entry)
    columns = [Column("network", ""), Column("what", "cost"), Column("all", "exponent")]
    if field == "context_length":
        columns.append(Column("long", f"from K {_LONG} on"))
    return Table(f"{name}_exponents", f"Exponents in {_LABELS[field]}", columns, found)


def _picture(
    name: str,
    title: str,
    field: str,
    label: str,
    rows: list[dict[str, Any]],
    key: str,
    factor: float,
) -> Picture:
    lines = {
        network: ([row["size"] for row in own], [factor * row[key] for row in own])
        for network in NETWORKS
        if (own := [row for row in _of(rows, network) if row[key]])
    }
    labels = (_LABELS[field], label)
    draw = functools.partial(draw_lines, title=title, labels=labels, lines=lines)
    return Picture(name, f"{title}: {label}", draw)


def _follow_episode(request: Request) -> _Swept:
    """Time steps of acting along an episode: with a window, and with a state that is carried."""
    at, reach = ((5, 20), 3) if request.quick else ((10, 30, 100, 300, 1000, 3000), 10)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "Mamba, window": ("window", {"channel_mixing": False}),
        "Mamba, stream": ("stream", {"channel_mixing": False}),
        "attention + MLP, window": ("window", {"mixer": "attention"}),
        "attention + MLP, stream": ("stream", {"mixer": "attention"}),
    }
    actors: dict[str, Any] = {}

    def make(name: str, memory: Any, settings: dict[str, Any]) -> Contender:
        actors[name] = make_actor(request, memory, **settings)
        return Contender(lambda: None, lambda: check_actor(request, memory, **settings))

    candidates = [
        Candidate(name, functools.partial(make, name, *each)) for name, each in ways.items()
    ]
    ready, left_out = gate(candidates)
    observation = np.zeros(OBSERVATION_SPACE.shape, dtype=np.float32)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        name: (actors[name].reset, functools.partial(actors[name].predict, observation, 1.0))
        for name in ready
    }
    timings = request.make_timer(2).measure_along(runs, max(at) + reach, at, reach)
    rows = []
    for name, (_, agreement) in ready.items():
        seconds = {step: timings[name][step].median for step in at}
        row = make_row(name, timings[name][at[-1]], agreement)
        row |= {f"step {step}": value for step, value in seconds.items()}
        row["growth"] = seconds[at[-1]] / seconds[at[0]]
        row["exponent"] = str(fit_exponent(at, [seconds[step] for step in at]))
        rows.append(row)
    columns = [
        Column("name", ""),
        Column("growth", f"step {at[-1]:,} against step {at[0]}", ".2f", 1.0, "x"),
        Column("exponent", "exponent"),
        *(Column(f"step {step}", f"ms at step {step:,}", ".3f", 1e3) for step in at),
        Column("gate", "off by"),
    ]
    title = f"A step of acting along an episode, K {request.shape.context}"
    lines = {row["name"]: (at, [1e3 * row[f"step {step}"] for step in at]) for row in rows}
    draw = functools.partial(
        draw_lines, title=title, labels=("step of the episode", "ms a step"), lines=lines
    )
    table = Table("acting", title, columns, rows)
    return [table], [Picture("scaling_acting", title, draw)], left_out
