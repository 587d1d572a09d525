"""The causal depthwise convolution on the CPU, with bias and SiLU, compiled by Numba.

Computes in float32 (float64 for float64 input); half precision is cast on the way in and out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_dmamba.ops import _cpu

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
    given = (x, weight, bias, initial_state)
    tensors = tuple(t if t is None or t.dtype is dtype else t.to(dtype) for t in given)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _CausalConv.apply(silu, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final = _forward(silu, return_final_state, _layout(tensors))
    if x.dtype is not dtype:
        y, final = y.to(x.dtype), None if final is None else final.to(x.dtype)
    return y, final


def _layout(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    x, weight, bias, initial = tensors
    return (
        _cpu.rows(x),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        None if initial is None else initial.contiguous(),
    )


def _common_arguments(silu: bool, tensors: tuple[Any, ...]) -> tuple[int, ...]:
    """Pack what both kernels take; the order is that of ``_kernels``."""
    x, weight, bias, initial = tensors
    return (
        *(0, *x.shape, weight.shape[1], int(silu)),
        *_cpu.row_arguments(x),
        *(weight.data_ptr(), _cpu.address(bias), _cpu.address(initial)),
    )


def _forward(
    silu: bool, return_final_state: bool, tensors: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None]:
    from sb3_dmamba.ops.causal_conv1d._kernels import forward_scratch

    x, weight = tensors[0], tensors[1]
    batch, length, channels = x.shape
    taps, dtype = weight.shape[1], x.dtype
    bits = _cpu.float_bits(dtype)
    y = _cpu.empty(batch, length, channels, dtype=dtype)
    final = _cpu.empty(batch, taps - 1, channels, dtype=dtype) if return_final_state else None
    arguments = (*_common_arguments(silu, tensors), y.data_ptr(), _cpu.address(final))
    _cpu.call_kernel(
        _cpu.load_kernel("causal_conv1d", "build_forward", bits),
        arguments,
        forward_scratch(channels, taps, bits),
        batch,
        batch * length * channels * taps,
    )
    return y, final


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, silu: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        tensors = _layout(inputs)
        ctx.save_for_backward(*tensors)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return _forward(silu, return_final_state, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        if grad_y is None and grad_final is None:
            return (None,) * 6
        gradients = _backward(ctx.silu, ctx.saved_tensors, grad_y, grad_final)
        needed = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if need else None for gradient, need in needed)


def _backward(
    silu: bool, tensors: tuple[Any, ...], grad_y: Tensor | None, grad_final: Tensor | None
) -> tuple[Tensor | None, ...]:
    from sb3_dmamba.ops.causal_conv1d._kernels import backward_scratch

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
        *_common_arguments(silu, tensors),
        *(0, 0, *_cpu.row_arguments(grad_y), _cpu.address(grad_final)),
        *(d_x.data_ptr(), _cpu.address(d_initial), partials.data_ptr(), group_size),
    )
    _cpu.call_kernel(
        _cpu.load_kernel("causal_conv1d", "build_backward", bits),
        arguments,
        backward_scratch(channels, taps, length, bits),
        n_groups,
        batch * length * channels * taps,
    )
    total = partials.sum(0).transpose(1, 2).reshape(blocks * width, taps + 1)[:channels]
    d_weight = total[:, :taps].contiguous()
    d_bias = None if bias is None else total[:, taps].contiguous()
    return d_x, d_weight, d_bias, d_initial
