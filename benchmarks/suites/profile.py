"""Where the time of an update goes, and how busy a GPU is."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.contenders import UnavailableError
from benchmarks.networks import Network, check_network, make_network
from benchmarks.pictures import draw_shares
from benchmarks.profiling import Profile, mark, profile_updates
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.experiments.efficiency import make_trajectories
from sb3_dmamba.training.updater import Updater

NETWORKS = {
    "Mamba": Network({"channel_mixing": False}),
    "Mamba, decoupled": Network(
        {"channel_mixing": False, "conditioning": "decoupled", "time_encoding": "none"}
    ),
    "Mamba, bf16": Network({"channel_mixing": False, "precision": "bf16"}),
    "Mamba + MLP": Network({}),
    "attention + MLP": Network({"mixer": "attention"}),
}
_METHOD = (
    "updates under torch's profiler; each operator's own time goes to the group of its name or of "
    "what calls it. On a CPU it is the calling thread's, on a GPU the kernels'. The profiler "
    "itself takes time, most where there are many small operators: the last columns show an update "
    "with and without it. Dropout's group has the gate and the residual, and not its backward pass."
)


def measure(request: Request) -> Report:
    """Profile an update of each network."""
    n_updates = 2 if request.quick else 20
    rows: list[dict[str, Any]] = []
    left_out = {}
    shares = {}
    for name, network in NETWORKS.items():
        try:
            found = _profile(network, request, n_updates)
        except UnavailableError as reason:
            left_out[name] = str(reason)
            continue
        total = sum(found.seconds.values())
        shares[name] = {part: 1e3 * each for part, each in found.seconds.items()}
        parts = {f"share {part}": each / total for part, each in found.seconds.items()}
        rows.append(
            {
                "name": name,
                "seconds": total,
                "profiled": found.profiled,
                "plain": found.plain,
                "busy": found.busy,
                **parts,
                **{f"seconds {part}": each for part, each in found.seconds.items()},
            }
        )
    groups = list(next(iter(shares.values()), {}))
    busy = [Column("busy", "GPU busy", ".0%")] if request.on_gpu else []
    columns = [
        Column("name", ""),
        *(Column(f"share {group}", group, ".0%") for group in groups),
        *busy,
        Column("seconds", "sum [ms]", ".1f", 1e3),
        Column("profiled", "profiled [ms]", ".1f", 1e3),
        Column("plain", "without profiler [ms]", ".1f", 1e3),
    ]
    shape = request.shape
    title = (
        f"Where an update goes: width {shape.width}, {shape.n_layers} layers, K {shape.context}, "
        f"batch {shape.batch_size}"
    )
    draw = functools.partial(draw_shares, title=title, shares=shares)
    table = Table("profile", title, columns, rows)
    return Report(
        "profile", "Where it goes", _METHOD, [table], [Picture("profile", title, draw)], left_out
    )


def _profile(network: Network, request: Request, n_updates: int) -> Profile:
    """Profile a network's updates.

    Raises:
        UnavailableError: It computes something else than its reference, or does not run here.
    """
    policy = make_network(network, request)
    agreement = check_network(policy)
    if not agreement.holds:
        raise UnavailableError(f"{agreement.what} are off by {agreement.error:.2g}")
    config = policy.config
    data = make_trajectories(20, 50 if request.quick else 1000)
    sampler = WindowSampler(data, config.context_length, config.batch_size)
    updater = Updater(policy, config, seed=0)
    n_done = 0

    def update() -> None:
        nonlocal n_done
        updater.update(sampler, n_done, n_done, request.updates)
        n_done += 1

    with mark(policy, sampler):
        return profile_updates(update, request.device, n_updates)
