"""The sequence model: token embedding, mixers, blocks, heads, and the policy that acts with it."""

from sb3_dmamba.networks.encoders import ExtractorEncoder
from sb3_dmamba.networks.memory import ActingState
from sb3_dmamba.networks.mixers import AttentionMixer, ConvolutionMixer, MambaMixer
from sb3_dmamba.networks.model import SequenceModel
from sb3_dmamba.networks.policy import DecisionMambaPolicy

__all__ = [
    "ActingState",
    "AttentionMixer",
    "ConvolutionMixer",
    "DecisionMambaPolicy",
    "ExtractorEncoder",
    "MambaMixer",
    "SequenceModel",
]
