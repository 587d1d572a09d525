"""The operations around a mixer on the CPU: Numba kernels, and the functions that call them."""

# llvmlite and Numba's internals have no types.
# mypy: disable-error-code="no-untyped-call,import-untyped,untyped-decorator"

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
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
)

_WORK = 16  # of an element, in the units of _cpu.PARALLEL_THRESHOLD
_FEW = 1 << 14  # elements of a norm in acting, below which the call itself takes longest


def modulated_norm(x: Tensor, modulation: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm; shapes are those of :func:`sb3_dmamba.ops.modulated_norm`."""
    if x.numel() < _FEW and not torch.is_grad_enabled():
        return reference.modulated_norm(x, modulation, eps)
    dtype = torch.result_type(x, modulation)
    tensors: list[Tensor | None] = [x, modulation]
    if _cpu.prepare(tensors, 2, compute_dtype(x)):
        y, rest = _normalize(eps, False, *tensors)
        assert rest is not None
    else:
        y, rest, _ = _norm_forward(eps, False, False, tensors)
    return y.to(dtype), rest


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
    _run("add_forward", x, gate, residual, [y, levels], *_dropout(n_dropped))
    return y, None, None


def _add_backward(
    n_dropped: int, tensors: Sequence[Any], saved: object, grad_y: Tensor, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, _, gate, levels = tensors
    d_x = _cpu.empty(*x.shape, dtype=x.dtype)
    d_gate = None if gate is None else _cpu.empty(*gate.shape, dtype=x.dtype)
    outputs = [d_x, levels, d_gate]
    _run("add_backward", x, gate, _cpu.rows(grad_y), outputs, *_dropout(n_dropped))
    return d_x, grad_y, d_gate, None


def _dropout(n_dropped: int) -> tuple[int, float]:
    """Return the lowest level that is kept, and the factor of what is kept."""
    return n_dropped - DROPOUT_LEVELS // 2, DROPOUT_LEVELS / (DROPOUT_LEVELS - n_dropped)


_normalize = make_differentiable(_norm_forward, _norm_backward)
_add = make_differentiable(_add_forward, _add_backward)

# fmt: off
# The kernels' argument block. X, X_B, X_T: address, strides along B and L.
(COUNTER, BATCH, LENGTH, CHANNELS, N_STEPS, N_TOKENS, SETTING, NUMBER, X, X_B, X_T,
 ROWS, ROWS_B, ROWS_T, OTHER, OTHER_B, OTHER_T, OUT_0, OUT_1, OUT_2) = (8 * i for i in range(20))
# fmt: on


def _run(
    kernel: str, x: Tensor, rows: Tensor | None, other: Tensor | None,
    outputs: list[Tensor | None], setting: int = 0, number: float = 0.0,
) -> None:  # fmt: skip
    """Run a kernel on tokens, the rows of their steps, and tokens of another kind."""
    batch, length, channels = x.shape
    n_steps = length if rows is None else rows.shape[1]
    bits, _, _ = _cpu.count_vectors(x.dtype, channels)
    packed = struct.pack("<d" if bits == 64 else "<f4x", number)
    sizes = (0, batch, length, channels, n_steps, count_tokens(length, n_steps))
    tensors = [*outputs, *(None,) * (3 - len(outputs))]
    _cpu.call_kernel(
        _cpu.load_kernel("residual.cpu", f"build_{kernel}", bits),
        (
            *(*sizes, setting, int.from_bytes(packed, "little")),
            *(*_cpu.row_arguments(bits // 8, x, rows, other), *_cpu.addresses(*tensors)),
        ),
        64,
        batch,
        x.numel() * _WORK,
    )


def _emit_inverse_root(builder: Any, x: Any, bits: int) -> Any:
    name = f"llvm.sqrt.v{_simd.VECTOR_BITS // bits}f{bits}"
    return builder.fdiv(_simd._constant(1.0, bits), _simd._call(builder, name, x.type, [x]))


def _emit_sum(builder: Any, x: Any, bits: int) -> Any:
    # "reassoc" makes it a tree of fixed shape instead of a chain.
    lanes, scalar = _simd.VECTOR_BITS // bits, _simd.FLOATS[bits]
    name, zero = f"llvm.vector.reduce.fadd.v{lanes}f{bits}", ir.Constant(scalar, 0.0)
    total = _simd._call(builder, name, scalar, [zero, x], fastmath=("reassoc",))
    return _simd._broadcast(builder, total, lanes)


inverse_root: Any = _simd._vector_math(_emit_inverse_root, 1)  #: 1 / sqrt(x)
sum_lanes: Any = _simd._vector_math(_emit_sum, 1)  #: the sum of the lanes, in each of them


@_simd._intrinsic
def select_levels(
    typing_context: Any, address: Any, lanes: Any, threshold: Any, vector: Any
) -> Any:
    """Zero the lanes of a vector whose int16, one of those at the address, is below a threshold."""
    count = _simd.VECTOR_BITS // vector.bits
    levels = ir.VectorType(ir.IntType(16), count)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _simd._pointer(builder, args[0], levels)
        found = cgutils.alloca_once(builder, levels)
        full = builder.icmp_signed("==", args[1], ir.Constant(_simd.I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(builder.load(pointer, align=2), found)
            with otherwise:
                mask = _simd._lane_mask(builder, args[1], vector.bits)
                zeros = ir.Constant(levels, [0] * count)
                arguments = [pointer, ir.Constant(_simd.I32, 2), mask, zeros]
                name = f"llvm.masked.load.v{count}i16.p0"
                builder.store(_simd._call(builder, name, levels, arguments), found)
        lowest = _simd._broadcast(builder, builder.trunc(args[2], ir.IntType(16)), count)
        is_kept = builder.icmp_signed(">=", builder.load(found), lowest)
        return builder.select(is_kept, args[3], _simd._constant(0.0, vector.bits))

    return vector(types.int64, types.int64, types.int64, vector), codegen


def build_norm_forward(bits: int, digest: int) -> Callable[[int, int], None]:
    """Make the norm's forward kernel for floats of ``bits`` bits."""
    size, width = bits // 8, 512 // bits

    def norm_forward(p: int, scratch: int) -> None:
        _ = digest  # a cached kernel is found again only while its sources are the same
        length, channels, n_tokens = (
            load_int(p + LENGTH),
            load_int(p + CHANNELS),
            load_int(p + N_TOKENS),
        )
        blocks, row = (channels + width - 1) // width, size * channels
        moments = load_int(p + OUT_1)
        eps, inverse = splat_load(p + NUMBER, bits), splat(1.0 / channels, bits)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                token, step = b * length + t, t // n_tokens
                x = load_int(p + X) + b * load_int(p + X_B) + t * load_int(p + X_T)
                factor = load_int(p + ROWS) + b * load_int(p + ROWS_B) + step * load_int(p + ROWS_T)
                y = load_int(p + OUT_0) + token * row
                total = splat(0.0, bits)
                for block in range(blocks):
                    lanes = min(width, channels - block * width)
                    total = total + load_lanes(x + 64 * block, lanes, bits)
                mean = sum_lanes(total) * inverse
                store(scratch, mean)
                total = splat(0.0, bits)
                for block in range(blocks):
                    lanes = min(width, channels - block * width)
                    # Zero in the lanes beyond the last channel.
                    off = load_lanes(x + 64 * block, lanes, bits) - load_lanes(scratch, lanes, bits)
                    total = fma(off, off, total)
                scale = inverse_root(fma(sum_lanes(total), inverse, eps))
                for block in range(blocks):
                    lanes, at = min(width, channels - block * width), 64 * block
                    normed = (load_lanes(x + at, lanes, bits) - mean) * scale
                    scaled = fma(
                        normed,
                        load_lanes(factor + at, lanes, bits),
                        load_lanes(factor + row + at, lanes, bits),
                    )
                    store_lanes(y + at, lanes, scaled)
                if moments != 0:
                    store_lanes(moments + 2 * size * token, 1, mean)
                    store_lanes(moments + 2 * size * token + size, 1, scale)

    return norm_forward


def build_norm_backward(bits: int, digest: int) -> Callable[[int, int], None]:
    """Make the norm's backward kernel for floats of ``bits`` bits."""
    size, width = bits // 8, 512 // bits

    def norm_backward(p: int, scratch: int) -> None:
        _ = digest
        length, channels, n_tokens = (
            load_int(p + LENGTH),
            load_int(p + CHANNELS),
            load_int(p + N_TOKENS),
        )
        blocks, row = (channels + width - 1) // width, size * channels
        inverse = splat(1.0 / channels, bits)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                token, step = b * length + t, t // n_tokens
                x = load_int(p + X) + b * load_int(p + X_B) + t * load_int(p + X_T)
                factor = load_int(p + ROWS) + b * load_int(p + ROWS_B) + step * load_int(p + ROWS_T)
                grad_y = load_int(p + OTHER) + b * load_int(p + OTHER_B) + t * load_int(p + OTHER_T)
                d_x = load_int(p + OUT_0) + token * row
                d_factor = load_int(p + OUT_1)
                d_factor += (b * load_int(p + N_STEPS) + step) * size * load_int(p + SETTING)
                d_shift = d_factor + row
                moments = load_int(p + OUT_2) + 2 * size * token
                mean, scale = splat_load(moments, bits), splat_load(moments + size, bits)
                total, projected = splat(0.0, bits), splat(0.0, bits)
                for block in range(blocks):
                    lanes, at = min(width, channels - block * width), 64 * block
                    grad = load_lanes(grad_y + at, lanes, bits)
                    normed = (load_lanes(x + at, lanes, bits) - mean) * scale
                    of_factor, of_shift = grad * normed, grad
                    if t % n_tokens != 0:
                        of_factor = of_factor + load_lanes(d_factor + at, lanes, bits)
                        of_shift = of_shift + load_lanes(d_shift + at, lanes, bits)
                    store_lanes(d_factor + at, lanes, of_factor)
                    store_lanes(d_shift + at, lanes, of_shift)
                    of_normed = grad * load_lanes(factor + at, lanes, bits)
                    total = total + of_normed
                    projected = fma(of_normed, normed, projected)
                total, projected = sum_lanes(total) * inverse, sum_lanes(projected) * inverse
                for block in range(blocks):
                    lanes, at = min(width, channels - block * width), 64 * block
                    normed = (load_lanes(x + at, lanes, bits) - mean) * scale
                    of_normed = load_lanes(grad_y + at, lanes, bits) * load_lanes(
                        factor + at, lanes, bits
                    )
                    store_lanes(d_x + at, lanes, (of_normed - total - normed * projected) * scale)

    return norm_backward


def build_add_forward(bits: int, digest: int) -> Callable[[int, int], None]:
    """Make the residual's forward kernel for floats of ``bits`` bits."""
    size, width = bits // 8, 512 // bits

    def add_forward(p: int, scratch: int) -> None:
        _ = digest
        length, channels, n_tokens = (
            load_int(p + LENGTH),
            load_int(p + CHANNELS),
            load_int(p + N_TOKENS),
        )
        row, threshold = size * channels, load_int(p + SETTING)
        scale = splat_load(p + NUMBER, bits)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                token = b * length + t
                x = load_int(p + X) + b * load_int(p + X_B) + t * load_int(p + X_T)
                gate = (
                    load_int(p + ROWS)
                    + b * load_int(p + ROWS_B)
                    + t // n_tokens * load_int(p + ROWS_T)
                )
                residual = (
                    load_int(p + OTHER) + b * load_int(p + OTHER_B) + t * load_int(p + OTHER_T)
                )
                y, levels = load_int(p + OUT_0) + token * row, load_int(p + OUT_1)
                for block in range((channels + width - 1) // width):
                    lanes, at = min(width, channels - block * width), 64 * block
                    kept = load_lanes(x + at, lanes, bits)
                    if levels != 0:
                        place = levels + 2 * (token * channels + block * width)
                        kept = kept * select_levels(place, lanes, threshold, scale)
                    total = splat(0.0, bits)
                    if load_int(p + OTHER) != 0:
                        total = load_lanes(residual + at, lanes, bits)
                    if load_int(p + ROWS) != 0:
                        total = fma(kept, load_lanes(gate + at, lanes, bits), total)
                    else:
                        total = total + kept
                    store_lanes(y + at, lanes, total)

    return add_forward


def build_add_backward(bits: int, digest: int) -> Callable[[int, int], None]:
    """Make the residual's backward kernel for floats of ``bits`` bits."""
    size, width = bits // 8, 512 // bits

    def add_backward(p: int, scratch: int) -> None:
        _ = digest
        length, channels, n_tokens = (
            load_int(p + LENGTH),
            load_int(p + CHANNELS),
            load_int(p + N_TOKENS),
        )
        row, threshold = size * channels, load_int(p + SETTING)
        scale = splat_load(p + NUMBER, bits)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for t in range(length):
                token, step = b * length + t, t // n_tokens
                x = load_int(p + X) + b * load_int(p + X_B) + t * load_int(p + X_T)
                gate = load_int(p + ROWS) + b * load_int(p + ROWS_B) + step * load_int(p + ROWS_T)
                grad_y = load_int(p + OTHER) + b * load_int(p + OTHER_B) + t * load_int(p + OTHER_T)
                d_x, levels = load_int(p + OUT_0) + token * row, load_int(p + OUT_1)
                d_gate = load_int(p + OUT_2) + (b * load_int(p + N_STEPS) + step) * row
                for block in range((channels + width - 1) // width):
                    lanes, at = min(width, channels - block * width), 64 * block
                    grad = load_lanes(grad_y + at, lanes, bits)
                    factor = splat(1.0, bits)
                    if levels != 0:
                        place = levels + 2 * (token * channels + block * width)
                        factor = select_levels(place, lanes, threshold, scale)
                    if load_int(p + ROWS) != 0:
                        of_gate = grad * (load_lanes(x + at, lanes, bits) * factor)
                        if t % n_tokens != 0:
                            of_gate = of_gate + load_lanes(d_gate + at, lanes, bits)
                        store_lanes(d_gate + at, lanes, of_gate)
                        grad = grad * load_lanes(gate + at, lanes, bits)
                    store_lanes(d_x + at, lanes, grad * factor)

    return add_backward
