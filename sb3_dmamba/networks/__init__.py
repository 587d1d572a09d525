"""The sequence model: token embedding, mixers, blocks, heads, and the policy that acts with it."""

from sb3_dmamba.networks.attention import AttentionMixer
from sb3_dmamba.networks.convolution import ConvolutionMixer
from sb3_dmamba.networks.features import ExtractorEncoder
from sb3_dmamba.networks.mamba import MambaMixer
from sb3_dmamba.networks.policy import DecisionMambaPolicy
from sb3_dmamba.networks.sequence_model import SequenceModel
from sb3_dmamba.networks.state import ActingState

__all__ = [
    "ActingState",
    "AttentionMixer",
    "ConvolutionMixer",
    "DecisionMambaPolicy",
    "ExtractorEncoder",
    "MambaMixer",
    "SequenceModel",
]
