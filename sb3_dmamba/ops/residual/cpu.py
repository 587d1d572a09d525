"""The operations around a mixer on the CPU: Numba kernels, and the functions that call them."""

# llvmlite and Numba's internals have no types.
# mypy: disable-error-code="no-untyped-call,import-untyped,untyped-decorator"

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba.core import types
from numba.extending import register_jitable
from torch import Tensor

from sb3_dmamba.ops import _cpu, _simd, reference
from sb3_dmamba.ops._shared import DROPOUT_LEVELS, compute_dtype, count_tokens, make_differentiable
from sb3_dmamba.ops._simd import (
    fetch_increment,
    fma,
    load_int,
    load_lanes,
    splat,
    splat_load,
    store,
    store_lanes,
    store_sum,
    vector_sizes,
)

_WORK = 16  # of an element, in the units of _cpu.PARALLEL_THRESHOLD
_FEW = 1 << 14  # elements of a norm in acting, below which the call itself takes longest


def modulated_norm(x: Tensor, modulation: Tensor, width: int, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm; shapes are those of :func:`sb3_dmamba.ops.modulated_norm`."""
    if x.numel() < _FEW and not torch.is_grad_enabled():
        return reference.modulated_norm(x, modulation, width, eps)
    dtype = torch.result_type(x, modulation)
    tensors: list[Tensor | None] = [x, modulation]
    if _cpu.prepare(tensors, 2, compute_dtype(x)):
        y, rest = _normalize(eps, False, *tensors)
        assert rest is not None
    else:
        y, rest, _ = _norm_forward(eps, False, False, tensors)
    return y.to(dtype), rest.to(modulation.dtype)


def _norm_forward(
    eps: float, return_final_state: bool, save: bool, tensors: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the output, the rows that it does not use and, to save, each token's moments."""
    x, modulation = tensors
    y = _cpu.empty(*x.shape, dtype=x.dtype)
    moments = _cpu.empty(*x.shape[:2], 2, dtype=x.dtype) if save else None
    _run("norm_forward", x, modulation, None, [y, moments], number=eps)
    return y, modulation[..., 2 * x.shape[2] :], moments


def _norm_backward(
    eps: float, tensors: Sequence[Any], moments: Tensor | None, grad_y: Tensor,
    grad_rest: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    x, modulation = tensors
    d_x = _cpu.empty(*x.shape, dtype=x.dtype)
    d_modulation = _cpu.empty(*modulation.shape, dtype=x.dtype)
    outputs, size = [d_x, d_modulation, moments], modulation.shape[2]
    _run("norm_backward", x, modulation, _cpu.rows(grad_y), outputs, setting=size)
    rest = d_modulation[..., 2 * x.shape[2] :]
    rest.zero_() if grad_rest is None else rest.copy_(grad_rest)
    return d_x, d_modulation


def add_residual(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, levels: Tensor | None, n_dropped: int
) -> Tensor:
    """Compute the sum; shapes are those of :func:`sb3_dmamba.ops.add_residual`."""
    if levels is None and (gate is None or gate.shape == x.shape):  # one pass of torch's
        return reference.add_residual(x, residual, gate, levels, n_dropped)
    dtype = x.dtype if residual is None else torch.result_type(x, residual)
    tensors = [x, residual, gate]
    if _cpu.prepare(tensors, 3, compute_dtype(x)):
        y, _ = _add(n_dropped, False, *tensors, levels)
    else:
        y, _, _ = _add_forward(n_dropped, False, False, [*tensors, levels])
    return y.to(dtype)


def _add_forward(
    n_dropped: int, return_final_state: bool, save: bool, tensors: Sequence[Any]
) -> tuple[Tensor, None, None]:
    x, residual, gate, levels = tensors
    y = _cpu.empty(*x.shape, dtype=x.dtype)
    _run_add(n_dropped, x, gate, residual, [y, levels])
    return y, None, None


def _add_backward(
    n_dropped: int, tensors: Sequence[Any], saved: object, grad_y: Tensor, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, _, gate, levels = tensors
    d_x = _cpu.empty(*x.shape, dtype=x.dtype)
    d_gate = None if gate is None else _cpu.empty(*gate.shape, dtype=x.dtype)
    _run_add(n_dropped, x, gate, _cpu.rows(grad_y), [d_x, levels, d_gate], "backward")
    return d_x, grad_y, d_gate, None


def _run_add(
    n_dropped: int, x: Tensor, gate: Tensor | None, other: Tensor | None,
    outputs: list[Tensor | None], direction: str = "forward",
) -> None:  # fmt: skip
    levels = outputs[1]
    if levels is not None and x.shape[2] % 16:  # a vector of the last token's reaches further
        outputs[1] = torch.cat([levels.flatten(), levels.new_empty(16)])
    lowest, scale = n_dropped - DROPOUT_LEVELS // 2, DROPOUT_LEVELS / (DROPOUT_LEVELS - n_dropped)
    _run(f"add_{direction}", x, gate, other, outputs, lowest, scale)


_normalize = make_differentiable(_norm_forward, _norm_backward)
_add = make_differentiable(_add_forward, _add_backward)

# fmt: off
# The kernels' argument block. X, ROWS and OTHER: address, strides along B and L.
(COUNTER, BATCH, LENGTH, CHANNELS, N_STEPS, N_TOKENS, SETTING, NUMBER, X, _, _, ROWS, _, _,
 OTHER, _, _, OUT_0, OUT_1, OUT_2) = (8 * place for place in range(20))
# fmt: on


def _run(
    kernel: str, x: Tensor, rows: Tensor | None, other: Tensor | None,
    outputs: list[Tensor | None], setting: int = 0, number: float = 0.0,
) -> None:  # fmt: skip
    """Run a kernel on tokens, the rows of their steps, and tokens of another kind."""
    batch, length, channels = x.shape
    n_steps = length if rows is None else rows.shape[1]
    kind, size, lanes = _cpu.choose_vectors(x.dtype)
    packed = struct.pack("<d" if size == 8 else "<f4x", number)
    sizes = (0, batch, length, channels, n_steps, count_tokens(length, n_steps))
    tensors = [*outputs, *(None,) * (3 - len(outputs))]
    arguments = (
        *(*sizes, setting, int.from_bytes(packed, "little")),
        *(*_cpu.row_arguments(size, x, rows, other), *_cpu.addresses(*tensors)),
    )
    loaded = _cpu.load_kernel("residual.cpu", f"build_{kernel}", kind)
    _cpu.call_kernel(loaded, arguments, size * lanes, batch, x.numel() * _WORK)


def _emit_inverse_root(builder: Any, x: Any, vector: Any) -> Any:
    root = _simd._call(builder, f"llvm.sqrt.{vector.suffix}", vector.llvm, [x])
    return builder.fdiv(_simd._constant(1.0, vector), root)


inverse_root: Any = _simd._vector_math(_emit_inverse_root, 1)  #: 1 / sqrt(x)


@_simd._intrinsic
def select_levels(typing_context: Any, address: Any, lowest: Any, vector: Any) -> Any:
    """Zero the lanes of a vector whose int16, of those at the address, is below the lowest."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _simd._pointer(builder, args[0], ir.VectorType(ir.IntType(16), vector.lanes))
        edge = _simd._broadcast(builder, builder.trunc(args[1], ir.IntType(16)), vector.lanes)
        is_kept = builder.icmp_signed(">=", builder.load(pointer, align=2), edge)
        return builder.select(is_kept, args[2], _simd._constant(0.0, vector))

    return vector(types.int64, types.int64, vector), codegen


@register_jitable
def _row(tokens: int, b: int, t: int) -> int:
    """Return where row t of sequence b is, of the tensor whose arguments are at an address."""
    return load_int(tokens) + b * load_int(tokens + 8) + t * load_int(tokens + 16)  # type: ignore[no-any-return]


def build_norm_forward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the norm's forward kernel for vectors of a kind."""
    size, width, vector = vector_sizes(kind)

    def norm_forward(p: int, scratch: int) -> None:
        _ = digest  # a cached kernel is found again only while its sources are the same
        length, channels = load_int(p + LENGTH), load_int(p + CHANNELS)
        blocks, row = (channels + width - 1) // width, size * channels
        eps, inverse = splat_load(p + NUMBER, kind), splat(1.0 / channels, kind)
        moments = load_int(p + OUT_1)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                x, factor = _row(p + X, b, t), _row(p + ROWS, b, t // load_int(p + N_TOKENS))
                y = load_int(p + OUT_0) + (b * length + t) * row
                total = splat(0.0, kind)
                for i in range(blocks):
                    lanes = min(width, channels - i * width)
                    total = total + load_lanes(x + vector * i, lanes, kind)
                store_sum(scratch, total)
                mean = splat_load(scratch, kind) * inverse
                store(scratch, mean)
                total = splat(0.0, kind)
                for i in range(blocks):
                    lanes = min(width, channels - i * width)
                    # Zero in the lanes beyond the last channel.
                    off = load_lanes(x + vector * i, lanes, kind) - load_lanes(scratch, lanes, kind)
                    total = fma(off, off, total)
                store_sum(scratch, total)
                scale = inverse_root(fma(splat_load(scratch, kind), inverse, eps))
                for i in range(blocks):
                    lanes, at = min(width, channels - i * width), vector * i
                    shift = load_lanes(factor + row + at, lanes, kind)
                    normed = (load_lanes(x + at, lanes, kind) - mean) * scale
                    result = fma(normed, load_lanes(factor + at, lanes, kind), shift)
                    store_lanes(y + at, lanes, result)
                if moments != 0:
                    store_lanes(moments + 2 * size * (b * length + t), 1, mean)
                    store_lanes(moments + 2 * size * (b * length + t) + size, 1, scale)

    return norm_forward


def build_norm_backward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the norm's backward kernel for vectors of a kind."""
    size, width, vector = vector_sizes(kind)

    def norm_backward(p: int, scratch: int) -> None:
        _ = digest
        length, channels = load_int(p + LENGTH), load_int(p + CHANNELS)
        blocks, row = (channels + width - 1) // width, size * channels
        n_tokens, inverse = load_int(p + N_TOKENS), splat(1.0 / channels, kind)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                x, factor = _row(p + X, b, t), _row(p + ROWS, b, t // n_tokens)
                grad_y, d_x = _row(p + OTHER, b, t), load_int(p + OUT_0) + (b * length + t) * row
                step = b * load_int(p + N_STEPS) + t // n_tokens
                d_factor = load_int(p + OUT_1) + step * size * load_int(p + SETTING)
                moments = load_int(p + OUT_2) + 2 * size * (b * length + t)
                mean, scale = splat_load(moments, kind), splat_load(moments + size, kind)
                total, projected = splat(0.0, kind), splat(0.0, kind)
                for i in range(blocks):
                    lanes, at = min(width, channels - i * width), vector * i
                    grad = load_lanes(grad_y + at, lanes, kind)
                    normed = (load_lanes(x + at, lanes, kind) - mean) * scale
                    of_factor, of_shift = grad * normed, grad
                    if t % n_tokens != 0:
                        of_factor = of_factor + load_lanes(d_factor + at, lanes, kind)
                        of_shift = of_shift + load_lanes(d_factor + row + at, lanes, kind)
                    store_lanes(d_factor + at, lanes, of_factor)
                    store_lanes(d_factor + row + at, lanes, of_shift)
                    of_normed = grad * load_lanes(factor + at, lanes, kind)
                    total = total + of_normed
                    projected = fma(of_normed, normed, projected)
                store_sum(scratch, total)
                store_sum(scratch + size, projected)
                total = splat_load(scratch, kind) * inverse
                projected = splat_load(scratch + size, kind) * inverse
                for i in range(blocks):
                    lanes, at = min(width, channels - i * width), vector * i
                    grad = load_lanes(grad_y + at, lanes, kind)
                    of_normed = grad * load_lanes(factor + at, lanes, kind)
                    normed = (load_lanes(x + at, lanes, kind) - mean) * scale
                    store_lanes(d_x + at, lanes, (of_normed - total - normed * projected) * scale)

    return norm_backward


def build_add_forward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the sum's forward kernel for vectors of a kind."""
    return _build_add(kind, digest, False)


def build_add_backward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the sum's backward kernel for vectors of a kind."""
    return _build_add(kind, digest, True)


def _build_add(kind: int, digest: int, backward: bool) -> Callable[[int, int], None]:
    size, width, vector = vector_sizes(kind)

    def add(p: int, scratch: int) -> None:
        _ = digest
        length, channels = load_int(p + LENGTH), load_int(p + CHANNELS)
        n_tokens, has_gate = load_int(p + N_TOKENS), load_int(p + ROWS) != 0
        levels, lowest, row = load_int(p + OUT_1), load_int(p + SETTING), size * channels
        one, scale = splat(1.0, kind), splat_load(p + NUMBER, kind)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                x, gate = _row(p + X, b, t), _row(p + ROWS, b, t // n_tokens)
                token, other = b * length + t, _row(p + OTHER, b, t)
                d_gate = load_int(p + OUT_2) + (b * load_int(p + N_STEPS) + t // n_tokens) * row
                for i in range((channels + width - 1) // width):
                    lanes, at = min(width, channels - i * width), vector * i
                    factor, result = one, splat(0.0, kind)
                    if levels != 0:
                        place = levels + 2 * (token * channels + i * width)
                        factor = select_levels(place, lowest, scale)
                    kept = load_lanes(x + at, lanes, kind) * factor
                    if load_int(p + OTHER) != 0:
                        result = load_lanes(other + at, lanes, kind)
                    if backward:  # other is the gradient
                        if has_gate:
                            of_gate = result * kept
                            if t % n_tokens != 0:
                                of_gate = of_gate + load_lanes(d_gate + at, lanes, kind)
                            store_lanes(d_gate + at, lanes, of_gate)
                            result = result * load_lanes(gate + at, lanes, kind)
                        result = result * factor
                    elif has_gate:
                        result = fma(kept, load_lanes(gate + at, lanes, kind), result)
                    else:
                        result = result + kept
                    store_lanes(load_int(p + OUT_0) + token * row + at, lanes, result)

    return add
