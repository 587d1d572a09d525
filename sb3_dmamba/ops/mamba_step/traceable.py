"""A Mamba mixer's next few tokens for what traces a model: the reference, as they are few."""

from sb3_dmamba.ops.mamba_step.reference import mamba_step

__all__ = ["mamba_step"]
