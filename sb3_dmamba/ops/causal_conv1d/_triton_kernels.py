"""Triton kernels of the causal depthwise convolution, with bias and SiLU.

A program takes ``BLOCK_D`` channels of one sequence along ``span`` places, ``BLOCK_L`` at a time;
the taps' overlapping rows come from the first-level cache. Places count from the start of the
padded sequence: the initial state's ``TAPS - 1`` rows, then the input's.
"""

import triton
import triton.language as tl

from sb3_dmamba.ops._triton import exp_minus_abs, load, sigmoid_from_exp


@triton.jit
def load_padded(
    x_ptr, initial_ptr,
    place, d, length, n_channels,
    x_time,
    TAPS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Load rows of the padded sequence, zeros beyond its end and where there is no state."""
    token = place - (TAPS - 1)
    inside = (token >= 0) & (token < length)
    mask = inside[:, None] & (d < n_channels)[None, :]
    x = load(x_ptr + token[:, None] * x_time + d[None, :], mask, DOUBLE)
    if initial_ptr is not None:
        before = ((place >= 0) & (token < 0))[:, None] & (d < n_channels)[None, :]
        x += load(initial_ptr + place[:, None] * n_channels + d[None, :], before, DOUBLE)
    return x


@triton.jit(do_not_specialize=["length", "span"])
def conv_forward(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, y_ptr, final_ptr,
    length, span, n_channels,
    x_batch, x_time,
    TAPS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, SILU: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """Convolve ``span`` tokens; the first program of a sequence stores its final state."""
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    d = (tl.program_id(0) % n_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_L)
    d_mask = d < n_channels
    x_ptr += batch * x_batch
    y_ptr += batch * length * n_channels
    if initial_ptr is not None:
        initial_ptr += batch * (TAPS - 1) * n_channels
    bias = tl.zeros((BLOCK_D,), tl.float64 if DOUBLE else tl.float32)
    if bias_ptr is not None:
        bias = load(bias_ptr + d, d_mask, DOUBLE)

    first = tl.program_id(1) * span
    last = tl.minimum(first + span, length)
    for t in range(first, last, BLOCK_L):
        token = t + rows
        y = tl.zeros((BLOCK_L, BLOCK_D), tl.float64 if DOUBLE else tl.float32) + bias[None, :]
        for k in tl.static_range(TAPS):
            tap = load(weight_ptr + d * TAPS + k, d_mask, DOUBLE)
            x = load_padded(
                x_ptr, initial_ptr, token + k, d, length, n_channels, x_time, TAPS, DOUBLE
            )
            y += x * tap[None, :]
        if SILU:
            y *= sigmoid_from_exp(y, exp_minus_abs(y))
        mask = (token < last)[:, None] & d_mask[None, :]
        tl.store(y_ptr + token[:, None] * n_channels + d[None, :], y, mask=mask)

    if final_ptr is not None:  # noqa: SIM102 (known at compile time)
        if tl.program_id(1) == 0:
            final_ptr += batch * (TAPS - 1) * n_channels
            for start in tl.static_range(0, TAPS - 1, BLOCK_L):
                row = start + rows
                place = length + row
                x = load_padded(
                    x_ptr, initial_ptr, place, d, length, n_channels, x_time, TAPS, DOUBLE
                )
                mask = (row < TAPS - 1)[:, None] & d_mask[None, :]
                tl.store(final_ptr + row[:, None] * n_channels + d[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["length", "span"])
def conv_backward(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, grad_ptr, grad_final_ptr, d_x_ptr, d_initial_ptr,
    d_taps_ptr,
    length, span, n_channels,
    x_batch, x_time, grad_batch, grad_time,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
    SILU: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ``span`` places of the padded sequence.

    What the program's tokens contribute to the gradients of the taps and, as one more tap, of the
    bias goes to ``d_taps`` (batch, span, TAPS + 1, D).
    """
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    d = (tl.program_id(0) % n_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_L)
    d_mask = d < n_channels
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    x_ptr += batch * x_batch
    grad_ptr += batch * grad_batch
    d_x_ptr += batch * length * n_channels
    if initial_ptr is not None:
        initial_ptr += batch * (TAPS - 1) * n_channels
        d_initial_ptr += batch * (TAPS - 1) * n_channels
    if grad_final_ptr is not None:
        grad_final_ptr += batch * (TAPS - 1) * n_channels
    bias = tl.zeros((BLOCK_D,), dtype)
    if bias_ptr is not None:
        bias = load(bias_ptr + d, d_mask, DOUBLE)
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (load(weight_ptr + d * TAPS + k, d_mask, DOUBLE),)
    numbers = tl.arange(0, BLOCK_T)
    d_taps = tl.zeros((BLOCK_T, BLOCK_D), dtype)

    first = tl.program_id(1) * span
    last = tl.minimum(first + span, length + TAPS - 1)
    for p in range(first, last, BLOCK_L):
        place = p + rows
        # A place is read by tokens place - (TAPS - 1) to place, and they by places around it.
        window = ()
        for m in tl.static_range(2 * TAPS - 1):
            around = place + (m - (TAPS - 1))
            x = load_padded(x_ptr, initial_ptr, around, d, length, n_channels, x_time, TAPS, DOUBLE)
            window += (x,)
        d_place = tl.zeros((BLOCK_L, BLOCK_D), dtype)
        if grad_final_ptr is not None:
            behind = (place >= length) & (place < length + TAPS - 1)
            mask = behind[:, None] & d_mask[None, :]
            final_row = grad_final_ptr + (place - length)[:, None] * n_channels
            d_place += load(final_row + d[None, :], mask, DOUBLE)
        for j in tl.static_range(TAPS):
            token = place + (j - (TAPS - 1))
            mask = ((token >= 0) & (token < length))[:, None] & d_mask[None, :]
            grad = load(grad_ptr + token[:, None] * grad_time + d[None, :], mask, DOUBLE)
            if SILU:
                y = tl.zeros((BLOCK_L, BLOCK_D), dtype) + bias[None, :]
                for k in tl.static_range(TAPS):
                    y += window[j + k] * taps[k][None, :]
                gate = sigmoid_from_exp(y, exp_minus_abs(y))
                grad *= gate * (1.0 + y * (1.0 - gate))
            d_place += grad * taps[TAPS - 1 - j][None, :]
            if j == TAPS - 1:  # the token of the place's number: each has one place
                for k in tl.static_range(TAPS):
                    d_tap = tl.sum(grad * window[j + k], 0)
                    d_taps += tl.where((numbers == k)[:, None], d_tap[None, :], 0.0)
                d_tap = tl.sum(grad, 0)
                d_taps += tl.where((numbers == TAPS)[:, None], d_tap[None, :], 0.0)
        token = place - (TAPS - 1)
        mask = ((token >= 0) & (token < length))[:, None] & d_mask[None, :]
        tl.store(d_x_ptr + token[:, None] * n_channels + d[None, :], d_place, mask=mask)
        if initial_ptr is not None:
            mask = (token < 0)[:, None] & d_mask[None, :]
            tl.store(d_initial_ptr + place[:, None] * n_channels + d[None, :], d_place, mask=mask)

    part = batch * tl.num_programs(1) + tl.program_id(1)
    places = (part * (TAPS + 1) + numbers)[:, None] * n_channels + d[None, :]
    tl.store(d_taps_ptr + places, d_taps, mask=(numbers <= TAPS)[:, None] & d_mask[None, :])
