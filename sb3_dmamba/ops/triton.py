"""The ``triton`` backend: the operations on NVIDIA GPUs, fused; no compiler on the user's side.

A Mamba mixer's step is two fused kernels between three matrix products. One kernel for the whole
step, as on the CPU, would read the weights through one multiprocessor for each environment, or wait
for the whole device between its parts. The products are the vendor library's; convolution and SiLU
are one kernel, and step size, scan, skip and gate the other.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops.causal_conv1d.triton import causal_conv1d
from sb3_dmamba.ops.mamba_step import MambaWeights
from sb3_dmamba.ops.selective_scan.triton import selective_scan

__all__ = ["causal_conv1d", "mamba_step", "selective_scan"]


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    rank, n_states = weights.dt_proj.shape[1], weights.A.shape[1]
    with _triton.without_autocast(tokens):
        projected = linear(tokens.to(weights.in_proj.dtype), weights.in_proj)
        inputs, gate = projected.chunk(2, dim=-1)  # (B, L, D) each, read where they are
        convolved, new_convolution_state = causal_conv1d(
            inputs, weights.conv1d, weights.conv1d_bias, True, convolution_state, True
        )
        step, b, c = linear(convolved, weights.x_proj).split([rank, n_states, n_states], dim=-1)
        mixed, new_scan_state = selective_scan(
            *(convolved, step, weights.A, b, c, weights.D, gate, weights.dt_bias, weights.dt_proj),
            *(True, scan_state, True),
        )
        mixed = linear(mixed, weights.out_proj)
    assert new_convolution_state is not None
    assert new_scan_state is not None
    return (
        mixed.to(tokens.dtype),
        new_convolution_state.to(convolution_state.dtype),
        new_scan_state.to(scan_state.dtype),
    )
