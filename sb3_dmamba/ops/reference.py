"""Reference implementations in plain PyTorch: readable, any device and dtype, differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from sb3_dmamba.ops._shared import DROPOUT_LEVELS, compute_dtype, count_tokens
from sb3_dmamba.ops.mamba_step import MambaWeights


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    dtype = compute_dtype(x)
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


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_weight: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`.

    Source: Gu and Dao 2023 (arXiv:2312.00752), algorithm 2 and equation 2a.
    """
    dtype = compute_dtype(u)
    x, step, rate = u.to(dtype), delta.to(dtype), A.to(dtype)
    inward, outward = B.to(dtype), C.to(dtype)
    batch, length, channels = u.shape

    step = compute_step_size(step, delta_bias, delta_weight, delta_softplus)
    if initial_state is None:
        state = x.new_zeros(batch, channels, A.shape[1])
    else:
        state = initial_state.to(dtype)

    outputs = []
    for t in range(length):
        decay = torch.exp(step[:, t, :, None] * rate)  # (B, D, N)
        inflow = (step[:, t] * x[:, t])[:, :, None] * inward[:, t, None, :]  # (B, D, N)
        state = decay * state + inflow
        outputs.append((state * outward[:, t, None, :]).sum(-1))  # (B, D)
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)  # (B, L, D)
    y = add_skip_and_gate(y, x, D, z)
    return y.to(u.dtype), state if return_final_state else None


def compute_step_size(
    delta: Tensor, bias: Tensor | None, weight: Tensor | None, softplus: bool
) -> Tensor:
    """Return the step sizes (B, L, D), in the dtype of ``delta``."""
    step = delta
    if weight is not None:
        # Not a matrix product, which autocast would round.
        step = (step[:, :, None] * weight.to(step.dtype)).sum(-1)  # (B, L, D)
    if bias is not None:
        step = step + bias.to(step.dtype)
    return functional.softplus(step) if softplus else step


def add_skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Add the skip connection, and multiply by the gate; (B, L, D), in the dtype of ``y``."""
    if D is not None:
        y = y + x * D.to(y.dtype)
    return y if z is None else y * functional.silu(z.to(y.dtype))


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    states = convolution_state, scan_state
    return compose_step(causal_conv1d, selective_scan, tokens, weights, *states)


def compose_step(
    convolve: Callable[..., tuple[Tensor, Tensor | None]],
    scan: Callable[..., tuple[Tensor, Tensor | None]],
    tokens: Tensor,
    weights: MambaWeights,
    convolution_state: Tensor,
    scan_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens by a backend's convolution and scan, and torch's matrix products.

    Source: Gu and Dao 2023 (arXiv:2312.00752), section 3.4 and figure 3.
    """
    rank, n_states = weights.dt_proj.shape[1], weights.A.shape[1]
    inputs, gate = linear(tokens, weights.in_proj).chunk(2, dim=-1)  # (B, L, D) each
    convolved, new_convolution_state = convolve(
        inputs, weights.conv1d, weights.conv1d_bias, True, convolution_state, True
    )
    step, b, c = linear(convolved, weights.x_proj).split([rank, n_states, n_states], dim=-1)
    mixed, new_scan_state = scan(
        *(convolved, step, weights.A, b, c, weights.D, gate, weights.dt_bias, weights.dt_proj),
        *(True, scan_state, True),
    )
    assert new_convolution_state is not None
    assert new_scan_state is not None
    return linear(mixed, weights.out_proj), new_convolution_state, new_scan_state


def modulated_norm(x: Tensor, modulation: Tensor, width: int, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm; shapes are those of :func:`sb3_dmamba.ops.modulated_norm`."""
    factor, shift = modulation[..., :width], modulation[..., width : 2 * width]
    normed = functional.layer_norm(x, (width,), eps=eps)
    y = torch.addcmul(_repeat(shift, x), normed, _repeat(factor, x))
    return y, modulation[..., 2 * width :]


def add_residual(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, levels: Tensor | None, n_dropped: int
) -> Tensor:
    """Compute the sum; shapes are those of :func:`sb3_dmamba.ops.add_residual`."""
    if levels is not None:
        kept = (levels >= n_dropped - DROPOUT_LEVELS // 2).to(x.dtype)
        x = x * kept.mul_(DROPOUT_LEVELS / (DROPOUT_LEVELS - n_dropped))
    if gate is None:
        return x if residual is None else residual + x
    gate = _repeat(gate, x)
    return x * gate if residual is None else torch.addcmul(residual, x, gate)


def _repeat(rows: Tensor, x: Tensor) -> Tensor:
    """Return each step's row (B, K, D) once for each of its tokens (B, L, D)."""
    if rows.shape[1] == x.shape[1]:
        return rows
    n_tokens = count_tokens(x.shape[1], rows.shape[1])
    return rows.unsqueeze(2).expand(-1, -1, n_tokens, -1).flatten(1, 2)[:, : x.shape[1]]
