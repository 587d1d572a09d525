"""The ``triton`` backend: the operations on NVIDIA GPUs, fused; no compiler on the user's side.

A Mamba mixer's step is two fused kernels between three matrix products of torch's: convolution and
SiLU are one kernel, and step size, scan, skip and gate the other. One kernel for the whole step, as
on the CPU, would read the weights through one multiprocessor for each environment, or wait for the
whole device between its parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops.causal_conv1d.triton import causal_conv1d
from sb3_dmamba.ops.mamba_step import MambaWeights
from sb3_dmamba.ops.reference import compose_step
from sb3_dmamba.ops.selective_scan.triton import selective_scan

__all__ = ["causal_conv1d", "mamba_step", "selective_scan", "why_not"]

OLDEST_CAPABILITY = (7, 5)  # compiles for it; Triton itself promises 8.0 and later


def why_not(device: torch.device) -> str | None:
    """Say why the kernels do not run on a device and what to do; None where they do.

    Raises what breaks in a compiler or a driver.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY and torch.version.hip is None:
            return (
                f"the GPU has compute capability {'.'.join(map(str, capability))} and Triton needs "
                f"{'.'.join(map(str, OLDEST_CAPABILITY))}: use backend='reference'"
            )
    ones = torch.ones(1, 1, 1, device=device)  # one token, channel and state: 2 * 3 = 6
    arguments = (3 * ones, 2 * ones, -ones[0], ones, ones, *(None,) * 4, False, None, False)
    y = selective_scan(*arguments)[0].item()
    if y != 6.0:
        return f"Triton's first kernel computed {y} in place of 6.0: pip install -U torch triton"
    return None


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    with _triton.without_autocast(tokens):
        results = compose_step(
            *(causal_conv1d, selective_scan, tokens.to(weights.in_proj.dtype), weights),
            *(convolution_state, scan_state),
        )
    mixed, new_convolution_state, new_scan_state = results
    return (
        mixed.to(tokens.dtype),
        new_convolution_state.to(convolution_state.dtype),
        new_scan_state.to(scan_state.dtype),
    )
