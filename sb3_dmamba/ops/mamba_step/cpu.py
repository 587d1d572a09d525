"""A Mamba mixer's next tokens on the CPU, as one fused Numba kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numba import literally  # type: ignore[attr-defined]
from numba.extending import register_jitable
from torch import Tensor

from sb3_dmamba.ops import _cpu
from sb3_dmamba.ops._shared import compute_dtype
from sb3_dmamba.ops._simd import (
    LOG2_E,
    exp2,
    exp_minus_abs,
    fetch_increment,
    fit_register,
    fma,
    load,
    load_int,
    load_lanes,
    sigmoid_from_exp,
    softplus_from_exp,
    splat,
    splat_load,
    store,
    store_lanes,
    store_sum,
    vector_sizes,
)
from sb3_dmamba.ops.mamba_step import MambaWeights

ROWS = 12  # tokens in a unit of work: their activations take some 100 KB at a width of 128
PANEL = 4  # registers of a matrix product's output that are accumulated together


class _Prepared(NamedTuple):
    tensors: tuple[Tensor, ...]  # the owners of the addresses
    arguments: tuple[int, ...]  # sizes and addresses, in the kernel's order
    kind: int
    products: int  # multiplications for one token
    scratch: int  # bytes for one token


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    prepared: _Prepared | None = weights.prepared.get("cpu")
    if prepared is None:
        prepared = weights.prepared["cpu"] = _prepare(weights)
    dtype = prepared.tensors[0].dtype
    before: list[Any] = [tokens, convolution_state, scan_state]
    _cpu.prepare(before, 0, dtype)
    batch, length, _ = tokens.shape
    # Not empty_like: its tensors would be slower to make.
    after = [_cpu.empty(*x.shape, dtype=dtype) for x in before]
    group = max(1, ROWS // max(length, 1))
    _cpu.call_kernel(
        _cpu.load_kernel("mamba_step.cpu", "build_step", prepared.kind),
        (*(0, batch, length, group, *prepared.arguments), *_cpu.addresses(*before, *after)),
        group * length * prepared.scratch,
        -(-batch // group),
        batch * length * prepared.products,
    )
    mixed, new_convolution_state, new_scan_state = (
        new if new.dtype is old.dtype else new.to(old.dtype)
        for new, old in zip(after, (tokens, convolution_state, scan_state), strict=True)
    )
    return mixed, new_convolution_state, new_scan_state


def _prepare(weights: MambaWeights) -> _Prepared:
    dtype = compute_dtype(weights.in_proj)
    kind, float_size, lanes = _cpu.choose_vectors(dtype)
    panel = PANEL * (fit_register(kind) % 100)
    (inner, n_taps), n_states = weights.conv1d.shape, weights.A.shape[1]
    width, rank = weights.in_proj.shape[1], weights.dt_proj.shape[1]
    weight_in, weight_gate = weights.in_proj.to(dtype).chunk(2)

    def pad(x: Tensor, multiple: int) -> Tensor:
        padded: Tensor = torch.nn.functional.pad(x.to(dtype), (0, -x.shape[-1] % multiple))
        return padded

    def pack(weight: Tensor) -> Tensor:
        """Turn (outputs, inputs) into panels of outputs, each (inputs, panel)."""
        columns = pad(weight.t(), panel)
        panels: Tensor = columns.unflatten(1, (-1, panel))
        return panels.transpose(0, 1).contiguous()

    bias = weights.conv1d_bias
    tensors = tuple(
        x.detach().contiguous()
        for x in (
            torch.cat([pack(weight_in), pack(weight_gate)]),
            pad(weights.conv1d.t(), panel),
            pad(torch.zeros(inner) if bias is None else bias, panel),
            pack(weights.x_proj),
            pad(weights.dt_proj.t(), panel),
            pad(weights.dt_bias, panel),
            pad(weights.A * LOG2_E, lanes),  # the kernel raises 2 to it
            pad(weights.D, panel),
            pack(weights.out_proj),
        )
    )
    sizes = (width, inner, n_states, n_taps, rank)
    n_panels = [-(-size // panel) for size in (inner, rank + 2 * n_states, width)]
    return _Prepared(
        tensors,
        (*sizes, *n_panels, *_cpu.addresses(*tensors)),
        kind,
        sum(x.numel() for x in (weights.in_proj, weights.x_proj, weights.out_proj, weights.A)),
        float_size * panel * (5 * n_panels[0] + n_panels[1] + n_panels[2]),
    )


# fmt: off
# The kernel's argument block.
(COUNTER, BATCH, LENGTH, GROUP, WIDTH, INNER, STATES, TAPS, RANK,
 INNER_PANELS, PROJECTED_PANELS, WIDTH_PANELS,
 IN_PROJ, CONV, CONV_BIAS, X_PROJ, DT_PROJ, DT_BIAS, RATES, SKIP, OUT_PROJ,
 TOKENS, CONV_STATE, SCAN_STATE, MIXED, NEW_CONV_STATE,
 NEW_SCAN_STATE) = (8 * place for place in range(27))
# fmt: on


@register_jitable
def multiply(
    target: int, target_row: int, source: int, source_row: int,
    panels: int, n_panels: int, n_rows: int, n_inputs: int, kind: int,
) -> None:  # fmt: skip
    """Store ``source @ weights``: (n_rows, n_inputs) by panels of packed weights."""
    literally(kind)
    size, _, vector = vector_sizes(kind)
    panel_bytes = PANEL * vector
    zero = splat(0.0, kind)
    for panel in range(n_panels):
        first = panels + panel * n_inputs * panel_bytes
        row = 0
        while row + 3 <= n_rows:
            x0 = source + row * source_row
            x1, x2 = x0 + source_row, x0 + 2 * source_row
            a0, a1, a2, a3 = zero, zero, zero, zero
            b0, b1, b2, b3 = zero, zero, zero, zero
            c0, c1, c2, c3 = zero, zero, zero, zero
            for i in range(n_inputs):
                # A load serves three products before the next: AVX2 has a register for each of the
                # 12 sums, 3 inputs, and one vector of weights.
                w = first + i * panel_bytes
                xa, xb = splat_load(x0 + size * i, kind), splat_load(x1 + size * i, kind)
                xc = splat_load(x2 + size * i, kind)
                weight = load(w, kind)
                a0, b0, c0 = fma(xa, weight, a0), fma(xb, weight, b0), fma(xc, weight, c0)
                weight = load(w + vector, kind)
                a1, b1, c1 = fma(xa, weight, a1), fma(xb, weight, b1), fma(xc, weight, c1)
                weight = load(w + 2 * vector, kind)
                a2, b2, c2 = fma(xa, weight, a2), fma(xb, weight, b2), fma(xc, weight, c2)
                weight = load(w + 3 * vector, kind)
                a3, b3, c3 = fma(xa, weight, a3), fma(xb, weight, b3), fma(xc, weight, c3)
            y = target + row * target_row + panel * panel_bytes
            store(y, a0)
            store(y + vector, a1)
            store(y + 2 * vector, a2)
            store(y + 3 * vector, a3)
            y += target_row
            store(y, b0)
            store(y + vector, b1)
            store(y + 2 * vector, b2)
            store(y + 3 * vector, b3)
            y += target_row
            store(y, c0)
            store(y + vector, c1)
            store(y + 2 * vector, c2)
            store(y + 3 * vector, c3)
            row += 3
        while row < n_rows:
            x0 = source + row * source_row
            a0, a1, a2, a3 = zero, zero, zero, zero
            for i in range(n_inputs):
                w = first + i * panel_bytes
                x = splat_load(x0 + size * i, kind)
                a0, a1 = fma(x, load(w, kind), a0), fma(x, load(w + vector, kind), a1)
                a2 = fma(x, load(w + 2 * vector, kind), a2)
                a3 = fma(x, load(w + 3 * vector, kind), a3)
            y = target + row * target_row + panel * panel_bytes
            store(y, a0)
            store(y + vector, a1)
            store(y + 2 * vector, a2)
            store(y + 3 * vector, a3)
            row += 1


def build_step(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the kernel for vectors of a kind."""
    size, lanes, vector = vector_sizes(kind)
    product = fit_register(kind)
    panel_bytes = PANEL * vector_sizes(product)[2]

    def mamba_step(p: int, scratch: int) -> None:
        _ = digest  # a cached kernel is found again only while its sources are the same
        length, group, n_taps = load_int(p + LENGTH), load_int(p + GROUP), load_int(p + TAPS)
        width, inner = load_int(p + WIDTH), load_int(p + INNER)
        n_states, rank = load_int(p + STATES), load_int(p + RANK)
        inner_panels, width_panels = load_int(p + INNER_PANELS), load_int(p + WIDTH_PANELS)
        n_panels = load_int(p + PROJECTED_PANELS)
        in_proj, x_proj = load_int(p + IN_PROJ), load_int(p + X_PROJ)
        dt_proj, out_proj = load_int(p + DT_PROJ), load_int(p + OUT_PROJ)
        tokens, conv, conv_bias = load_int(p + TOKENS), load_int(p + CONV), load_int(p + CONV_BIAS)
        dt_bias = load_int(p + DT_BIAS)
        rates, skip = load_int(p + RATES), load_int(p + SKIP)
        past = n_taps - 1
        token_row, inner_row = size * width, size * inner
        # Scratch: rows of a token, in turn of each kind.
        channel_row = panel_bytes * inner_panels
        gated_row, projected_row = 2 * channel_row, panel_bytes * n_panels
        mixed_row = panel_bytes * width_panels
        rows = group * length
        gated = scratch  # the inputs, the gates
        convolved = gated + rows * gated_row
        steps = convolved + rows * channel_row
        inflows = steps + rows * channel_row
        projected = inflows + rows * channel_row
        mixed = projected + rows * projected_row
        outputs = gated  # of the scan: the inputs are not needed any more
        state_blocks = (n_states + lanes - 1) // lanes
        while True:
            first = fetch_increment(p + COUNTER) * group
            if first >= load_int(p + BATCH):
                break
            n_envs = min(group, load_int(p + BATCH) - first)
            n_rows = n_envs * length
            source = tokens + first * length * token_row
            multiply(
                gated,
                gated_row,
                source,
                token_row,
                in_proj,
                2 * inner_panels,
                n_rows,
                width,
                product,
            )
            for env in range(n_envs):
                row = env * length
                before = load_int(p + CONV_STATE) + (first + env) * past * inner_row
                after = load_int(p + NEW_CONV_STATE) + (first + env) * past * inner_row
                for offset in range(0, inner_row, vector):
                    count = min(lanes, (inner_row - offset) // size)
                    for t in range(length):
                        y = load(conv_bias + offset, kind)
                        for k in range(n_taps):
                            source = t - past + k
                            if source >= 0:
                                x = load(gated + (row + source) * gated_row + offset, kind)
                            else:
                                at = before + (source + past) * inner_row + offset
                                x = load_lanes(at, count, kind)
                            y = fma(x, load(conv + k * channel_row + offset, kind), y)
                        y = y * sigmoid_from_exp(y, exp_minus_abs(y))
                        store(convolved + (row + t) * channel_row + offset, y)
                    for k in range(past):
                        source = length - past + k
                        if source >= 0:
                            x = load(gated + (row + source) * gated_row + offset, kind)
                        else:
                            at = before + (source + past) * inner_row + offset
                            x = load_lanes(at, count, kind)
                        store_lanes(after + k * inner_row + offset, count, x)
            multiply(
                projected, projected_row, convolved, channel_row, x_proj, n_panels, n_rows, inner,
                product,
            )  # fmt: skip
            for row in range(n_rows):
                at = row * channel_row
                low_rank = projected + row * projected_row
                for offset in range(0, inner_row, vector):
                    step = load(dt_bias + offset, kind)
                    for r in range(rank):
                        weight = load(dt_proj + r * channel_row + offset, kind)
                        step = fma(splat_load(low_rank + size * r, kind), weight, step)
                    step = softplus_from_exp(step, exp_minus_abs(step))
                    store(steps + at + offset, step)
                    store(inflows + at + offset, step * load(convolved + at + offset, kind))
            for env in range(n_envs):
                old = load_int(p + SCAN_STATE) + (first + env) * inner_row * n_states
                new = load_int(p + NEW_SCAN_STATE) + (first + env) * inner_row * n_states
                for channel in range(inner):
                    rate = rates + channel * state_blocks * vector
                    source = old + channel * n_states * size
                    target = new + channel * n_states * size
                    for t in range(length):
                        row = env * length + t
                        at = row * channel_row + channel * size
                        step, inflow = splat_load(steps + at, kind), splat_load(inflows + at, kind)
                        b_row = projected + row * projected_row + rank * size
                        c_row = b_row + n_states * size
                        y = splat(0.0, kind)
                        for block in range(state_blocks):
                            offset = vector * block
                            count = min(lanes, n_states - block * lanes)
                            h = load_lanes(source + offset, count, kind)
                            decay = exp2(step * load(rate + offset, kind))
                            h = fma(decay, h, inflow * load_lanes(b_row + offset, count, kind))
                            y = fma(h, load_lanes(c_row + offset, count, kind), y)
                            store_lanes(target + offset, count, h)
                        store_sum(outputs + row * gated_row + channel * size, y)
                        source = target
            for row in range(n_rows):
                for offset in range(0, inner_row, vector):
                    at = gated + row * gated_row + offset
                    u = load(convolved + row * channel_row + offset, kind)
                    z = load(at + channel_row, kind)
                    y = fma(load(skip + offset, kind), u, load(at, kind))
                    store(at, y * (z * sigmoid_from_exp(z, exp_minus_abs(z))))
            multiply(
                mixed, mixed_row, outputs, gated_row, out_proj, width_panels, n_rows, inner, product
            )
            target = load_int(p + MIXED) + first * length * token_row
            for row in range(n_rows):
                for offset in range(0, token_row, vector):
                    count = min(lanes, (token_row - offset) // size)
                    y = load(mixed + row * mixed_row + offset, kind)
                    store_lanes(target + row * token_row + offset, count, y)

    return mamba_step
