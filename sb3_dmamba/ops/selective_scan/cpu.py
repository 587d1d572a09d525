"""The selective scan on the CPU, fused and compiled by Numba: no compiler needed.

Softplus, discretisation, recurrence, skip and gate are one pass over the inputs, which are read
through their row strides. Computes in float32 (float64 for float64 input); half precision is cast
on the way in and out. The backward pass recomputes states from one checkpoint every ``CHUNK``
tokens, so its working set stays in cache however long the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sb3_dmamba.ops import _cpu
from sb3_dmamba.ops._shared import compute_dtype, make_differentiable

# Tokens whose states and decays the backward pass holds at once, and the distance of the
# checkpoints. At 16 states a token takes 4 KB there: 128 KB, which fit a second-level cache. Fewer
# would fit the first level and were slower here: every chunk has a cost (checkpoint, carries).
CHUNK = 32


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_weight: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    dtype = compute_dtype(u)
    tensors = [u, delta, B, C, z, A, D, delta_bias, initial_state, delta_weight]
    if _cpu.prepare(tensors, 5, dtype):
        y, final = _scan(delta_softplus, return_final_state, *tensors)
    else:
        y, final, _ = _forward(delta_softplus, return_final_state, False, tensors)
    return (y if y.dtype is u.dtype else y.to(u.dtype)), final


def _common_arguments(softplus: bool, size: int, tensors: Sequence[Any]) -> tuple[int, ...]:
    """Pack what both kernels take, in the order of ``_kernels``; rank -1 is steps of full rank."""
    *sequences, A, D, bias, initial, weight = tensors
    rank = -1 if weight is None else weight.shape[1]
    return (
        *(0, *sequences[0].shape, A.shape[1], rank, int(softplus), CHUNK),
        *_cpu.row_arguments(size, *sequences),
        *_cpu.addresses(A, D, bias, initial, weight),
    )


def _forward(
    softplus: bool, return_final_state: bool, save: bool, tensors: Sequence[Any]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output, the final state, and the state before each chunk; None if unwanted."""
    u, A, weight = tensors[0], tensors[5], tensors[9]
    (batch, length, channels), states, dtype = u.shape, A.shape[1], u.dtype
    rank = 0 if weight is None else weight.shape[1]
    kind, size, width = _cpu.choose_vectors(dtype)
    blocks = -(-channels // width)
    y = _cpu.empty(*u.shape, dtype=dtype)
    final = checkpoints = None
    if return_final_state:
        final = _cpu.empty(batch, channels, states, dtype=dtype)
    if save:
        checkpoints = _cpu.empty(batch, -(-length // CHUNK), blocks, states, width, dtype=dtype)
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan._kernels", "build_forward", kind),
        (*_common_arguments(softplus, size, tensors), *_cpu.addresses(checkpoints, y, final)),
        size * width * (states * (1 + blocks) + rank * blocks + 3 * CHUNK),
        batch,
        batch * length * channels * states,
    )
    return y, final, checkpoints


def _backward(
    softplus: bool,
    tensors: Sequence[Any],
    checkpoints: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
) -> tuple[Tensor | None, ...]:
    u, delta, B, C, z, A, _, _, initial, weight = tensors
    (batch, length, channels), states, dtype = u.shape, A.shape[1], u.dtype
    rank = 0 if weight is None else weight.shape[1]
    kind, size, width = _cpu.choose_vectors(dtype)
    blocks = -(-channels // width)
    grad_y = _cpu.rows(grad_y)
    grad_final = None if grad_final is None else grad_final.contiguous()
    d_u, d_delta, d_B, d_C, d_z, d_initial = results = [
        None if x is None else _cpu.empty(*x.shape, dtype=dtype)
        for x in (u, delta, B, C, z, initial)
    ]
    group_size, n_groups = _cpu.cut_batch(batch)
    # Of each group: A's gradient, then D's, the bias's and the weight's as more states.
    parts = states + 2 + rank
    partials = _cpu.empty(n_groups, blocks, parts, width, dtype=dtype)
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan._kernels", "build_backward", kind),
        (
            *_common_arguments(softplus, size, tensors),
            *(*_cpu.addresses(checkpoints), 0, 0, *_cpu.row_arguments(size, grad_y)),
            *(*_cpu.addresses(grad_final, *results, partials), group_size),
        ),
        size
        * width
        * (states * (4 * CHUNK + 1 + 2 * blocks) + (rank + CHUNK) * blocks + 6 * CHUNK),
        n_groups,
        batch * length * channels * states,
    )
    total = _cpu.sum_groups(partials, channels)
    d_A, d_weight = total[:, :states].contiguous(), total[:, states + 2 :].contiguous()
    d_D, d_bias = (total[:, states + k].contiguous() for k in range(2))
    return d_u, d_delta, d_B, d_C, d_z, d_A, d_D, d_bias, d_initial, d_weight


_scan = make_differentiable(_forward, _backward)
