"""Numba kernel of the selective scan's forward pass.

Channels run along the lanes of a vector, so the sum over states stays in a register and every
``B`` and ``C`` entry is one broadcast. Workers take sequences from a shared counter until none is
left; what is computed for a sequence does not depend on who takes it. States are stored as
``[block of channels][state][lane]``, padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable

from sb3_dmamba.ops._simd import (
    copy_scaled,
    exp2,
    exp_minus_abs,
    fetch_increment,
    fma,
    load,
    load_int,
    load_lanes,
    prefetch,
    prefetch_to_write,
    sigmoid_from_exp,
    softplus_from_exp,
    splat,
    splat_load,
    store,
    store_lanes,
)
from sb3_dmamba.ops._vector_code import LOG2_E
from sb3_dmamba.ops.selective_scan._arguments import (
    A_IN,
    B_B,
    B_IN,
    B_T,
    BATCH,
    BIAS,
    C_B,
    C_IN,
    C_T,
    CHANNELS,
    CHECKPOINTS,
    CHUNK,
    COUNTER,
    D_IN,
    DELTA,
    DELTA_B,
    DELTA_T,
    DELTA_WEIGHT,
    FINAL,
    INITIAL,
    LENGTH,
    RANK,
    SOFTPLUS,
    STATES,
    U_B,
    U_T,
    Z_B,
    Z_T,
    U,
    Y,
    Z,
)


def build_forward(bits: int, digest: int) -> Callable[[int, int], None]:
    """Make the forward kernel for floats of ``bits`` bits. Scratch is in 64-byte vectors:

    3 rows of a chunk, one block's states, the rates and the weights of the steps of all blocks.
    """
    size = bits // 8
    width = 512 // bits

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
        inputs = steps + 64 * chunk
        outputs = inputs + 64 * chunk
        state = outputs + 64 * chunk
        rates = state + 64 * n
        weights = rates + 64 * blocks * n
        zero = splat(0.0, bits)
        for block in range(blocks):
            for s in range(n):
                row = rates + 64 * (block * n + s)
                store(row, zero)
                for lane in range(min(width, channels - block * width)):
                    source = a_in + size * ((block * width + lane) * n + s)
                    copy_scaled(row + size * lane, source, bits, LOG2_E)
            for r in range(rank):
                row = weights + 64 * (block * rank + r)
                store(row, zero)
                for lane in range(min(width, channels - block * width)):
                    source = weight_in + size * ((block * width + lane) * rank + r)
                    copy_scaled(row + size * lane, source, bits, 1.0)
        while True:
            b = fetch_increment(p + COUNTER)
            if b >= load_int(p + BATCH):
                break
            for block in range(blocks):
                lanes = min(width, channels - block * width)
                rate = rates + 64 * block * n
                for s in range(n):
                    store(state + 64 * s, zero)
                if initial != 0:
                    source = initial + size * (b * channels + block * width) * n
                    for lane in range(lanes):
                        for s in range(n):
                            place = state + 64 * s + size * lane
                            copy_scaled(place, source + size * (lane * n + s), bits, 1.0)
                bias, skip = zero, zero
                if bias_in != 0:
                    bias = load_lanes(bias_in + 64 * block, lanes, bits)
                if d_in != 0:
                    skip = load_lanes(d_in + 64 * block, lanes, bits)
                u_row = load_int(p + U) + b * load_int(p + U_B) + 64 * block
                delta_row = load_int(p + DELTA) + b * load_int(p + DELTA_B)
                if rank < 0:
                    delta_row += 64 * block
                weight = weights + 64 * block * rank
                z_row = z_in + b * load_int(p + Z_B) + 64 * block
                b_row = load_int(p + B_IN) + b * load_int(p + B_B)
                c_row = load_int(p + C_IN) + b * load_int(p + C_B)
                y_row = load_int(p + Y) + size * b * length * channels + 64 * block
                saved = checkpoint + 64 * n * (b * n_chunks * blocks + block)
                for start in range(0, length, chunk):
                    steps_here = min(chunk, length - start)
                    if checkpoint != 0:
                        for s in range(n):
                            store(saved + 64 * s, load(state + 64 * s, bits))
                        saved += 64 * n * blocks
                    for t in range(steps_here):
                        u = load_lanes(u_row, lanes, bits)
                        step = bias
                        if rank < 0:
                            step = load_lanes(delta_row, lanes, bits) + bias
                            prefetch(delta_row + 64)
                        for r in range(rank):
                            low = splat_load(delta_row + size * r, bits)
                            step = fma(low, load(weight + 64 * r, bits), step)
                        if softplus != 0:
                            step = softplus_from_exp(step, exp_minus_abs(step))
                        # The next block's line: the hardware foresees none here.
                        prefetch(u_row + 64)
                        store(steps + 64 * t, step)
                        store(inputs + 64 * t, step * u)
                        store(outputs + 64 * t, skip * u)
                        u_row += u_t
                        delta_row += delta_t
                    for t in range(steps_here):
                        step, step_u = load(steps + 64 * t, bits), load(inputs + 64 * t, bits)
                        y = load(outputs + 64 * t, bits)
                        for s in range(n):
                            decay = exp2(step * load(rate + 64 * s, bits))
                            inflow = step_u * splat_load(b_row + size * s, bits)
                            h = fma(decay, load(state + 64 * s, bits), inflow)
                            store(state + 64 * s, h)
                            y = fma(h, splat_load(c_row + size * s, bits), y)
                        store(outputs + 64 * t, y)
                        b_row += b_t
                        c_row += c_t
                    for t in range(steps_here):
                        y = load(outputs + 64 * t, bits)
                        if z_in != 0:
                            z = load_lanes(z_row, lanes, bits)
                            prefetch(z_row + 64)
                            y = y * (z * sigmoid_from_exp(z, exp_minus_abs(z)))
                        store_lanes(y_row, lanes, y)
                        prefetch_to_write(y_row + 64)
                        z_row += z_t
                        y_row += size * channels
                if final != 0:
                    target = final + size * (b * channels + block * width) * n
                    for lane in range(lanes):
                        for s in range(n):
                            place = state + 64 * s + size * lane
                            copy_scaled(target + size * (lane * n + s), place, bits, 1.0)

    return scan_forward
