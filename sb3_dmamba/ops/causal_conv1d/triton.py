"""The causal depthwise convolution on NVIDIA GPUs, with bias and SiLU, in Triton.

Computes in float32 (float64 for float64 input), whatever the dtype of what it reads and writes.
Nothing is added up in memory by several programs at once: the same call gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops.causal_conv1d import _triton_kernels

BLOCK_L = 16  # tokens of a tile; with BLOCK_D channels and WARPS 8 elements a thread
BLOCK_D = 64
WARPS = 4
# A program takes several tiles, which leaves fewer partial sums, up to this many and while there
# are this many programs for each multiprocessor.
MAX_TILES = 16
PROGRAMS_A_MULTIPROCESSOR = 16


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    tensors = (x, weight, bias, initial_state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, final = _CausalConv.apply(silu, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final = _forward(*tensors, silu, return_final_state)
    return y, final if return_final_state else None


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, silu: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*inputs)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        y, final = _forward(*inputs, silu, return_final_state)
        return y, final if return_final_state else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        if grad_y is None and grad_final is None:
            return (None,) * 6
        inputs = ctx.saved_tensors
        grad_y = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
        gradients = _backward(*inputs, grad_y, grad_final, ctx.silu)
        return None, None, *_triton.wanted(gradients, ctx.needs_input_grad[2:])


def _cut(length: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Return the tokens of a program and how many programs a sequence takes."""
    n_tiles = max(-(-length // BLOCK_L), 1)
    enough = PROGRAMS_A_MULTIPROCESSOR * _triton.n_multiprocessors(device)
    tiles = max(1, min(MAX_TILES, n_tiles, programs * n_tiles // enough))
    return tiles * BLOCK_L, -(-n_tiles // tiles)


def _run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, length, channels = x.shape
    y, final = _shape_forward(x, weight, bias, initial, silu, return_final_state)
    x = _triton.rows(x)
    programs = batch * -(-channels // BLOCK_D)
    span, n_spans = _cut(length, programs, x.device)
    _triton.launch(
        *(_triton_kernels.conv_forward, (programs, n_spans), WARPS),
        *(x, *map(_triton.whole, (weight, bias, initial)), y),
        *(final if return_final_state else None, length, span, channels, *_triton.strides(x)),
        TAPS=weight.shape[1],
        BLOCK_L=BLOCK_L,
        BLOCK_D=BLOCK_D,
        SILU=silu,
        DOUBLE=_triton.is_double(x),
    )
    return y, final


def _shape_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """Allocate the results of :func:`_run_forward`; what is not asked for is empty."""
    batch, _, channels = x.shape
    y = _triton.empty(*x.shape, like=x)
    if not return_final_state:
        return y, _triton.absent(x)
    return y, _triton.empty(batch, weight.shape[1] - 1, channels, like=x)


def _run_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    d_x, d_weight, d_bias, d_initial = _shape_backward(
        x, weight, bias, initial, grad_y, grad_final, silu
    )
    x, grad_y = _triton.rows(x), _triton.rows(grad_y)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    programs = batch * -(-channels // BLOCK_D)
    span, n_spans = _cut(length + taps - 1, programs, x.device)
    dtype = _triton.compute_dtype(x)
    d_taps = _triton.empty(batch, n_spans, taps + 1, channels, like=x, dtype=dtype)
    _triton.launch(
        *(_triton_kernels.conv_backward, (programs, n_spans), WARPS),
        *(x, *map(_triton.whole, (weight, bias, initial)), grad_y, _triton.whole(grad_final)),
        *(d_x, None if initial is None else d_initial, d_taps, length, span, channels),
        *(*_triton.strides(x), *_triton.strides(grad_y)),
        TAPS=taps,
        BLOCK_T=_triton.power_of_two(taps + 1),
        BLOCK_L=BLOCK_L,
        BLOCK_D=BLOCK_D,
        SILU=silu,
        DOUBLE=_triton.is_double(x),
    )
    total = d_taps.sum((0, 1))
    d_weight.copy_(total[:taps].t())
    if bias is not None:
        d_bias.copy_(total[taps])
    return d_x, d_weight, d_bias, d_initial


def _shape_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Allocate the results of :func:`_run_backward`; those of what is absent are empty."""
    return tuple(
        _triton.absent(x) if t is None else _triton.empty(*t.shape, like=t)
        for t in (x, weight, bias, initial)
    )


_forward = _triton.define_operator(
    "causal_conv1d_forward",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial, bool silu, bool final)"
    " -> (Tensor, Tensor)",
    _run_forward,
    _shape_forward,
)
_backward = _triton.define_operator(
    "causal_conv1d_backward",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial, Tensor grad_y, Tensor? grad_final,"
    " bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _shape_backward,
)
