"""Mamba's two operations, each with several implementations behind one signature."""

from sb3_dmamba.ops.causal_conv1d import causal_conv1d
from sb3_dmamba.ops.dispatch import available_backends, resolve_backend
from sb3_dmamba.ops.selective_scan import selective_scan

__all__ = ["available_backends", "causal_conv1d", "resolve_backend", "selective_scan"]
