"""Breakdown of an update's time by torch's profiler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.timing import Run
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.model import Dropout

SAMPLER, OPTIMISER = "sampler", "optimiser"

# The first group of which a word is in an operator's name, or in that of one it is called by.
GROUPS: dict[str, tuple[str, ...]] = {
    SAMPLER: ("bench::sampler", "memcpy htod"),
    OPTIMISER: ("optimizer.", "adam", "_foreach", "multi_tensor_apply", "linalg_vector_norm"),
    "dropout": ("bench::dropout", "dropout"),
    "scan": ("selectivescan", "selective_scan", "scan_forward", "scan_backward", "pscan"),
    "convolution": ("causalconv", "causal_conv1d", "conv_forward", "conv_backward", "conv"),
    "norm and residual": ("residual",),
    "attention": ("attention", "flash", "softmax"),
    "norm": ("layer_norm", "layernorm", "gammabeta"),
    "GEMM": ("aten::mm", "addmm", "bmm", "gemm", "cutlass", "nvjet", "matmul", "linear"),
}
OTHER = "other operators"
PYTHON = "Python, between operators"


@dataclass(frozen=True)
class Profile:
    """What an update's time is made of.

    Args:
        seconds: Of an update, by group; on a GPU the device's, on a CPU that of the calling
            thread and of what it waits for.
        profiled: Seconds of an update under the profiler.
        plain: Seconds of an update without it.
        busy: Share of the time in which the GPU computes, under the profiler; None on a CPU.
    """

    seconds: dict[str, float]
    profiled: float
    plain: float
    busy: float | None


def classify(names: Iterable[str]) -> str:
    """Return the group of an operator.

    Args:
        names: Its own name, then its caller's and so on outwards.
    """
    lowered = [name.lower() for name in names]
    for group, words in GROUPS.items():
        if any(word in name for name in lowered for word in words):
            return group
    return OTHER


@contextlib.contextmanager
def mark(policy: DecisionMambaPolicy, sampler: Any) -> Iterator[None]:
    """Mark what torch has no operator for, or too many: the sampler, and dropout's forward pass."""
    handles = []
    open_ones: list[Any] = []

    def enter(*_: Any) -> None:
        open_ones.append(record_function("bench::dropout"))
        open_ones[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ones.pop().__exit__(None, None, None)

    for module in policy.modules():
        if isinstance(module, Dropout):
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
    sample = sampler.sample

    def marked_sample(update: int) -> Any:
        with record_function("bench::sampler"):
            return sample(update)

    sampler.sample = marked_sample
    try:
        yield
    finally:
        del sampler.sample
        for handle in handles:
            handle.remove()


def profile_updates(run: Run, device: str, n_updates: int) -> Profile:
    """Profile updates.

    Args:
        run: One of them.
        device: Where it computes.
        n_updates: How many to take, after as many that are not counted.
    """
    on_gpu = torch.device(device).type == "cuda"
    wait: Callable[[], object] = torch.cuda.synchronize if on_gpu else lambda: None

    def take() -> float:
        wait()
        started = time.perf_counter()
        for _ in range(n_updates):
            run()
        wait()
        return time.perf_counter() - started

    take()
    plain = take()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        profiled = take()
    events = profiler.events() or []
    seconds = _add_up(events, on_gpu)
    if not on_gpu:
        seconds[PYTHON] = max(0.0, profiled - sum(seconds.values()))
    shared = {name: value / n_updates for name, value in seconds.items()}
    busy = busy_share(_kernel_intervals(events)) if on_gpu else None
    return Profile(shared, profiled / n_updates, plain / n_updates, busy)


def _add_up(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Return the seconds of each group, each operator's own time counted once."""
    seconds = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in events:
        callers = list(_callers(event))
        if on_gpu:
            for kernel in event.kernels:  # of a replayed graph, all are its launch's
                seconds[classify([kernel.name, *callers])] += kernel.duration / 1e6
        else:
            seconds[classify(callers)] += event.self_cpu_time_total / 1e6
    return seconds


def _callers(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _kernel_intervals(events: Iterable[Any]) -> list[tuple[float, float]]:
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not _is_annotation(event)
    ]


def _is_annotation(event: Any) -> bool:
    """Whether an event on the GPU's time line is a marked range, idle times and all."""
    marked = event.name.startswith(("bench::", "Optimizer.", "ProfilerStep"))
    return marked or bool(getattr(event, "is_user_annotation", False))


def busy_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the share of time, from the first start to the last end, that intervals cover.

    Args:
        intervals: Starts and ends, in any order; they may overlap.

    Returns:
        Between 0 and 1; 0 without intervals.
    """
    ordered = sorted(intervals)
    if not ordered:
        return 0.0
    first, covered_until = ordered[0][0], ordered[0][0]
    covered = 0.0
    for start, end in ordered:
        covered += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return covered / (covered_until - first) if covered_until > first else 0.0
