"""The sequence model inside d3rlpy, and conversion of d3rlpy's windows."""

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
from sb3_dmamba.data import WindowBatch
from sb3_dmamba.networks import AttentionMixer, ConvolutionMixer, MambaMixer, SequenceModel


def to_windows(inputs: Any, *, is_discrete: bool, may_look: bool = False) -> WindowBatch:
    """Move the real steps of every window to its front.

    Args:
        inputs: d3rlpy's ``TorchTrajectoryMiniBatch`` or ``TorchTransformerInput``: observations
            (B, K, *obs) or a sequence of such, actions (B, K, A) or (B, K, 1), returns_to_go
            (B, K, 1), timesteps (B, K), masks (B, K), 1 where the step is real.
        is_discrete: Whether actions are numbers of actions.
        may_look: Whether the masks may be read to see that nothing has to move. That waits for a
            GPU, and cannot be traced.

    Returns:
        The windows; timesteps from 0, padding last.
    """
    real = inputs.masks.reshape(inputs.timesteps.shape) > 0  # (B, K)
    observations = pack_observations(inputs.observations)
    actions = inputs.actions
    if is_discrete:
        actions = actions.reshape(real.shape).long()
    windows = WindowBatch(
        observations=observations,
        actions=actions,
        returns_to_go=inputs.returns_to_go.reshape(real.shape),
        timesteps=(inputs.timesteps.reshape(real.shape) - 1).clamp_min(0),
        padding_mask=real,
    )
    if may_look and bool(real.all()):
        return windows
    n_steps = real.shape[1]
    place = torch.arange(n_steps, device=real.device)
    # No two keys are equal, so that the order is kept however the sort works.
    order = torch.argsort(place + n_steps * (~real).long(), dim=1)
    row = torch.arange(real.shape[0], device=real.device).unsqueeze(1)  # (B, 1)

    def move(tensor: Tensor) -> Tensor:
        return tensor[row, order]

    return WindowBatch(
        observations=move(windows.observations),
        actions=move(windows.actions),
        returns_to_go=move(windows.returns_to_go),
        timesteps=move(windows.timesteps),
        padding_mask=move(windows.padding_mask),
    )


def find_real_steps(masks: Tensor, timesteps: Tensor) -> Tensor:
    """Return masks (B, K) of steps to act on, where d3rlpy may have passed none.

    The function that d3rlpy exports calls the algorithm with masks of zeros; padding is then told
    by its timestep, which is 0. Where that leaves none, the newest step is.

    Args:
        masks: (B, K), 1 where the step is real; or all zero.
        timesteps: (B, K), from 1 where the step is real.
    """
    given = masks.reshape(timesteps.shape) > 0
    # Not torch.where, which onnxruntime does not have for booleans.
    real = given | ((timesteps > 0) & ~given.any(dim=1, keepdim=True))
    newest = real[:, -1:] | ~real.any(dim=1, keepdim=True)
    return torch.cat([real[:, :-1], newest], dim=1).to(masks.dtype)


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
