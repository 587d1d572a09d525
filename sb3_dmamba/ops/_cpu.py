"""Compiled kernels of the ``cpu`` implementations, their arguments and scratch memory.

Nothing here imports Numba until a kernel is first called. On AVX-512 a kernel compiles in about a
second; later processes find it in Numba's cache.
"""

from __future__ import annotations

import functools
import importlib
import threading
import zlib
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

_FLOAT_BITS = {torch.float32: 32, torch.float64: 64}
_compile_lock = threading.RLock()


class Kernel(Protocol):
    """A compiled function of (address of the argument block, address of scratch)."""

    address: int

    def __call__(self, block: int, scratch: int, /) -> None:
        """Run; the interpreter lock is released."""


@functools.cache
def load_kernel(module_name: str, builder: str, bits: int) -> Kernel:
    """Compile a kernel, or load it from Numba's cache.

    Args:
        module_name: Module below ``sb3_dmamba.ops`` that holds the builder.
        builder: Function that makes the kernel.
        bits: Width of a float, 32 or 64.

    Returns:
        A function of (address of the argument block, address of scratch) that releases the
        interpreter lock.
    """
    compiled = compile_function(module_name, builder, "void(int64, int64)", bits)
    call: Any = compiled.ctypes
    call.owner = compiled  # the machine code lives as long as this object
    call.address = compiled.address
    return cast("Kernel", call)


def compile_function(module_name: str, builder: str, signature: str, bits: int) -> Any:
    """Compile a function to machine code with C's calling convention, or load it from the cache."""
    with _compile_lock:
        from numba import cfunc

        module = importlib.import_module(f"sb3_dmamba.ops.{module_name}")
        build = getattr(module, builder)
        function = build(bits, _source_digest())
        try:
            return cfunc(signature, cache=True)(function)
        except (RuntimeError, OSError):  # no folder to cache in: compile for this process alone
            return cfunc(signature)(function)


def _source_digest() -> int:
    # Numba looks at the time stamp of a kernel's own file, and not at what the file imports.
    others = ("triton", "cuda")  # sources of the other compiled backends
    sources = sorted(
        path
        for path in Path(__file__).parent.rglob("*.py")
        if not path.stem.lstrip("_").startswith(others)
    )
    return zlib.crc32(b"".join(path.read_bytes() for path in sources))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that kernels compute in: float64 for float64, else float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def float_bits(dtype: torch.dtype) -> int:
    """Return the width of a float of a compute dtype, in bits."""
    return _FLOAT_BITS[dtype]


def prepare(tensors: list[Tensor | None], n_sequences: int, dtype: torch.dtype) -> bool:
    """Bring tensors, in place in the list, into the dtype and layout that kernels read.

    Args:
        tensors: Sequences (B, L, ...), which need a contiguous last dimension alone, and then
            parameters and states, which need to be contiguous. None is left as it is.
        n_sequences: How many of them are sequences.
        dtype: The dtype to compute in.

    Returns:
        Whether a gradient will be wanted.
    """
    wants_gradient = False
    for place, x in enumerate(tensors):
        if x is None:
            continue
        if x.dtype is not dtype:
            x = tensors[place] = x.to(dtype)
        if not x.is_contiguous() and (place >= n_sequences or x.stride(-1) != 1):
            x = tensors[place] = x.contiguous()
        if x.requires_grad:
            wants_gradient = True
    return wants_gradient and torch.is_grad_enabled()


def rows(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous, itself where it is so already."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_arguments(x: Tensor | None, size: int) -> tuple[int, int, int]:
    """Return address, batch stride and time stride (in bytes) of a (B, L, ...) tensor.

    Args:
        x: The tensor; None gives zeros.
        size: Bytes of one of its elements.
    """
    if x is None:
        return 0, 0, 0
    batch_stride, time_stride, _ = x.stride()
    return x.data_ptr(), batch_stride * size, time_stride * size


def address(x: Tensor | None) -> int:
    """Return the address of a contiguous tensor, 0 for None."""
    return 0 if x is None else x.data_ptr()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory that a kernel fills completely (tests poison it)."""
    return torch.empty(shape, dtype=dtype)


def sum_groups(partials: Tensor) -> Tensor:
    """Sum over the first dimension, in order, whatever the number of threads.

    NumPy's sum stays in this thread: waking torch's pool would take longer than the sum.
    """
    return torch.from_numpy(partials.numpy().sum(axis=0))


class _Scratch(threading.local):
    memory: Tensor | None = None
    size = 0
    start = 0


_scratch = _Scratch()


def own_scratch(size: int) -> int:
    """Return the address of this thread's own scratch, kept from call to call for speed."""
    if _scratch.size < size:
        _scratch.memory = empty((size + 64) // 4 + 1, dtype=torch.float32)
        _scratch.start = -(-_scratch.memory.data_ptr() // 64) * 64
        _scratch.size = size
    return _scratch.start
