"""Mamba's operations, each with several implementations behind one signature."""

from sb3_dmamba.ops.causal_conv1d import causal_conv1d
from sb3_dmamba.ops.dispatch import available_backends, explain_backends, resolve_backend
from sb3_dmamba.ops.mamba_step import MambaWeights, mamba_step
from sb3_dmamba.ops.residual import add_residual, modulated_norm
from sb3_dmamba.ops.selective_scan import selective_scan

__all__ = [
    "MambaWeights",
    "add_residual",
    "available_backends",
    "causal_conv1d",
    "explain_backends",
    "mamba_step",
    "modulated_norm",
    "resolve_backend",
    "selective_scan",
]
