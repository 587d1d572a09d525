"""The causal depthwise convolution on the CPU, with bias and SiLU, compiled by Numba.

Computes in float32 (float64 for float64 input); half precision is cast on the way in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_dmamba.ops import _cpu, _threads

# As in the selective scan: bounds the threads of the backward pass, fixes the order of summation.
MAX_GROUPS = 32


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    dtype = _cpu.compute_dtype(x)
    tensors = [x, weight, bias, initial_state]
    if _cpu.prepare(tensors, 1, dtype):
        y, final = _CausalConv.apply(silu, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final = _forward(silu, return_final_state, tensors)
    if x.dtype is not dtype:
        y, final = y.to(x.dtype), None if final is None else final.to(x.dtype)
    return y, final


def _common_arguments(silu: bool, size: int, tensors: Sequence[Any]) -> tuple[int, ...]:
    """Pack what both kernels take; the order is that of ``_kernels``."""
    x, weight, bias, initial = tensors
    return (
        *(0, *x.shape, weight.shape[1], int(silu)),
        *_cpu.row_arguments(x, size),
        *(weight.data_ptr(), _cpu.address(bias), _cpu.address(initial)),
    )


def _forward(
    silu: bool, return_final_state: bool, tensors: Sequence[Any]
) -> tuple[Tensor, Tensor | None]:
    x, weight = tensors[0], tensors[1]
    batch, length, channels = x.shape
    taps, dtype = weight.shape[1], x.dtype
    bits = _cpu.float_bits(dtype)
    blocks = -(-channels * bits // 512)
    y = _cpu.empty(batch, length, channels, dtype=dtype)
    final = _cpu.empty(batch, taps - 1, channels, dtype=dtype) if return_final_state else None
    arguments = (*_common_arguments(silu, bits // 8, tensors), y.data_ptr(), _cpu.address(final))
    _threads.call_kernel(
        _cpu.load_kernel("causal_conv1d._kernels", "build_forward", bits),
        arguments,
        64 * blocks * taps,
        batch,
        batch * length * channels * taps,
    )
    return y, final


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, silu: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*inputs)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return _forward(silu, return_final_state, inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        if grad_y is None and grad_final is None:
            return (None,) * 6
        gradients = _backward(ctx.silu, ctx.saved_tensors, grad_y, grad_final)
        needed = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if need else None for gradient, need in needed)


def _backward(
    silu: bool, tensors: Sequence[Any], grad_y: Tensor | None, grad_final: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial = tensors
    batch, length, channels = x.shape
    taps, dtype = weight.shape[1], x.dtype
    bits = _cpu.float_bits(dtype)
    width = 512 // bits
    blocks = -(-channels // width)
    grad_y = torch.zeros_like(x) if grad_y is None else _cpu.rows(grad_y)
    grad_final = None if grad_final is None else grad_final.contiguous()

    d_x = _cpu.empty(batch, length, channels, dtype=dtype)
    d_initial = None if initial is None else _cpu.empty(batch, taps - 1, channels, dtype=dtype)
    group_size = -(-batch // MAX_GROUPS)
    n_groups = -(-batch // max(group_size, 1))
    # Of each group: the weight's gradient, then the bias's as one more tap.
    partials = _cpu.empty(n_groups, blocks, taps + 1, width, dtype=dtype)
    arguments = (
        *_common_arguments(silu, bits // 8, tensors),
        *(0, 0, *_cpu.row_arguments(grad_y, bits // 8), _cpu.address(grad_final)),
        *(d_x.data_ptr(), _cpu.address(d_initial), partials.data_ptr(), group_size),
    )
    _threads.call_kernel(
        _cpu.load_kernel("causal_conv1d._kernels", "build_backward", bits),
        arguments,
        64 * (blocks * taps + length),
        n_groups,
        batch * length * channels * taps,
    )
    total = _cpu.sum_groups(partials).transpose(1, 2).reshape(blocks * width, taps + 1)[:channels]
    d_weight = total[:, :taps].contiguous()
    d_bias = None if bias is None else total[:, taps].contiguous()
    return d_x, d_weight, d_bias, d_initial
