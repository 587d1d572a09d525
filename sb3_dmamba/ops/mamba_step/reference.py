"""A Mamba mixer's next few tokens in plain PyTorch: any device and dtype."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from sb3_dmamba.ops.causal_conv1d.reference import causal_conv1d
from sb3_dmamba.ops.mamba_step import MambaWeights
from sb3_dmamba.ops.selective_scan.reference import selective_scan


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`.

    Source: Gu and Dao 2023 (arXiv:2312.00752), section 3.4 and figure 3.
    """
    rank, n_states = weights.dt_proj.shape[1], weights.A.shape[1]
    inputs, gate = linear(tokens, weights.in_proj).chunk(2, dim=-1)  # (B, L, D) each
    convolved, new_convolution_state = causal_conv1d(
        inputs, weights.conv1d, weights.conv1d_bias, True, convolution_state, True
    )
    step, b, c = linear(convolved, weights.x_proj).split([rank, n_states, n_states], dim=-1)
    mixed, new_scan_state = selective_scan(
        *(convolved, step, weights.A, b, c, weights.D, gate, weights.dt_bias, weights.dt_proj),
        *(True, scan_state, True),
    )
    assert new_convolution_state is not None
    assert new_scan_state is not None
    return linear(mixed, weights.out_proj), new_convolution_state, new_scan_state
