"""Numba kernels of the selective scan, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

from sb3_dmamba.ops._simd import (
    LINE,
    LN_2,
    LOG2_E,
    exp2,
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
    softplus_from_exp,
    splat,
    splat_load,
    store,
    store_lanes,
    store_sum,
    unpack_channels,
    vector_sizes,
)

# fmt: off
# The argument block; ``cpu`` packs it in this order. X, X_B, X_T: address, strides along B and L.
(COUNTER, BATCH, LENGTH, CHANNELS, STATES, RANK, SOFTPLUS, CHUNK,
 U, U_B, U_T, DELTA, DELTA_B, DELTA_T, B_IN, B_B, B_T, C_IN, C_B, C_T, Z, Z_B, Z_T,
 A_IN, D_IN, BIAS, INITIAL, DELTA_WEIGHT, CHECKPOINTS, Y, FINAL,
 GRAD_Y, GRAD_Y_B, GRAD_Y_T, GRAD_FINAL, D_U, D_DELTA, D_B, D_C, D_Z, D_INITIAL,
 PARTIALS, GROUP_SIZE) = (8 * place for place in range(43))
# fmt: on


def build_forward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the forward kernel for vectors of a kind.

    Scratch, in vectors: 3 rows of a chunk, one block's states, and the rates and weights of the
    steps of all blocks.
    """
    size, width, vector = vector_sizes(kind)

    def scan_forward(p: int, scratch: int) -> None:
        _ = digest  # a cached kernel is found again only while its sources are the same
        length, channels, n = load_int(p + LENGTH), load_int(p + CHANNELS), load_int(p + STATES)
        rank, weight_in = load_int(p + RANK), load_int(p + DELTA_WEIGHT)
        blocks = (channels + width - 1) // width
        softplus, chunk = load_int(p + SOFTPLUS), load_int(p + CHUNK)
        z_in, bias_in, d_in = load_int(p + Z), load_int(p + BIAS), load_int(p + D_IN)
        u_t, delta_t, z_t = load_int(p + U_T), load_int(p + DELTA_T), load_int(p + Z_T)
        b_t, c_t = load_int(p + B_T), load_int(p + C_T)
        a_in, initial, final = load_int(p + A_IN), load_int(p + INITIAL), load_int(p + FINAL)
        checkpoint = load_int(p + CHECKPOINTS)
        n_chunks = (length + chunk - 1) // chunk
        steps = scratch
        inputs = steps + vector * chunk
        outputs = inputs + vector * chunk
        state = outputs + vector * chunk
        rates = state + vector * n
        weights = rates + vector * blocks * n
        zero = splat(0.0, kind)
        pack_channels(rates, a_in, channels, n, LOG2_E, kind)
        if rank > 0:
            pack_channels(weights, weight_in, channels, rank, 1.0, kind)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for block in range(blocks):
                lanes = min(width, channels - block * width)
                rate = rates + vector * block * n
                for s in range(n):
                    store(state + vector * s, zero)
                if initial != 0:
                    source = initial + size * (b * channels + block * width) * n
                    pack_channels(state, source, lanes, n, 1.0, kind)
                bias, skip = zero, zero
                if bias_in != 0:
                    bias = load_lanes(bias_in + vector * block, lanes, kind)
                if d_in != 0:
                    skip = load_lanes(d_in + vector * block, lanes, kind)
                u_row = load_int(p + U) + b * load_int(p + U_B) + vector * block
                delta_row = load_int(p + DELTA) + b * load_int(p + DELTA_B)
                if rank < 0:
                    delta_row += vector * block
                weight = weights + vector * block * rank
                z_row = z_in + b * load_int(p + Z_B) + vector * block
                b_row = load_int(p + B_IN) + b * load_int(p + B_B)
                c_row = load_int(p + C_IN) + b * load_int(p + C_B)
                y_row = load_int(p + Y) + size * b * length * channels + vector * block
                saved = checkpoint + vector * n * (b * n_chunks * blocks + block)
                for start in range(0, length, chunk):
                    steps_here = min(chunk, length - start)
                    if checkpoint != 0:
                        for s in range(n):
                            store(saved + vector * s, load(state + vector * s, kind))
                        saved += vector * n * blocks
                    for t in range(steps_here):
                        u = load_lanes(u_row, lanes, kind)
                        step = bias
                        if rank < 0:
                            step = load_lanes(delta_row, lanes, kind) + bias
                            prefetch(delta_row + LINE)
                        for r in range(rank):
                            low = splat_load(delta_row + size * r, kind)
                            step = fma(low, load(weight + vector * r, kind), step)
                        if softplus != 0:
                            step = softplus_from_exp(step, exp_minus_abs(step))
                        # The next block's line: the hardware foresees none here.
                        prefetch(u_row + LINE)
                        store(steps + vector * t, step)
                        store(inputs + vector * t, step * u)
                        store(outputs + vector * t, skip * u)
                        u_row += u_t
                        delta_row += delta_t
                    for t in range(steps_here):
                        step = load(steps + vector * t, kind)
                        step_u = load(inputs + vector * t, kind)
                        y = load(outputs + vector * t, kind)
                        for s in range(n):
                            decay = exp2(step * load(rate + vector * s, kind))
                            inflow = step_u * splat_load(b_row + size * s, kind)
                            h = fma(decay, load(state + vector * s, kind), inflow)
                            store(state + vector * s, h)
                            y = fma(h, splat_load(c_row + size * s, kind), y)
                        store(outputs + vector * t, y)
                        b_row += b_t
                        c_row += c_t
                    for t in range(steps_here):
                        y = load(outputs + vector * t, kind)
                        if z_in != 0:
                            z = load_lanes(z_row, lanes, kind)
                            prefetch(z_row + LINE)
                            y = y * (z * sigmoid_from_exp(z, exp_minus_abs(z)))
                        store_lanes(y_row, lanes, y)
                        prefetch_to_write(y_row + LINE)
                        z_row += z_t
                        y_row += size * channels
                if final != 0:
                    target = final + size * (b * channels + block * width) * n
                    unpack_channels(target, state, lanes, n, kind)

    return scan_forward


