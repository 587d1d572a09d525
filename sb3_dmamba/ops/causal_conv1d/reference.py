"""The causal depthwise convolution in plain PyTorch: any device and dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    taps = weight.shape[1]
    inputs, kernel = x.to(dtype), weight.to(dtype)
    if initial_state is None:
        before = inputs.new_zeros(batch, taps - 1, channels)
    else:
        before = initial_state.to(dtype)
    padded = torch.cat([before, inputs], 1)  # (B, W-1+L, D)

    y = torch.zeros_like(inputs)
    for tap in range(taps):
        y = y + padded[:, tap : tap + length] * kernel[:, tap]
    if bias is not None:
        y = y + bias.to(dtype)
    if silu:
        y = functional.silu(y)
    final = padded[:, length:].to(x.dtype) if return_final_state else None
    return y.to(x.dtype), final
