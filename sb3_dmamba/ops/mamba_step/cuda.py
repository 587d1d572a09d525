"""A Mamba mixer's next few tokens by the step kernels of mamba-ssm and causal-conv1d."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from sb3_dmamba.ops.mamba_step import MambaWeights


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    from causal_conv1d import causal_conv1d_update
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    kind, (rank, n_states) = weights.in_proj.dtype, (weights.dt_proj.shape[1], weights.A.shape[1])
    # Both kernels write into the state they are given.
    taps_state = (
        convolution_state.to(kind).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    )
    state = scan_state.float().clone(memory_format=torch.contiguous_format)
    with torch.autocast(tokens.device.type, enabled=False):
        inputs, gate = linear(tokens.to(kind), weights.in_proj).chunk(2, dim=-1)  # (B, L, D) each
        convolved = causal_conv1d_update(
            inputs.transpose(1, 2).contiguous(),
            taps_state,
            weights.conv1d.contiguous(),
            weights.conv1d_bias,
            "silu",
        ).transpose(1, 2)
        low, b, c = linear(convolved, weights.x_proj).split([rank, n_states, n_states], dim=-1)
        step = linear(low, weights.dt_proj)
        outputs = [
            selective_state_update(
                *(state, convolved[:, t], step[:, t], weights.A, b[:, t], c[:, t], weights.D),
                z=gate[:, t],
                dt_bias=weights.dt_bias,
                dt_softplus=True,
            )
            for t in range(tokens.shape[1])
        ]
        mixed = linear(torch.stack(outputs, 1), weights.out_proj)
    return (
        mixed.to(tokens.dtype),
        taps_state.transpose(1, 2).to(convolution_state.dtype),
        state.to(scan_state.dtype),
    )
