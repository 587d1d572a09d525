"""Description of the machine: processor, cores, threads and GPUs, with advice on threads."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # container limit: microseconds per period, or "max"
_GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """Processor, cores, threads and GPUs of this machine.

    Args:
        system: Operating system and Python.
        processor: The CPU's name.
        cores: Cores available to this process; a fraction under a container's limit.
        threads: Threads used by torch.
        load: Mean number of busy cores over the last minute; None if unknown.
        gpus: Name, capability and memory of each CUDA device.
        cuda: The CUDA version of the torch build; None without CUDA.
        advice: Recommended number of threads, in words.
    """

    system: str
    processor: str
    cores: float
    threads: int
    load: float | None
    gpus: tuple[dict[str, Any], ...]
    cuda: str | None
    advice: str


def describe_machine() -> Machine:
    """Return a description of this machine, without measuring speed."""
    cores, threads = _count_cores(), torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    is_cuda = torch.cuda.is_available()
    return Machine(
        system=f"{platform.platform()}, Python {platform.python_version()}",
        processor=_find_processor(),
        cores=cores,
        threads=threads,
        load=load,
        gpus=tuple(map(_describe_gpu, range(torch.cuda.device_count()))) if is_cuda else (),
        cuda=torch.version.cuda,
        advice=advise_threads(threads, cores, load),
    )


def describe_device(device: str) -> str:
    """Return the name of a GPU, or of the processor with its number of cores."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(torch.device(device)))
    return f"{_find_processor()}, {os.cpu_count()} cores"


def advise_threads(threads: int, cores: float, load: float | None) -> str:
    """Recommend a number of threads, in words."""
    free = max(1, int(cores - (load or 0.0) + 0.5))
    set_it = f"set OMP_NUM_THREADS={free}"
    if threads > cores:
        return f"{threads} threads on {cores:g} cores wait for each other: {set_it}"
    if threads > free:
        return (
            f"{load:.1f} of {cores:g} cores are busy, and {threads} threads would wait for each "
            f"other: {set_it} while that lasts"
        )
    if threads < min(free, int(cores)):
        return f"{free} of {cores:g} cores are free: OMP_NUM_THREADS={free} uses them"
    return "as many as are free; of several trainings at once, give each its share"


def _count_cores() -> float:
    cores: float = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(cores, round(float(quota) / float(period), 2))
    except (OSError, ValueError):  # no such limit
        return cores


def _find_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _describe_gpu(index: int) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "memory_gib": round(total / _GIB, 1),
        "free_gib": round(free / _GIB, 1),
        "bf16": torch.cuda.is_bf16_supported(),
    }
