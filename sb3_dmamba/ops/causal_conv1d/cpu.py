"""The causal convolution on the CPU: Numba kernels, and the function that calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sb3_dmamba.ops import _cpu
from sb3_dmamba.ops._shared import compute_dtype, make_differentiable
from sb3_dmamba.ops._simd import (
    LINE,
    exp_minus_abs,
    fetch_increment,
    fma,
    load,
    load_int,
    load_lanes,
    pack_channels,
    prefetch,
    prefetch_to_write,
    sigmoid_from_exp,
    splat,
    store,
    store_lanes,
    vector_sizes,
)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    dtype = compute_dtype(x)
    tensors = [x, weight, bias, initial_state]
    if _cpu.prepare(tensors, 1, dtype):
        y, final = _convolve(silu, return_final_state, *tensors)
    else:
        y, final, _ = _forward(silu, return_final_state, False, tensors)
    if x.dtype is not dtype:
        y, final = y.to(x.dtype), None if final is None else final.to(x.dtype)
    return y, final


def _common_arguments(silu: bool, size: int, tensors: Sequence[Any]) -> tuple[int, ...]:
    """Pack what both kernels take."""
    x, weight, bias, initial = tensors
    return (
        *(0, *x.shape, weight.shape[1], int(silu)),
        *_cpu.row_arguments(size, x),
        *_cpu.addresses(weight, bias, initial),
    )


def _forward(
    silu: bool, return_final_state: bool, save: bool, tensors: Sequence[Any]
) -> tuple[Tensor, Tensor | None, None]:
    """Return the output, and the final state or None; nothing besides the inputs is saved."""
    x, weight = tensors[0], tensors[1]
    (batch, length, channels), taps, dtype = x.shape, weight.shape[1], x.dtype
    kind, size, width = _cpu.choose_vectors(dtype)
    blocks = -(-channels // width)
    y = _cpu.empty(*x.shape, dtype=dtype)
    final = _cpu.empty(batch, taps - 1, channels, dtype=dtype) if return_final_state else None
    _cpu.call_kernel(
        _cpu.load_kernel("causal_conv1d.cpu", "build_forward", kind),
        (*_common_arguments(silu, size, tensors), *_cpu.addresses(y, final)),
        size * width * blocks * taps,
        batch,
        batch * length * channels * taps,
    )
    return y, final, None


def _backward(
    silu: bool, tensors: Sequence[Any], saved: object, grad_y: Tensor, grad_final: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, _, initial = tensors
    (batch, length, channels), taps, dtype = x.shape, weight.shape[1], x.dtype
    kind, size, width = _cpu.choose_vectors(dtype)
    blocks = -(-channels // width)
    grad_y = _cpu.rows(grad_y)
    grad_final = None if grad_final is None else grad_final.contiguous()
    d_x = _cpu.empty(*x.shape, dtype=dtype)
    d_initial = None if initial is None else _cpu.empty(*initial.shape, dtype=dtype)
    group_size, n_groups = _cpu.cut_batch(batch)
    # Of each group: the weight's gradient, then the bias's as one more tap.
    partials = _cpu.empty(n_groups, blocks, taps + 1, width, dtype=dtype)
    _cpu.call_kernel(
        _cpu.load_kernel("causal_conv1d.cpu", "build_backward", kind),
        (
            *_common_arguments(silu, size, tensors),
            *(0, 0, *_cpu.row_arguments(size, grad_y)),
            *(*_cpu.addresses(grad_final, d_x, d_initial, partials), group_size),
        ),
        size * width * (blocks * taps + length),
        n_groups,
        batch * length * channels * taps,
    )
    total = _cpu.sum_groups(partials, channels)
    return d_x, total[:, :taps].contiguous(), total[:, taps].contiguous(), d_initial


_convolve = make_differentiable(_forward, _backward)


# fmt: off
# The kernels' argument block. X, X_B, X_T: address, strides along B and L.
(COUNTER, BATCH, LENGTH, CHANNELS, TAPS, SILU, X, X_B, X_T, WEIGHT, BIAS, INITIAL, Y, FINAL,
 GRAD_Y, GRAD_Y_B, GRAD_Y_T, GRAD_FINAL, D_X, D_INITIAL,
 PARTIALS, GROUP_SIZE) = (8 * place for place in range(22))
# fmt: on


def build_forward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the forward kernel for vectors of a kind."""
    size, width, vector = vector_sizes(kind)

    def conv_forward(p: int, scratch: int) -> None:
        _ = digest  # a cached kernel is found again only while its sources are the same
        length, channels, taps = load_int(p + LENGTH), load_int(p + CHANNELS), load_int(p + TAPS)
        blocks = (channels + width - 1) // width
        silu, x_t = load_int(p + SILU), load_int(p + X_T)
        weight, bias_in, initial = load_int(p + WEIGHT), load_int(p + BIAS), load_int(p + INITIAL)
        final = load_int(p + FINAL)
        past = taps - 1
        row = size * channels
        zero = splat(0.0, kind)
        pack_channels(scratch, weight, channels, taps, 1.0, kind)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            x_rows = load_int(p + X) + b * load_int(p + X_B)
            y_rows = load_int(p + Y) + b * length * row
            before = initial + b * past * row
            for block in range(blocks):
                lanes = min(width, channels - block * width)
                offset = vector * block
                taps_here = scratch + offset * taps
                bias = zero
                if bias_in != 0:
                    bias = load_lanes(bias_in + offset, lanes, kind)
                for t in range(length):
                    y = bias
                    for k in range(taps):
                        source = t - past + k
                        if source >= 0:
                            x = load_lanes(x_rows + source * x_t + offset, lanes, kind)
                            y = fma(x, load(taps_here + vector * k, kind), y)
                        elif initial != 0:
                            x = load_lanes(before + (source + past) * row + offset, lanes, kind)
                            y = fma(x, load(taps_here + vector * k, kind), y)
                    if silu != 0:
                        y = y * sigmoid_from_exp(y, exp_minus_abs(y))
                    store_lanes(y_rows + t * row + offset, lanes, y)
                    # The next block's lines: the hardware foresees none in a walk down the rows.
                    prefetch(x_rows + t * x_t + offset + LINE)
                    prefetch_to_write(y_rows + t * row + offset + LINE)
                if final != 0:
                    for k in range(past):
                        source = length - past + k
                        x = zero
                        if source >= 0:
                            x = load_lanes(x_rows + source * x_t + offset, lanes, kind)
                        elif initial != 0:
                            x = load_lanes(before + (source + past) * row + offset, lanes, kind)
                        store_lanes(final + (b * past + k) * row + offset, lanes, x)

    return conv_forward


