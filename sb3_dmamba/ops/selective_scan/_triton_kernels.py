"""Triton kernels of the selective scan, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_dmamba.ops._triton import below, exp_minus_abs, load, sigmoid_from_exp, softplus_from_exp

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_raw_step(
    delta_row, weight, bias, d, d_mask, r, r_mask, RANKED: tl.constexpr, DOUBLE: tl.constexpr
):
    """Load one token's step sizes before softplus, ``(BLOCK_D,)``; ``weight`` ``(R, BLOCK_D)``."""
    if RANKED:
        low = load(delta_row + r, r_mask, DOUBLE)
        return tl.sum(weight * low[:, None], 0) + bias
    return load(delta_row + d, d_mask, DOUBLE) + bias


@triton.jit
def load_weight(pointer, d, d_mask, r, r_mask, rank, unit, DOUBLE: tl.constexpr):
    """Load ``(R, BLOCK_D)`` of the weight (D, R) of the step sizes.

    The stride along R comes as an argument whose value the compiler does not see, always 1. It then
    lays the channels along the lanes, and each lane sums over R by itself.
    """
    places = pointer + d[None, :] * rank + r[:, None] * unit
    return load(places, r_mask[:, None] & d_mask[None, :], DOUBLE)


@triton.jit
def load_state(pointer, d, d_mask, n, n_mask, n_states, DOUBLE: tl.constexpr):
    """Load ``(BLOCK_D, BLOCK_N)`` of a contiguous (D, N) array."""
    places = pointer + d[:, None] * n_states + n[None, :]
    return load(places, d_mask[:, None] & n_mask[None, :], DOUBLE)


@triton.jit
def store_state(pointer, state, d, d_mask, n, n_mask, n_states):
    """Store ``(BLOCK_D, BLOCK_N)`` of a contiguous (D, N) array."""
    places = pointer + d[:, None] * n_states + n[None, :]
    tl.store(places, state, mask=d_mask[:, None] & n_mask[None, :])


