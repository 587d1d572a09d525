"""What the operations' ``cpu`` implementations share: compiled kernels, arguments, scratch.

Nothing here imports Numba until a kernel is first called.
"""

from __future__ import annotations

import functools
import importlib
import threading
import zlib
from array import array
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sb3_dmamba.ops._threads import Kernel, run_kernel

# Work (products of sizes, about 0.2 ns each) below which a second thread is not worth its wake-up
# of some 30 microseconds; acting stays below, training above.
PARALLEL_THRESHOLD = 1 << 20

_FLOAT_BITS = {torch.float32: 32, torch.float64: 64}
_compile_lock = threading.RLock()


@functools.cache
def load_kernel(operation: str, builder: str, bits: int) -> Kernel:
    """Compile a kernel, or load it from Numba's cache.

    Args:
        operation: Name of the operation's folder.
        builder: Function of its ``_kernels`` module that makes the kernel.
        bits: Width of a float, 32 or 64.

    Returns:
        A function of (address of the argument block, address of scratch) that releases the
        interpreter lock.
    """
    with _compile_lock:
        from numba import cfunc

        module = importlib.import_module(f"sb3_dmamba.ops.{operation}._kernels")
        build = getattr(module, builder)
        function = build(bits, _source_digest(module))
        try:
            compiled = cfunc("void(int64, int64)", cache=True)(function)
        except (RuntimeError, OSError):  # no folder to cache in: compile for this process alone
            compiled = cfunc("void(int64, int64)")(function)
        call: Any = compiled.ctypes
        call.owner = compiled  # the machine code lives as long as this object
        return cast(Kernel, call)


def _source_digest(module: Any) -> int:
    # Numba looks at the time stamp of a kernel's own file, and not at what the file imports.
    paths = [Path(module.__file__), Path(__file__).with_name("_simd.py")]
    return zlib.crc32(b"".join(path.read_bytes() for path in paths if path.exists()))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that kernels compute in: float64 for float64, else float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def float_bits(dtype: torch.dtype) -> int:
    """Return the width of a float of a compute dtype, in bits."""
    return _FLOAT_BITS[dtype]


def rows(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous, itself where it is so already."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_arguments(x: Tensor | None) -> tuple[int, int, int]:
    """Return address, batch stride and time stride (in bytes) of a (B, L, ...) tensor."""
    if x is None:
        return 0, 0, 0
    size = x.element_size()
    strides = x.stride()
    return x.data_ptr(), strides[0] * size, strides[1] * size


def address(x: Tensor | None) -> int:
    """Return the address of a contiguous tensor, 0 for None."""
    return 0 if x is None else x.data_ptr()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory that a kernel fills completely (tests poison it)."""
    return torch.empty(shape, dtype=dtype)


def call_kernel(
    kernel: Kernel, arguments: tuple[int, ...], scratch_bytes: int, n_units: int, work: int
) -> None:
    """Run a kernel, on several threads where that pays.

    Args:
        kernel: What :func:`load_kernel` returned.
        arguments: The argument block, in the order that the kernel's module defines.
        scratch_bytes: Scratch of one worker.
        n_units: Independent units of work; more workers than that make no sense.
        work: Work in all, comparable with ``PARALLEL_THRESHOLD``.
    """
    n_workers = 1
    if work >= PARALLEL_THRESHOLD and n_units > 1:
        n_workers = min(torch.get_num_threads(), n_units)
    stride = -(-scratch_bytes // 4096) * 4096 + 64 if n_workers > 1 else scratch_bytes
    memory = empty((stride * n_workers + 64) // 4, dtype=torch.float32)
    start = -(-memory.data_ptr() // 64) * 64
    block = array("q", arguments)
    scratches = [start + stride * worker for worker in range(n_workers)]
    run_kernel(kernel, block.buffer_info()[0], scratches, (memory, block))