def build_backward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the backward kernel for vectors of a kind."""
    size, width, vector = vector_sizes(kind)

    def conv_backward(p: int, scratch: int) -> None:
        _ = digest
        length, channels, taps = load_int(p + LENGTH), load_int(p + CHANNELS), load_int(p + TAPS)
        blocks = (channels + width - 1) // width
        silu, x_t, grad_y_t = load_int(p + SILU), load_int(p + X_T), load_int(p + GRAD_Y_T)
        weight, bias_in, initial = load_int(p + WEIGHT), load_int(p + BIAS), load_int(p + INITIAL)
        grad_final, d_initial = load_int(p + GRAD_FINAL), load_int(p + D_INITIAL)
        batch, group_size = load_int(p + BATCH), load_int(p + GROUP_SIZE)
        past = taps - 1
        row = size * channels
        grads = scratch + vector * blocks * taps
        zero, one = splat(0.0, kind), splat(1.0, kind)
        pack_channels(scratch, weight, channels, taps, 1.0, kind)
        while True:
            group = fetch_increment(p + COUNTER)
            if group * group_size >= batch:
                break
            partials = load_int(p + PARTIALS) + group * blocks * (taps + 1) * vector
            for i in range(blocks * (taps + 1)):
                store(partials + vector * i, zero)
            for b in range(group * group_size, min(batch, (group + 1) * group_size)):
                x_rows = load_int(p + X) + b * load_int(p + X_B)
                grad_rows = load_int(p + GRAD_Y) + b * load_int(p + GRAD_Y_B)
                d_x_rows = load_int(p + D_X) + b * length * row
                before = initial + b * past * row
                for block in range(blocks):
                    lanes = min(width, channels - block * width)
                    offset = vector * block
                    taps_here = scratch + offset * taps
                    partial = partials + offset * (taps + 1)
                    bias = zero
                    if bias_in != 0:
                        bias = load_lanes(bias_in + offset, lanes, kind)
                    d_bias = load(partial + vector * taps, kind)
                    for t in range(length):
                        grad = load_lanes(grad_rows + t * grad_y_t + offset, lanes, kind)
                        if silu != 0:
                            y = bias
                            for k in range(taps):
                                source = t - past + k
                                if source >= 0:
                                    x = load_lanes(x_rows + source * x_t + offset, lanes, kind)
                                    y = fma(x, load(taps_here + vector * k, kind), y)
                                elif initial != 0:
                                    place = before + (source + past) * row + offset
                                    x = load_lanes(place, lanes, kind)
                                    y = fma(x, load(taps_here + vector * k, kind), y)
                            gate = sigmoid_from_exp(y, exp_minus_abs(y))
                            # silu' = gate * (1 + y * (1 - gate))
                            grad = grad * (gate * fma(y, one - gate, one))
                        store(grads + vector * t, grad)
                        prefetch(x_rows + t * x_t + offset + LINE)
                        prefetch(grad_rows + t * grad_y_t + offset + LINE)
                        prefetch_to_write(d_x_rows + t * row + offset + LINE)
                        d_bias = d_bias + grad
                        for k in range(taps):
                            source = t - past + k
                            x = zero
                            if source >= 0:
                                x = load_lanes(x_rows + source * x_t + offset, lanes, kind)
                            elif initial != 0:
                                place = before + (source + past) * row + offset
                                x = load_lanes(place, lanes, kind)
                            store(
                                partial + vector * k, fma(grad, x, load(partial + vector * k, kind))
                            )
                    store(partial + vector * taps, d_bias)
                    for s in range(-past, length):
                        d_x = zero
                        if grad_final != 0 and s - length + past >= 0:
                            place = grad_final + (b * past + s - length + past) * row + offset
                            d_x = load_lanes(place, lanes, kind)
                        for k in range(taps):
                            t = s + past - k
                            if 0 <= t < length:
                                d_x = fma(
                                    load(taps_here + vector * k, kind),
                                    load(grads + vector * t, kind),
                                    d_x,
                                )
                        if s >= 0:
                            store_lanes(d_x_rows + s * row + offset, lanes, d_x)
                        elif d_initial != 0:
                            place = d_initial + (b * past + s + past) * row + offset
                            store_lanes(place, lanes, d_x)

    return conv_backward
