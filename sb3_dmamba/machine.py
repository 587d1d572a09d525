"""The machine: cores, threads, GPUs, and the precisions that it multiplies in.

Torch is imported inside functions: :func:`set_thread_variables` runs before it is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.io import warn_caller

if TYPE_CHECKING:
    import torch

_CPU_INFO = Path("/proc/cpuinfo")
_THREADS = Path("/proc/self/task")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # container limit: microseconds per period, or "max"
_GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """Processor, cores, threads and GPUs of this machine.

    Args:
        system: Operating system and Python.
        processor: The CPU's name.
        kind: Width of its vectors, and whether it multiplies in bfloat16 natively, in words.
        cores: Cores available to this process; a fraction under a container's limit.
        threads: Threads used by torch.
        load: Mean number of busy cores over the last minute; None if unknown.
        gpus: Name, capability and memory of each CUDA device.
        cuda: The CUDA version of the torch build; None without CUDA.
        advice: Recommended number of threads, in words.
    """

    system: str
    processor: str
    kind: str
    cores: float
    threads: int
    load: float | None
    gpus: tuple[dict[str, Any], ...]
    cuda: str | None
    advice: str


def describe_machine() -> Machine:
    """Return a description of this machine, without measuring speed."""
    import torch

    cores, threads = _count_cores(), torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    is_cuda = torch.cuda.is_available()
    return Machine(
        system=f"{platform.platform()}, Python {platform.python_version()}",
        processor=_find_processor(),
        kind=describe_cpu(),
        cores=cores,
        threads=threads,
        load=load,
        gpus=tuple(map(_describe_gpu, range(torch.cuda.device_count()))) if is_cuda else (),
        cuda=torch.version.cuda,
        advice=advise_threads(threads, cores, load),
    )


def describe_device(device: str) -> str:
    """Return the name of a GPU, or of the processor with its number of cores and its kind."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(torch.device(device)))
    return f"{_find_processor()}, {os.cpu_count()} cores, {describe_cpu()}"


_VECTOR_BITS = {"AVX512": 512, "AVX2": 256, "SVE256": 256}  # torch's names; others have 128


def describe_cpu() -> str:
    """Return the width of the CPU's vectors, and whether it multiplies in bfloat16 natively."""
    import torch

    bits = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability(), 128)
    bf16 = "native bf16" if has_native_bf16(torch.device("cpu")) else "no native bf16"
    return f"{bits}-bit vectors, {bf16}"


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


# OpenMP's threads wait asleep: by default they spin, and beside one busy process two threads on two
# cores are slower than one.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def set_thread_variables(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads wait asleep, and be no more than a container's limit allows.

    Has an effect before torch is loaded. What the user has set stays. The number of threads follows
    no momentary load: results depend on it.
    """
    if not environment.keys() & {*PASSIVE_WAITING, "KMP_BLOCKTIME"}:
        environment.update(PASSIVE_WAITING)
    if (cores := _count_cores()) < _count_usable():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, round(cores))))


def read_waiting_seconds() -> float:
    """Return how long threads of this process have been ready to compute without a core, summed.

    Only differences have a meaning. Where the system does not say it (Linux does), this is the
    time in which the process did not compute, for whatever reason.
    """
    try:
        threads = list(_THREADS.iterdir())
    except OSError:
        threads = []
    nanoseconds = []
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended
            nanoseconds.append(int((thread / "schedstat").read_text(encoding="ascii").split()[1]))
    if nanoseconds:
        return 1e-9 * sum(nanoseconds)
    return time.perf_counter() - time.process_time()


def _count_usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count_cores() -> float:
    cores = _count_usable()
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(cores, round(float(quota) / float(period), 2))
    except (OSError, ValueError):  # no such limit
        return cores


def _find_processor() -> str:
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _describe_gpu(index: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "memory_gib": round(total / _GIB, 1),
        "free_gib": round(free / _GIB, 1),
        "bf16": has_native_bf16(torch.device("cuda", index)),
    }


# --- Precision of matrix products ----------------------------------------------------------------

_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16"}
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # make torch use less than the CPU has
_WORTH = 1.2  # times as fast as fp32: less may be an error of the measurement
_FIRST_CAPABILITY = 8  # of NVIDIA GPUs with bfloat16: Ampere


def choose_precision(asked: str, device: torch.device) -> str:
    """Return ``asked``; for ``"auto"`` bf16 where the device multiplies in it natively, or fp32."""
    if asked != "auto":
        return asked
    return "bf16" if has_native_bf16(device) else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16 natively; measured where no flag tells."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _FIRST_CAPABILITY
    if device.type != "cpu":
        return False
    flags = read_cpu_flags()
    if flags is not None:
        return not flags.isdisjoint(_NATIVE_FLAGS)
    rates = measure_products()
    return rates["bf16"] > _WORTH * rates["fp32"]


def read_cpu_flags() -> frozenset[str] | None:
    """Return the instruction sets that torch uses; None where they are not known.

    That is where the CPU is not x86 or the system not Linux, or a variable limits oneDNN.
    """
    if any(os.environ.get(name) for name in _LIMITS):
        return None
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ())) or None


@functools.cache
def measure_products() -> dict[str, float]:
    """Return the speed of a matrix product on the CPU, in fp32 and bf16, in GFLOP a second.

    Measured once in a process, by the best of a few small products: at most half a second.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens, weight = (torch.randn(256, 256, generator=generator) for _ in range(2))
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = tokens.to(dtype), weight.to(dtype)
        times = []
        for _ in range(4):  # the first makes things ready
            begun = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begun)
        rates[name] = 2e-9 * 256**3 / min(times)
    return rates


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device can train in a precision; warn once of bf16 where it is slow.

    Raises ConfigError: TF32 was asked for elsewhere than on CUDA.
    """
    if precision == "tf32" and device.type != "cuda":
        message = (
            f"precision='tf32' is CUDA's, and the device is {str(device)!r}: use precision='auto' "
            f"or 'fp32' (of a saved model, DecisionMamba.load(path, precision='fp32'))"
        )
        choices = ("auto", "fp32", "bf16")
        raise ConfigError(message, setting="precision", value=precision, choices=choices)
    if precision == "bf16" and device.type == "cpu" and not has_native_bf16(device):
        _warn_of_slow_bf16()


@functools.cache
def _warn_of_slow_bf16() -> None:
    rates = measure_products()
    ratio = rates["fp32"] / rates["bf16"]
    if ratio > 1.0:
        warn_caller(
            f"precision='bf16' is {ratio:.1f} times slower than 'fp32' on this CPU, which does not "
            f"multiply in bfloat16 natively ({rates['bf16']:.2g} and {rates['fp32']:.2g} GFLOP/s "
            f"of a matrix product): use precision='auto' or 'fp32'"
        )


@contextlib.contextmanager
def tf32_products(precision: str) -> Iterator[None]:
    """For ``"tf32"``, compute CUDA's matrix products in TF32 within the block, gradients included.

    The process's setting is as before afterwards.
    """
    if precision != "tf32":
        yield
        return
    import torch

    settings: Any = torch.backends.cuda.matmul
    # torch 2.9 has a setting of its own for each backend.
    is_new = hasattr(settings, "fp32_precision")
    name, value = ("fp32_precision", "tf32") if is_new else ("allow_tf32", True)
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)