@triton.jit(do_not_specialize=["length", "segment", "unit"])
def scan_forward(
    u_ptr, delta_ptr, weight_ptr, a_ptr, b_ptr, c_ptr, skip_ptr, z_ptr, bias_ptr, initial_ptr,
    starts_ptr, y_ptr, final_ptr, checkpoints_ptr, sums_ptr,
    length, segment, n_channels, n_states, rank, unit,
    u_batch, u_time, delta_batch, delta_time, b_batch, b_time, c_batch, c_time, z_batch, z_time,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr,
    SOFTPLUS: tl.constexpr, DOUBLE: tl.constexpr, STATES_ONLY: tl.constexpr,
):  # fmt: skip
    """Scan one segment.

    From ``starts`` (batch, segment, D, N) where given, else from ``initial`` (batch, D, N) or zero.
    ``STATES_ONLY`` starts from zero, reads nothing out, and leaves the segment's last state in
    ``final`` (batch, segment, D, N) and the sum of its steps in ``sums`` (batch, segment, D).
    ``checkpoints`` (batch, tile, D, N) receives the state before each tile.
    """
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    part, n_parts = tl.program_id(1), tl.num_programs(1)
    d = (tl.program_id(0) % n_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    d_mask, n_mask, r_mask = d < n_channels, n < n_states, r < rank
    ranked: tl.constexpr = weight_ptr is not None
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32

    rate = load_state(a_ptr, d, d_mask, n, n_mask, n_states, DOUBLE) * LOG2_E
    weight = 0.0
    if ranked:
        weight = load_weight(weight_ptr, d, d_mask, r, r_mask, rank, unit, DOUBLE)
    bias, skip = tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype)
    if bias_ptr is not None:
        bias = load(bias_ptr + d, d_mask, DOUBLE)
    if skip_ptr is not None:
        skip = load(skip_ptr + d, d_mask, DOUBLE)

    state_size = n_channels * n_states
    state = tl.zeros((BLOCK_D, BLOCK_N), dtype)
    if starts_ptr is not None:
        start = starts_ptr + (batch * n_parts + part) * state_size
        state = load_state(start, d, d_mask, n, n_mask, n_states, DOUBLE)
    elif initial_ptr is not None:
        start = initial_ptr + batch * state_size
        state = load_state(start, d, d_mask, n, n_mask, n_states, DOUBLE)
    steps_sum = tl.zeros((BLOCK_D,), dtype)

    # Offsets of tokens stay 32 bits wide, those of sequences are 64.
    u_ptr += batch * u_batch
    delta_ptr += batch * delta_batch
    b_ptr += batch * b_batch
    c_ptr += batch * c_batch
    if z_ptr is not None:
        z_ptr += batch * z_batch
    if y_ptr is not None:
        y_ptr += batch * length * n_channels
    first = part * segment
    last = tl.minimum(first + segment, length)
    n_tiles = tl.cdiv(length, TILE)
    for t in range(first, last, TILE):
        if checkpoints_ptr is not None:
            place = checkpoints_ptr + (batch * n_tiles + t // TILE) * state_size
            store_state(place, state, d, d_mask, n, n_mask, n_states)
        # Every load of the tile first: they wait for memory together.
        steps, inputs, outputs, gates = (), (), (), ()
        for i in tl.static_range(TILE):
            mask = below(d, n_channels, t + i < last)
            u = load(u_ptr + (t + i) * u_time + d, mask, DOUBLE)
            row = delta_ptr + (t + i) * delta_time
            low_mask = below(r, rank, t + i < last)
            step = load_raw_step(row, weight, bias, d, mask, r, low_mask, ranked, DOUBLE)
            if SOFTPLUS:
                step = softplus_from_exp(step, exp_minus_abs(step), DOUBLE)
            step = tl.where(mask, step, 0.0)
            steps_sum += step
            steps += (step,)
            inputs += (step * u,)
            outputs += (skip * u,)
            if z_ptr is not None:
                gates += (load(z_ptr + (t + i) * z_time + d, mask, DOUBLE),)
        for i in tl.static_range(TILE):
            mask = below(n, n_states, t + i < last)
            b = load(b_ptr + (t + i) * b_time + n, mask, DOUBLE)
            decay = tl.exp2(steps[i][:, None] * rate)
            state = decay * state + inputs[i][:, None] * b[None, :]
            if not STATES_ONLY:
                c = load(c_ptr + (t + i) * c_time + n, mask, DOUBLE)
                outputs += (outputs[i] + tl.sum(state * c[None, :], 1),)
        if not STATES_ONLY:
            for i in tl.static_range(TILE):
                y = outputs[TILE + i]
                if z_ptr is not None:
                    y *= gates[i] * sigmoid_from_exp(gates[i], exp_minus_abs(gates[i]))
                tl.store(
                    y_ptr + (t + i) * n_channels + d, y, mask=below(d, n_channels, t + i < last)
                )

    if STATES_ONLY:
        place = final_ptr + (batch * n_parts + part) * state_size
        store_state(place, state, d, d_mask, n, n_mask, n_states)
        tl.store(sums_ptr + (batch * n_parts + part) * n_channels + d, steps_sum, mask=d_mask)
    elif final_ptr is not None:  # noqa: SIM102 (known at compile time)
        if part == n_parts - 1:
            place = final_ptr + batch * state_size
            store_state(place, state, d, d_mask, n, n_mask, n_states)


@triton.jit
def carry_states(
    ends_ptr, sums_ptr, a_ptr, boundary_ptr, starts_ptr,
    n_parts, n_channels, n_states,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, REVERSED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Turn what each segment adds to the state into the state that each segment starts from.

    A segment multiplies what comes into it by ``exp(A * sum of its steps)`` and adds what it would
    have come to from zero, ``ends`` (batch, segment, D, N); ``boundary`` (batch, D, N) comes into
    the first. ``REVERSED`` goes from the last segment to the first, as gradients do.
    """
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    d = (tl.program_id(0) % n_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask, n_mask = d < n_channels, n < n_states
    state_size = n_channels * n_states
    rate = load_state(a_ptr, d, d_mask, n, n_mask, n_states, DOUBLE) * LOG2_E
    state = tl.zeros((BLOCK_D, BLOCK_N), tl.float64 if DOUBLE else tl.float32)
    if boundary_ptr is not None:
        start = boundary_ptr + batch * state_size
        state = load_state(start, d, d_mask, n, n_mask, n_states, DOUBLE)
    for k in range(n_parts):
        part = n_parts - 1 - k if REVERSED else k
        place = (batch * n_parts + part) * state_size
        store_state(starts_ptr + place, state, d, d_mask, n, n_mask, n_states)
        steps_sum = load(sums_ptr + (batch * n_parts + part) * n_channels + d, d_mask, DOUBLE)
        end = load_state(ends_ptr + place, d, d_mask, n, n_mask, n_states, DOUBLE)
        state = tl.exp2(steps_sum[:, None] * rate) * state + end


@triton.jit(do_not_specialize=["length", "segment", "unit"])
def scan_backward_ends(
    delta_ptr, weight_ptr, a_ptr, c_ptr, z_ptr, bias_ptr, grad_ptr, ends_ptr, sums_ptr,
    length, segment, n_channels, n_states, rank, unit,
    delta_batch, delta_time, c_batch, c_time, z_batch, z_time, grad_batch, grad_time,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr,
    SOFTPLUS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Compute what each segment adds to the state's gradient before it, and sum its steps.

    Leaves ``ends`` (batch, segment, D, N) and ``sums`` (batch, segment, D) for ``carry_states``.
    """
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    part, n_parts = tl.program_id(1), tl.num_programs(1)
    d = (tl.program_id(0) % n_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    d_mask, n_mask, r_mask = d < n_channels, n < n_states, r < rank
    ranked: tl.constexpr = weight_ptr is not None
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32

    rate = load_state(a_ptr, d, d_mask, n, n_mask, n_states, DOUBLE) * LOG2_E
    weight = 0.0
    if ranked:
        weight = load_weight(weight_ptr, d, d_mask, r, r_mask, rank, unit, DOUBLE)
    bias = tl.zeros((BLOCK_D,), dtype)
    if bias_ptr is not None:
        bias = load(bias_ptr + d, d_mask, DOUBLE)
    carry = tl.zeros((BLOCK_D, BLOCK_N), dtype)
    steps_sum = tl.zeros((BLOCK_D,), dtype)

    delta_ptr += batch * delta_batch
    c_ptr += batch * c_batch
    grad_ptr += batch * grad_batch
    if z_ptr is not None:
        z_ptr += batch * z_batch
    first = part * segment
    last = tl.minimum(first + segment, length)
    n_tiles = tl.cdiv(last - first, TILE)
    for k in range(n_tiles):
        t = first + (n_tiles - 1 - k) * TILE
        steps, grads = (), ()
        for i in tl.static_range(TILE):
            mask = below(d, n_channels, t + i < last)
            row = delta_ptr + (t + i) * delta_time
            low_mask = below(r, rank, t + i < last)
            step = load_raw_step(row, weight, bias, d, mask, r, low_mask, ranked, DOUBLE)
            if SOFTPLUS:
                step = softplus_from_exp(step, exp_minus_abs(step), DOUBLE)
            step = tl.where(mask, step, 0.0)
            steps_sum += step
            steps += (step,)
            grad = load(grad_ptr + (t + i) * grad_time + d, mask, DOUBLE)
            if z_ptr is not None:
                z = load(z_ptr + (t + i) * z_time + d, mask, DOUBLE)
                grad *= z * sigmoid_from_exp(z, exp_minus_abs(z))
            grads += (grad,)
        for i in tl.static_range(TILE - 1, -1, -1):
            mask = below(n, n_states, t + i < last)
            c = load(c_ptr + (t + i) * c_time + n, mask, DOUBLE)
            carry += grads[i][:, None] * c[None, :]
            carry *= tl.exp2(steps[i][:, None] * rate)

    place = batch * n_parts + part
    ends = ends_ptr + place * n_channels * n_states
    store_state(ends, carry, d, d_mask, n, n_mask, n_states)
    tl.store(sums_ptr + place * n_channels + d, steps_sum, mask=d_mask)


@triton.jit(do_not_specialize=["length", "segment", "unit"])
def scan_backward(
    u_ptr, delta_ptr, weight_ptr, a_ptr, b_ptr, c_ptr, skip_ptr, z_ptr, bias_ptr, checkpoints_ptr,
    grad_ptr, carries_ptr, d_u_ptr, d_step_ptr, d_z_ptr, d_b_ptr, d_c_ptr, d_a_ptr, d_skip_ptr,
    d_bias_ptr, d_initial_ptr,
    n_sequences, length, segment, n_channels, n_states, rank, unit,
    u_batch, u_time, delta_batch, delta_time, b_batch, b_time, c_batch, c_time, z_batch, z_time,
    grad_batch, grad_time,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, HISTORY: tl.constexpr,
    SPACING: tl.constexpr, SOFTPLUS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one segment.

    ``checkpoints`` (batch, L / SPACING, D, N) are the forward pass's; ``carries`` (batch, segment,
    D, N) the gradient that comes into each segment's last state from behind it, None for zero. Of
    contributions: ``d_b`` and ``d_c`` (block of channels, batch, L, N), ``d_a`` (batch, segment, D,
    N), ``d_skip`` and ``d_bias`` (batch, segment, D).
    """
    n_blocks = tl.cdiv(n_channels, BLOCK_D)
    block = tl.program_id(0) % n_blocks
    batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    part, n_parts = tl.program_id(1), tl.num_programs(1)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    d_mask, n_mask, r_mask = d < n_channels, n < n_states, r < rank
    ranked: tl.constexpr = weight_ptr is not None
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32

    rate = load_state(a_ptr, d, d_mask, n, n_mask, n_states, DOUBLE) * LOG2_E
    weight = 0.0
    if ranked:
        weight = load_weight(weight_ptr, d, d_mask, r, r_mask, rank, unit, DOUBLE)
    bias, skip = tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype)
    if bias_ptr is not None:
        bias = load(bias_ptr + d, d_mask, DOUBLE)
    if skip_ptr is not None:
        skip = load(skip_ptr + d, d_mask, DOUBLE)

    state_size = n_channels * n_states
    place = batch * n_parts + part
    carry = tl.zeros((BLOCK_D, BLOCK_N), dtype)
    if carries_ptr is not None:
        start = carries_ptr + place * state_size
        carry = load_state(start, d, d_mask, n, n_mask, n_states, DOUBLE)
    d_rate = tl.zeros((BLOCK_D, BLOCK_N), dtype)
    d_skip, d_bias = tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype)

    u_ptr += batch * u_batch
    delta_ptr += batch * delta_batch
    b_ptr += batch * b_batch
    c_ptr += batch * c_batch
    grad_ptr += batch * grad_batch
    d_u_ptr += batch * length * n_channels
    d_step_ptr += batch * length * n_channels
    if z_ptr is not None:
        z_ptr += batch * z_batch
        d_z_ptr += batch * length * n_channels
    d_b_ptr += (block.to(tl.int64) * n_sequences + batch) * length * n_states
    d_c_ptr += (block.to(tl.int64) * n_sequences + batch) * length * n_states
    first = part * segment
    last = tl.minimum(first + segment, length)
    n_tiles = tl.cdiv(last - first, HISTORY)
    for k in range(n_tiles):
        t = first + (n_tiles - 1 - k) * HISTORY
        before = t - t % SPACING
        checkpoint = (batch * tl.cdiv(length, SPACING) + t // SPACING) * state_size
        state = load_state(checkpoints_ptr + checkpoint, d, d_mask, n, n_mask, n_states, DOUBLE)
        for s in range(before, t, HISTORY):
            steps, inputs = (), ()
            for i in tl.static_range(HISTORY):
                u = load(u_ptr + (s + i) * u_time + d, d_mask, DOUBLE)
                row = delta_ptr + (s + i) * delta_time
                step = load_raw_step(row, weight, bias, d, d_mask, r, r_mask, ranked, DOUBLE)
                if SOFTPLUS:
                    step = softplus_from_exp(step, exp_minus_abs(step), DOUBLE)
                steps += (step,)
                inputs += (step * u,)
            for i in tl.static_range(HISTORY):
                b = load(b_ptr + (s + i) * b_time + n, n_mask, DOUBLE)
                inflow = inputs[i][:, None] * b[None, :]
                state = tl.exp2(steps[i][:, None] * rate) * state + inflow

        # The tile's states, kept in registers: states[i] is the one before token i.
        us, steps, slopes, states = (), (), (), (state,)
        for i in tl.static_range(HISTORY):
            mask = below(d, n_channels, t + i < last)
            us += (load(u_ptr + (t + i) * u_time + d, mask, DOUBLE),)
            row = delta_ptr + (t + i) * delta_time
            low_mask = below(r, rank, t + i < last)
            raw = load_raw_step(row, weight, bias, d, mask, r, low_mask, ranked, DOUBLE)
            step = raw
            if SOFTPLUS:
                e = exp_minus_abs(raw)
                step = softplus_from_exp(raw, e, DOUBLE)
                slopes += (sigmoid_from_exp(raw, e),)
            steps += (tl.where(mask, step, 0.0),)
        for i in tl.static_range(HISTORY):
            b = load(b_ptr + (t + i) * b_time + n, below(n, n_states, t + i < last), DOUBLE)
            inflow = (steps[i] * us[i])[:, None] * b[None, :]
            state = tl.exp2(steps[i][:, None] * rate) * state + inflow
            states += (state,)

        for i in tl.static_range(HISTORY - 1, -1, -1):
            mask = below(d, n_channels, t + i < last)
            token_mask = below(n, n_states, t + i < last)
            row = (t + i) * n_channels + d
            b = load(b_ptr + (t + i) * b_time + n, token_mask, DOUBLE)
            c = load(c_ptr + (t + i) * c_time + n, token_mask, DOUBLE)
            grad = load(grad_ptr + (t + i) * grad_time + d, mask, DOUBLE)
            if z_ptr is not None:
                z = load(z_ptr + (t + i) * z_time + d, mask, DOUBLE)
                gate = sigmoid_from_exp(z, exp_minus_abs(z))
                y = tl.sum(states[i + 1] * c[None, :], 1) + skip * us[i]
                d_z = grad * y * gate * (1.0 + z * (1.0 - gate))
                tl.store(d_z_ptr + row, d_z, mask=mask)
                grad *= z * gate
            carry += grad[:, None] * c[None, :]
            d_c = tl.sum(states[i + 1] * grad[:, None], 0)
            d_b = tl.sum(carry * (steps[i] * us[i])[:, None], 0)
            d_input = tl.sum(carry * b[None, :], 1)
            carry *= tl.exp2(steps[i][:, None] * rate)
            d_exponent = carry * states[i]
            d_rate += d_exponent * steps[i][:, None]
            d_step = tl.sum(d_exponent * rate, 1) * LN_2 + d_input * us[i]
            if SOFTPLUS:
                d_step *= slopes[i]
            d_bias += tl.where(mask, d_step, 0.0)
            d_skip += grad * us[i]
            tl.store(d_u_ptr + row, d_input * steps[i] + grad * skip, mask=mask)
            tl.store(d_step_ptr + row, d_step, mask=mask)
            row = (t + i) * n_states + n
            tl.store(d_b_ptr + row, d_b, mask=token_mask)
            tl.store(d_c_ptr + row, d_c, mask=token_mask)

    store_state(d_a_ptr + place * state_size, d_rate, d, d_mask, n, n_mask, n_states)
    if skip_ptr is not None:
        tl.store(d_skip_ptr + place * n_channels + d, d_skip, mask=d_mask)
    if bias_ptr is not None:
        tl.store(d_bias_ptr + place * n_channels + d, d_bias, mask=d_mask)
    if d_initial_ptr is not None:  # noqa: SIM102 (known at compile time)
        if part == 0:
            start = d_initial_ptr + batch * state_size
            store_state(start, carry, d, d_mask, n, n_mask, n_states)
