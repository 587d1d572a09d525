"""Peak memory of updates, in a process of its own: ``python -m benchmarks.peak JSON``."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import Network, make_contender
from benchmarks.request import Request
from sb3_dmamba.experiments.efficiency import make_trajectories

_UPDATES = 3


def resident_memory() -> int:
    """Return the peak of resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, without what the parent had when it started this
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Reset the peak of resident memory, where the kernel can: on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure_peak_memory(network: Network, settings: Mapping[str, Any], request: Request) -> float:
    """Return the peak memory of updates in bytes, above what was used before the first.

    On a GPU it is the memory that torch allocated. On a CPU it is resident memory, read in a
    process of its own, without memory that earlier networks have freed.

    Args:
        network: The network.
        settings: Further settings, such as ``context_length`` and ``batch_size``.
        request: Size and device.
    """
    if request.on_gpu:
        return _run(network, settings, request)
    task = {
        "settings": {**network.settings, **settings},
        "quick": request.quick,
        "threads": request.threads,
    }
    command = [sys.executable, "-m", "benchmarks.peak", json.dumps(task)]
    root = Path(__file__).parents[1]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    return float(finished.stdout.splitlines()[-1])


def _run(network: Network, settings: Mapping[str, Any], request: Request) -> float:
    length = int(settings["context_length"])
    data = make_trajectories(4, max(1000, 2 * length))
    # a first small update loads and compiles everything
    make_contender(network, data, request, **{**settings, "context_length": 2}).run()
    contender = make_contender(network, data, request, **settings)
    if request.on_gpu:
        before = torch.cuda.memory_allocated(request.device)
        torch.cuda.reset_peak_memory_stats(request.device)
    else:
        forget_peak()
        before = resident_memory()
    for _ in range(_UPDATES):
        contender.run()
    if request.on_gpu:
        torch.cuda.synchronize(request.device)
        return float(torch.cuda.max_memory_allocated(request.device) - before)
    return float(resident_memory() - before)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    request = Request(threads=task["threads"], quick=task["quick"])
    settings = task["settings"]
    print(_run(Network({}), settings, request))


if __name__ == "__main__":
    main()