def build_backward(kind: int, digest: int) -> Callable[[int, int], None]:
    """Make the backward kernel for vectors of a kind."""
    size, width, vector = vector_sizes(kind)

    def scan_backward(p: int, scratch: int) -> None:
        _ = digest
        length, channels, n = load_int(p + LENGTH), load_int(p + CHANNELS), load_int(p + STATES)
        rank, weight_in = load_int(p + RANK), load_int(p + DELTA_WEIGHT)
        blocks = (channels + width - 1) // width
        parts = n + 2 + max(rank, 0)
        softplus, chunk = load_int(p + SOFTPLUS), load_int(p + CHUNK)
        z_in, bias_in, d_in = load_int(p + Z), load_int(p + BIAS), load_int(p + D_IN)
        u_t, delta_t, z_t = load_int(p + U_T), load_int(p + DELTA_T), load_int(p + Z_T)
        b_t, c_t, grad_y_t = load_int(p + B_T), load_int(p + C_T), load_int(p + GRAD_Y_T)
        a_in, grad_final = load_int(p + A_IN), load_int(p + GRAD_FINAL)
        d_initial, batch = load_int(p + D_INITIAL), load_int(p + BATCH)
        group_size = load_int(p + GROUP_SIZE)
        n_chunks = (length + chunk - 1) // chunk
        row_size = vector * n
        # Scratch, in rows of n vectors: what one block needs in a chunk comes first.
        states = scratch
        decays = states + (chunk + 1) * row_size
        sums_b = decays + chunk * row_size
        sums_c = sums_b + chunk * row_size
        steps = sums_c + chunk * row_size
        slopes = steps + vector * chunk
        inputs = slopes + vector * chunk
        grads = inputs + vector * chunk
        gates = grads + vector * chunk
        rates = gates + vector * chunk
        carries = rates + blocks * row_size
        weights = carries + blocks * row_size
        d_steps = weights + vector * blocks * max(rank, 0)
        d_steps_t = vector * (blocks | 1)  # odd: rows do not compete for the same cache lines
        zero, ln_2 = splat(0.0, kind), splat(LN_2, kind)
        pack_channels(rates, a_in, channels, n, LOG2_E, kind)
        if rank > 0:
            pack_channels(weights, weight_in, channels, rank, 1.0, kind)
        while True:
            group = fetch_increment(p + COUNTER)
            if group * group_size >= batch:
                break
            partials = load_int(p + PARTIALS) + group * blocks * parts * vector
            for i in range(blocks * parts):
                store(partials + vector * i, zero)
            for b in range(group * group_size, min(batch, (group + 1) * group_size)):
                for i in range(blocks * n):
                    store(carries + vector * i, zero)
                if grad_final != 0:
                    source = grad_final + size * b * channels * n
                    pack_channels(carries, source, channels, n, 1.0, kind)
                for chunk_index in range(n_chunks - 1, -1, -1):
                    start = chunk_index * chunk
                    steps_here = min(chunk, length - start)
                    for i in range(2 * chunk * n):
                        store(sums_b + vector * i, zero)
                    b_rows = load_int(p + B_IN) + b * load_int(p + B_B) + start * b_t
                    c_rows = load_int(p + C_IN) + b * load_int(p + C_B) + start * c_t
                    u_rows = load_int(p + U) + b * load_int(p + U_B) + start * u_t
                    delta_rows = load_int(p + DELTA) + b * load_int(p + DELTA_B) + start * delta_t
                    z_rows = z_in + b * load_int(p + Z_B) + start * z_t
                    grad_rows = load_int(p + GRAD_Y) + b * load_int(p + GRAD_Y_B) + start * grad_y_t
                    dense = size * (b * length + start) * channels
                    for block in range(blocks):
                        lanes = min(width, channels - block * width)
                        offset = vector * block
                        rate = rates + block * row_size
                        carry = carries + block * row_size
                        partial = partials + block * parts * vector
                        weight = weights + vector * block * rank
                        bias, skip = zero, zero
                        if bias_in != 0:
                            bias = load_lanes(bias_in + offset, lanes, kind)
                        if d_in != 0:
                            skip = load_lanes(d_in + offset, lanes, kind)
                        saved = load_int(p + CHECKPOINTS) + row_size * (
                            (b * n_chunks + chunk_index) * blocks + block
                        )
                        for s in range(n):
                            store(states + vector * s, load(saved + vector * s, kind))
                        # What depends on one token alone first: its long chains overlap here.
                        for t in range(steps_here):
                            u = load_lanes(u_rows + t * u_t + offset, lanes, kind)
                            step = bias
                            delta_row = delta_rows + t * delta_t
                            if rank < 0:
                                step = load_lanes(delta_row + offset, lanes, kind) + bias
                                prefetch(delta_row + offset + LINE)
                            for r in range(rank):
                                low = splat_load(delta_row + size * r, kind)
                                step = fma(low, load(weight + vector * r, kind), step)
                            if softplus != 0:
                                e = exp_minus_abs(step)
                                store(slopes + vector * t, sigmoid_from_exp(step, e))
                                step = softplus_from_exp(step, e)
                            # The next block's lines: the hardware foresees none here.
                            prefetch(u_rows + t * u_t + offset + LINE)
                            prefetch(grad_rows + t * grad_y_t + offset + LINE)
                            store(steps + vector * t, step)
                            store(inputs + vector * t, u)
                            grad = load_lanes(grad_rows + t * grad_y_t + offset, lanes, kind)
                            if z_in != 0:
                                prefetch(z_rows + t * z_t + offset + LINE)
                                z = load_lanes(z_rows + t * z_t + offset, lanes, kind)
                                gate = sigmoid_from_exp(z, exp_minus_abs(z))
                                silu = z * gate
                                # silu' = gate + silu * (1 - gate)
                                store(gates + vector * t, grad * (gate + (silu - silu * gate)))
                                grad = grad * silu
                            store(grads + vector * t, grad)
                        # Forward again, keeping states and decays.
                        for t in range(steps_here):
                            step = load(steps + vector * t, kind)
                            u = load(inputs + vector * t, kind)
                            step_u = step * u
                            y = skip * u
                            state = states + t * row_size
                            decay_row = decays + t * row_size
                            b_row, c_row = b_rows + t * b_t, c_rows + t * c_t
                            for s in range(n):
                                decay = exp2(step * load(rate + vector * s, kind))
                                inflow = step_u * splat_load(b_row + size * s, kind)
                                h = fma(decay, load(state + vector * s, kind), inflow)
                                store(decay_row + vector * s, decay)
                                store(state + row_size + vector * s, h)
                                y = fma(h, splat_load(c_row + size * s, kind), y)
                            if z_in != 0:
                                target = load_int(p + D_Z) + dense + size * t * channels
                                d_z = load(gates + vector * t, kind) * y
                                store_lanes(target + offset, lanes, d_z)
                                prefetch_to_write(target + offset + LINE)
                        # Backward, with the carried gradient of the state after this step.
                        d_skip = load(partial + vector * n, kind)
                        d_bias = load(partial + vector * n + vector, kind)
                        for t in range(steps_here - 1, -1, -1):
                            step = load(steps + vector * t, kind)
                            u = load(inputs + vector * t, kind)
                            grad = load(grads + vector * t, kind)
                            step_u = step * u
                            d_step_u, d_exponent = zero, zero
                            state = states + t * row_size
                            decay_row = decays + t * row_size
                            sum_b, sum_c = sums_b + t * row_size, sums_c + t * row_size
                            b_row, c_row = b_rows + t * b_t, c_rows + t * c_t
                            for s in range(n):
                                # All loads before all stores: rows of different arrays share
                                # the low bits of their addresses, and a load waits for a store
                                # before it that looks the same.
                                at = vector * s
                                carried = load(carry + at, kind)
                                before, after = (
                                    load(state + at, kind),
                                    load(state + row_size + at, kind),
                                )
                                decay = load(decay_row + at, kind)
                                d_rate = load(partial + at, kind)
                                old_b, old_c = load(sum_b + at, kind), load(sum_c + at, kind)
                                d_h = fma(grad, splat_load(c_row + size * s, kind), carried)
                                d_step_u = fma(d_h, splat_load(b_row + size * s, kind), d_step_u)
                                d_before = d_h * decay
                                d_log = d_before * before
                                d_exponent = fma(d_log, load(rate + at, kind), d_exponent)
                                store(carry + at, d_before)
                                store(partial + at, fma(d_log, step, d_rate))
                                store(sum_b + at, fma(d_h, step_u, old_b))
                                store(sum_c + at, fma(grad, after, old_c))
                            d_u = fma(d_step_u, step, grad * skip)
                            d_delta = fma(d_step_u, u, d_exponent * ln_2)
                            if softplus != 0:
                                d_delta = d_delta * load(slopes + vector * t, kind)
                            d_skip = fma(grad, u, d_skip)
                            d_bias = d_bias + d_delta
                            place = dense + size * t * channels + offset
                            store_lanes(load_int(p + D_U) + place, lanes, d_u)
                            prefetch_to_write(load_int(p + D_U) + place + LINE)
                            if rank < 0:
                                store_lanes(load_int(p + D_DELTA) + place, lanes, d_delta)
                                prefetch_to_write(load_int(p + D_DELTA) + place + LINE)
                            else:
                                store(d_steps + t * d_steps_t + offset, d_delta)
                        store(partial + vector * n, d_skip)
                        store(partial + vector * n + vector, d_bias)
                        for r in range(rank):
                            d_weight = load(partial + vector * (n + 2 + r), kind)
                            for t in range(steps_here):
                                low = splat_load(delta_rows + t * delta_t + size * r, kind)
                                d_step = load(d_steps + t * d_steps_t + offset, kind)
                                d_weight = fma(d_step, low, d_weight)
                            store(partial + vector * (n + 2 + r), d_weight)
                    for t in range(steps_here):
                        place = load_int(p + D_DELTA) + size * (b * length + start + t) * rank
                        for r in range(rank):
                            d_low = zero
                            for block in range(blocks):
                                d_step = load(d_steps + t * d_steps_t + vector * block, kind)
                                weight = weights + vector * (block * rank + r)
                                d_low = fma(d_step, load(weight, kind), d_low)
                            store_sum(place + size * r, d_low)
                    first = size * (b * length + start) * n
                    for i in range(steps_here * n):
                        place = first + size * i
                        store_sum(load_int(p + D_B) + place, load(sums_b + vector * i, kind))
                        store_sum(load_int(p + D_C) + place, load(sums_c + vector * i, kind))
                if d_initial != 0:
                    target = d_initial + size * b * channels * n
                    unpack_channels(target, carries, channels, n, kind)

    return scan_backward
