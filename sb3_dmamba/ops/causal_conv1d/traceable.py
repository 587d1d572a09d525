"""The causal convolution for what traces a model: the reference, which loops over taps alone."""

from sb3_dmamba.ops.causal_conv1d.reference import causal_conv1d

__all__ = ["causal_conv1d"]
