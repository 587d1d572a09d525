"""The sequence model inside d3rlpy: its encoder, its activations, its dropouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models.torch import compute_output_size
from d3rlpy.models.utility import create_activation
from gymnasium import spaces
from torch import Tensor, nn

from sb3_dmamba.d3rlpy.config import (
    DecisionMambaConfig,
    DiscreteDecisionMambaConfig,
    make_core_config,
)
from sb3_dmamba.networks import AttentionMixer, ConvolutionMixer, MambaMixer, SequenceModel

__all__ = ["EpisodeEncoder", "make_model", "pack_observations", "set_backend"]

_ACTIVATION = 2  # in the MLP: norm, projection, activation, projection, dropout


def pack_observations(observations: Tensor | Sequence[Tensor]) -> Tensor:
    """Join the arrays of tuple observations, flat, into one; one array stays as it is.

    Args:
        observations: (B, K, *obs), or several such.
    """
    if isinstance(observations, Tensor):
        return observations
    return torch.cat([part.flatten(2) for part in observations], dim=2)


class EpisodeEncoder(nn.Module):
    """Apply a d3rlpy encoder to every step of a batch of windows.

    Args:
        encoder: What an encoder factory made.
        observation_shape: Of one observation, or of each array of a tuple.
    """

    def __init__(self, encoder: nn.Module, observation_shape: Sequence[Any]) -> None:
        super().__init__()
        self.encoder = encoder
        self.shapes: list[tuple[int, ...]] | None = None
        if is_tuple_shape(observation_shape):
            self.shapes = [tuple(shape) for shape in observation_shape]

    def forward(self, observations: Tensor) -> Tensor:
        """Encode what :func:`pack_observations` returned, (B, K, *obs), as (B, K, H)."""
        steps = observations.flatten(0, 1)  # (B * K, *obs)
        if self.shapes is None:
            encoded: Tensor = self.encoder(steps)
        else:
            parts = steps.split([math.prod(shape) for shape in self.shapes], dim=1)
            unpacked = [
                part.reshape(-1, *shape).contiguous()
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
            encoded = self.encoder(unpacked)
        return encoded.view(*observations.shape[:2], -1)


def make_model(
    config: DecisionMambaConfig | DiscreteDecisionMambaConfig,
    observation_shape: Sequence[Any],
    action_size: int,
) -> SequenceModel:
    """Build the network, with weights from torch's global generator.

    Args:
        config: The face's config.
        observation_shape: Of one observation, or of each array of a tuple.
        action_size: Dimensions of an action, or the number of actions.

    Raises:
        ConfigError: The encoder's output size does not fit ``num_heads``.
        SpaceError: The encoder cannot take the observations.
    """
    encoder = config.encoder_factory.create(observation_shape)
    with torch.random.fork_rng(devices=[]):  # it tries the encoder on noise
        hidden_size = compute_output_size([observation_shape], encoder)
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (action_size,), np.float32)
    if isinstance(config, DiscreteDecisionMambaConfig):
        action_space = spaces.Discrete(action_size)
    model = SequenceModel(
        spaces.Box(-np.inf, np.inf, (1,), np.float32),  # the encoder alone knows
        action_space,
        make_core_config(config, hidden_size),
        statistics=None,
        observation_encoder=EpisodeEncoder(encoder, observation_shape),
    )
    _set_details(model, config)
    return model


def _set_details(
    model: SequenceModel, config: DecisionMambaConfig | DiscreteDecisionMambaConfig
) -> None:
    """Set what d3rlpy tells apart, or knows more kinds of, and the core config does not."""
    model.dropout.p = config.embed_dropout
    if isinstance(config, DiscreteDecisionMambaConfig) and config.embedding is None:
        model.embedding.activation = create_activation(config.embed_activation_type)
    for block in model.layers:
        if isinstance(block.mixer, AttentionMixer):
            block.mixer.dropout = config.attn_dropout
        if block.channel_mixer is not None:
            block.channel_mixer[_ACTIVATION] = create_activation(config.activation_type)


def set_backend(model: SequenceModel, backend: str) -> None:
    """Let the operations of a network run on another backend."""
    for block in model.layers:
        if isinstance(block.mixer, (MambaMixer, ConvolutionMixer)):
            block.mixer.backend = backend
