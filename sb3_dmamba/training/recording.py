"""Device work that is recorded once and replayed: CUDA graphs, behind one function.

An update of a small network is some hundred kernels of a few microseconds each,
and launching them one by one from Python takes longer than running them. A graph launches all of
them at once. ``torch.compile(mode="reduce-overhead")`` records such graphs too, after minutes of
compilation for each shape; it would fuse some elementwise kernels, but leaves the matrix products
and the scan (a custom operator) as they are, needs a C++ compiler and Triton where the graph alone
needs neither, and changes rounding, so that an update would no longer be the eager one. Here the
kernels of the eager run are replayed, and so compared with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["RECORDERS", "Recorder", "count_renewals", "why_not_recorded"]

_WARM_UPS = 3  # Triton's compilation, the libraries' workspaces and plans

Run = Callable[[], list[Tensor]]
Recorder = Callable[[Run, torch.device], tuple[Callable[[], None], list[Tensor]]]
"""Runs a function some times, records it, and returns what replays it and the tensors of results.

What the function reads and writes is fixed by address: a replay finds other values there, or none
it can see. The results are overwritten by each replay.
"""


def record_cuda_graph(run: Run, device: torch.device) -> tuple[Callable[[], None], list[Tensor]]:
    """Record a function as a CUDA graph; random numbers come from the device's own generator.

    Raises:
        RuntimeError: The function does what a graph cannot hold, such as waiting for the device.
    """
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which may be fetching the next batch, are none of the recording.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = run()
        except Exception:
            torch.cuda.set_stream(current)  # which a failed end of a recording does not
            _mend_generator(device)
            raise
    return graph.replay, results


def _mend_generator(device: torch.device) -> None:
    """Give the device's generator another state, where a failed recording has left it half-way."""
    try:
        torch.rand(1, device=device)
    except RuntimeError:
        index = torch.cuda.current_device() if device.index is None else device.index
        state = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[index].graphsafe_set_state(state)
        _renewals.append(index)


_renewals: list[int] = []


def count_renewals() -> int:
    """Return how often a generator was given another state: earlier graphs still read the old."""
    return len(_renewals)


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By type of device."""


def why_not_recorded(device: torch.device) -> str | None:
    """Say why work on a device cannot be recorded; None where it can."""
    if device.type in RECORDERS:
        return None
    return f"graphs are recorded on CUDA devices and the model is on {device.type!r}"
