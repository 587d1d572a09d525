"""Shared by the ``triton`` kernels: launching, layouts, program sizes and device functions."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of all kernels: fused multiply-add is on (Triton's default is changing), software pipelining off,
# since no loop here gains from it.
_OPTIONS = {"enable_fp_fusion": True, "num_stages": 1}


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, *arguments: Any, **constants: Any
) -> None:
    """Launch ``grid`` programs of ``warps`` warps on the device of the tensors among the arguments.

    ``constants`` are known at compile time. An empty grid launches nothing.
    """
    if 0 in grid:
        return
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    with _current(device):
        kernel[grid](*arguments, **constants, num_warps=warps, **_OPTIONS)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def power_of_two(size: int) -> int:
    """Return the power of two that is at least ``size``, and at least 1."""
    return 1 if size < 1 else int(triton.next_power_of_2(size))


def is_double(x: Tensor) -> bool:
    """Whether kernels compute in float64: for float64 input; in float32 for any other."""
    return x.dtype is torch.float64


def rows(x: Tensor) -> Tensor:
    """Return a (B, L, ...) tensor as kernels read it, itself where it is so already.

    Its last dimension is contiguous, and offsets within a sequence fit 32 bits.
    """
    readable = x.stride(2) == 1 and x.stride(1) * x.shape[1] < 2**31
    return x if readable else x.contiguous()


def whole(x: Tensor | None) -> Tensor | None:
    """Return a contiguous tensor, itself where it is so already."""
    return None if x is None else x.contiguous()


def strides(*tensors: Tensor | None) -> list[int]:
    """Return the strides of (B, L, ...) tensors along B and L, zeros for None."""
    pairs = ((0, 0) if x is None else (x.stride(0), x.stride(1)) for x in tensors)
    return [stride for pair in pairs for stride in pair]


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate memory, on the device of ``like``, that a kernel fills completely."""
    return torch.empty(shape, dtype=like.dtype if dtype is None else dtype, device=like.device)


def absent(like: Tensor) -> Tensor:
    """Stand in for a result that was not asked for: custom operators return tensors alone."""
    return torch.empty(0, dtype=like.dtype, device=like.device)


def empty_gradients(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Allocate a gradient for each tensor; that of None is :func:`absent`."""
    first = next(x for x in tensors if x is not None)
    return tuple(absent(first) if x is None else empty(*x.shape, like=x) for x in tensors)


@functools.cache
def n_multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 where kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which matrix products keep the dtype of their operands."""
    return torch.autocast(x.device.type, enabled=False)


def define_operator(
    name: str, signature: str, implementation: Callable[..., Any], shapes: Callable[..., Any]
) -> Any:
    """Register a custom operator, which ``torch.compile`` then takes as it is, and return it."""
    full_name = f"sb3_dmamba::{name}"
    torch.library.define(full_name, signature, tags=(torch.Tag.needs_fixed_stride_order,))
    torch.library.impl(full_name, ("cuda", "cpu"))(implementation)
    torch.library.register_fake(full_name)(shapes)
    return getattr(torch.ops.sb3_dmamba, name).default


@triton.jit
def load(pointer, mask, DOUBLE: tl.constexpr):
    """Load in the dtype to compute in, with zeros where the mask is False."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float64 if DOUBLE else tl.float32)


@triton.jit
def below(index, size, valid):
    """Compute the mask of the entries of ``index`` below ``size``; none where not ``valid``."""
    return index < tl.where(valid, size, 0)


@triton.jit
def exp_minus_abs(x):
    """Compute ``exp(-|x|)``, from which sigmoid and softplus follow without overflow."""
    return tl.exp(-tl.abs(x))


@triton.jit
def sigmoid_from_exp(x, e):
    """Compute the sigmoid of ``x``, given ``e = exp(-|x|)``."""
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus_from_exp(x, e, DOUBLE: tl.constexpr):
    """Compute ``log(1 + exp(x))``, given ``e = exp(-|x|)``, to a relative error of rounding.

    The hardware's logarithm has no digits left near 1, where small step sizes are. Here
    ``log(1 + e) = 2 atanh(q)`` with ``q = e / (2 + e)``, at most 1/3, by its series in ``q * q``.
    """
    terms: tl.constexpr = 16 if DOUBLE else 6
    q = e / (2.0 + e)
    square = q * q
    series = tl.full(q.shape, 1.0 / (2 * terms + 1), q.dtype)
    for k in tl.static_range(terms - 1, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return tl.maximum(x, 0.0) + 2.0 * q * series
