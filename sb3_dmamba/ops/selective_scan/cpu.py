"""The selective scan on the CPU, fused and compiled by Numba: no compiler needed.

Softplus, discretisation, recurrence, skip and gate are one pass over the inputs, which are read
through their row strides. Computes in float32 (float64 for float64 input); half precision is cast
on the way in and out. The backward pass recomputes states from one checkpoint every ``CHUNK``
tokens, so its working set stays in cache however long the sequence.
"""

from __future__ import annotations

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
    delta_softplus: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    dtype = _cpu.compute_dtype(u)
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    tensors = tuple(x if x is None or x.dtype is dtype else x.to(dtype) for x in given)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        y, final = _SelectiveScan.apply(delta_softplus, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        tensors = _layout(tensors)
        y, final, _ = _forward(delta_softplus, return_final_state, False, tensors)
    return (y if y.dtype is u.dtype else y.to(u.dtype)), final


def _layout(tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    u, delta, A, B, C, D, z, bias, initial = tensors
    rows = _cpu.rows
    return (
        rows(u),  # type: ignore[arg-type]
        rows(delta),  # type: ignore[arg-type]
        A.contiguous(),  # type: ignore[union-attr]
        rows(B),  # type: ignore[arg-type]
        rows(C),  # type: ignore[arg-type]
        None if D is None else D.contiguous(),
        None if z is None else rows(z),
        None if bias is None else bias.contiguous(),
        None if initial is None else initial.contiguous(),
    )


def _common_arguments(softplus: bool, tensors: tuple[Any, ...]) -> tuple[int, ...]:
    """Pack what both kernels take; the order is that of ``_kernels``."""
    u, delta, A, B, C, D, z, bias, initial = tensors
    batch, length, channels = u.shape
    return (
        *(0, batch, length, channels, A.shape[1], int(softplus), CHUNK),
        *_cpu.row_arguments(u),
        *_cpu.row_arguments(delta),
        *_cpu.row_arguments(B),
        *_cpu.row_arguments(C),
        *_cpu.row_arguments(z),
        *(A.data_ptr(), _cpu.address(D), _cpu.address(bias), _cpu.address(initial)),
    )


def _forward(
    softplus: bool, return_final_state: bool, save: bool, tensors: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    from sb3_dmamba.ops.selective_scan._kernels import forward_scratch

    u, A = tensors[0], tensors[2]
    batch, length, channels = u.shape
    states = A.shape[1]
    dtype = u.dtype
    bits = _cpu.float_bits(dtype)
    y = _cpu.empty(batch, length, channels, dtype=dtype)
    final = _cpu.empty(batch, channels, states, dtype=dtype) if return_final_state else None
    checkpoints = None
    if save:
        width = 512 // bits
        blocks = -(-channels // width)
        n_chunks = -(-length // CHUNK)
        checkpoints = _cpu.empty(batch, n_chunks, blocks, states, width, dtype=dtype)
    arguments = (
        *_common_arguments(softplus, tensors),
        *(_cpu.address(checkpoints), y.data_ptr(), _cpu.address(final)),
    )
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan", "build_forward", bits),
        arguments,
        forward_scratch(channels, states, CHUNK, bits),
        batch,
        batch * length * channels * states,
    )
    return y, final, checkpoints


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, softplus: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        tensors = _layout(inputs)
        y, final, checkpoints = _forward(softplus, return_final_state, True, tensors)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.softplus = softplus
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        *tensors, checkpoints = ctx.saved_tensors
        if grad_y is None and grad_final is None:
            return (None,) * 11
        gradients = _backward(ctx.softplus, tuple(tensors), checkpoints, grad_y, grad_final)
        needed = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if need else None for gradient, need in needed)


def _backward(
    softplus: bool,
    tensors: tuple[Any, ...],
    checkpoints: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
) -> tuple[Tensor | None, ...]:
    from sb3_dmamba.ops.selective_scan._kernels import backward_scratch

    u, _, A, _, _, D, z, bias, initial = tensors
    batch, length, channels = u.shape
    states, dtype = A.shape[1], u.dtype
    bits = _cpu.float_bits(dtype)
    width = 512 // bits
    blocks = -(-channels // width)
    grad_y = torch.zeros_like(u) if grad_y is None else _cpu.rows(grad_y)
    grad_final = None if grad_final is None else grad_final.contiguous()

    d_u = _cpu.empty(batch, length, channels, dtype=dtype)
    d_delta = _cpu.empty(batch, length, channels, dtype=dtype)
    d_B = _cpu.empty(batch, length, states, dtype=dtype)
    d_C = _cpu.empty(batch, length, states, dtype=dtype)
    d_z = None if z is None else _cpu.empty(batch, length, channels, dtype=dtype)
    d_initial = None if initial is None else _cpu.empty(batch, channels, states, dtype=dtype)
    group_size = -(-batch // MAX_GROUPS)
    n_groups = -(-batch // max(group_size, 1))
    # Of each group: A's gradient, then D's and the bias's as two more states.
    partials = _cpu.empty(n_groups, blocks, states + 2, width, dtype=dtype)
    arguments = (
        *_common_arguments(softplus, tensors),
        *(checkpoints.data_ptr(), 0, 0),
        *_cpu.row_arguments(grad_y),
        *(_cpu.address(grad_final), d_u.data_ptr(), d_delta.data_ptr(), d_B.data_ptr()),
        *(d_C.data_ptr(), _cpu.address(d_z), _cpu.address(d_initial)),
        *(partials.data_ptr(), group_size),
    )
    _cpu.call_kernel(
        _cpu.load_kernel("selective_scan", "build_backward", bits),
        arguments,
        backward_scratch(channels, states, CHUNK, bits),
        n_groups,
        batch * length * channels * states,
    )
    total = partials.sum(0).transpose(1, 2).reshape(blocks * width, states + 2)[:channels]
    d_A = total[:, :states].contiguous()
    d_D = None if D is None else total[:, states].contiguous()
    d_bias = None if bias is None else total[:, states + 1].contiguous()
    return d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_bias, d_initial
