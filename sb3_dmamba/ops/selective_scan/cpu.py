"""The selective scan on the CPU, fused and compiled by Numba: no compiler needed.

Softplus, discretisation, recurrence, skip and gate are one pass over the inputs, which are read
through their row strides. Computes in float32 (float64 for float64 input); half precision is cast
on the way in and out. The backward pass recomputes states from one checkpoint every ``CHUNK``
tokens, so its working set stays in cache however long the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_dmamba.ops import _cpu

# Tokens whose states and decays the backward pass holds at once, and the distance of the
# checkpoints. At 16 states a token takes 4 KB there: 128 KB, at home in a second-level cache. Fewer
# would fit the first level and were slower here: every chunk has a price (checkpoint, carries).
CHUNK = 32
# Sequences are summed into this many partial gradients of the parameters at most. It bounds the
# threads of the backward pass, and fixes the order of summation whatever their number.
MAX_GROUPS = 32


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    dtype = _cpu.compute_dtype(u)
    tensors = [u, delta, B, C, z, A, D, delta_bias, initial_state, delta_weight]
    if _cpu.prepare(tensors, 5, dtype):
        y, final = _SelectiveScan.apply(delta_softplus, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final, _ = _forward(delta_softplus, return_final_state, False, tensors)
    return (y if y.dtype is u.dtype else y.to(u.dtype)), final


def _common_arguments(softplus: bool, size: int, tensors: Sequence[Any]) -> tuple[int, ...]:
    """Pack what both kernels take; the order is that of ``_arguments``."""
    u, delta, B, C, z, A, D, bias, initial, weight = tensors
    return (
        *(0, *u.shape, A.shape[1], _rank(weight), int(softplus), CHUNK),
        *_cpu.row_arguments(u, size),
        *_cpu.row_arguments(delta, size),
        *_cpu.row_arguments(B, size),
        *_cpu.row_arguments(C, size),
        *_cpu.row_arguments(z, size),
        *(A.data_ptr(), _cpu.address(D), _cpu.address(bias), _cpu.address(initial)),
        _cpu.address(weight),
    )


def _rank(weight: Tensor | None) -> int:
    """Return the rank of the step sizes, -1 where they come as they are."""
    return -1 if weight is None else weight.shape[1]


def _forward(
    softplus: bool, return_final_state: bool, save: bool, tensors: Sequence[Any]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    u, A = tensors[0], tensors[5]
    batch, length, channels = u.shape
    states, rank = A.shape[1], _rank(tensors[9])
    dtype = u.dtype
    bits = _cpu.float_bits(dtype)
    width = 512 // bits
    blocks = -(-channels // width)
    y = _cpu.empty(batch, length, channels, dtype=dtype)
    final = _cpu.empty(batch, channels, states, dtype=dtype) if return_final_state else None
    checkpoints = None
    if save:
        n_chunks = -(-length // CHUNK)
        checkpoints = _cpu.empty(batch, n_chunks, blocks, states, width, dtype=dtype)
    arguments = (
        *_common_arguments(softplus, bits // 8, tensors),
        *(_cpu.address(checkpoints), y.data_ptr(), _cpu.address(final)),
    )
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan._kernels", "build_forward", bits),
        arguments,
        64 * (states * (1 + blocks) + max(rank, 0) * blocks + 3 * CHUNK),
        batch,
        batch * length * channels * states,
    )
    return y, final, checkpoints


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, softplus: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, final, checkpoints = _forward(softplus, return_final_state, True, inputs)
        ctx.save_for_backward(*inputs, checkpoints)
        ctx.softplus = softplus
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        *tensors, checkpoints = ctx.saved_tensors
        if grad_y is None and grad_final is None:
            return (None,) * 12
        gradients = _backward(ctx.softplus, tensors, checkpoints, grad_y, grad_final)
        needed = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if need else None for gradient, need in needed)


def _backward(
    softplus: bool,
    tensors: Sequence[Any],
    checkpoints: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
) -> tuple[Tensor | None, ...]:
    u, delta, _, _, z, A, D, bias, initial, weight = tensors
    batch, length, channels = u.shape
    states, dtype = A.shape[1], u.dtype
    rank = 0 if weight is None else weight.shape[1]
    bits = _cpu.float_bits(dtype)
    width = 512 // bits
    blocks = -(-channels // width)
    grad_y = torch.zeros_like(u) if grad_y is None else _cpu.rows(grad_y)
    grad_final = None if grad_final is None else grad_final.contiguous()

    d_u = _cpu.empty(batch, length, channels, dtype=dtype)
    d_delta = _cpu.empty(*delta.shape, dtype=dtype)
    d_B = _cpu.empty(batch, length, states, dtype=dtype)
    d_C = _cpu.empty(batch, length, states, dtype=dtype)
    d_z = None if z is None else _cpu.empty(batch, length, channels, dtype=dtype)
    d_initial = None if initial is None else _cpu.empty(batch, channels, states, dtype=dtype)
    group_size = -(-batch // MAX_GROUPS)
    n_groups = -(-batch // max(group_size, 1))
    # Of each group: A's gradient, then D's, the bias's and the weight's as more states.
    parts = states + 2 + rank
    partials = _cpu.empty(n_groups, blocks, parts, width, dtype=dtype)
    arguments = (
        *_common_arguments(softplus, bits // 8, tensors),
        *(checkpoints.data_ptr(), 0, 0),
        *_cpu.row_arguments(grad_y, bits // 8),
        *(_cpu.address(grad_final), d_u.data_ptr(), d_delta.data_ptr(), d_B.data_ptr()),
        *(d_C.data_ptr(), _cpu.address(d_z), _cpu.address(d_initial)),
        *(partials.data_ptr(), group_size),
    )
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan._kernels", "build_backward", bits),
        arguments,
        64 * (states * (4 * CHUNK + 1 + 2 * blocks) + rank * blocks + (blocks + 6) * CHUNK),
        n_groups,
        batch * length * channels * states,
    )
    total = _cpu.sum_groups(partials).transpose(1, 2).reshape(blocks * width, parts)[:channels]
    d_A = total[:, :states].contiguous()
    d_D = None if D is None else total[:, states].contiguous()
    d_bias = None if bias is None else total[:, states + 1].contiguous()
    d_weight = None if weight is None else total[:, states + 2 :].contiguous()
    return d_u, d_delta, d_B, d_C, d_z, d_A, d_D, d_bias, d_initial, d_weight
