"""Encoders of observations and actions, features extractors of a user's own included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Num
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import ConfigError, SpaceError

_SMALLEST_NATURE_CNN_INPUT = 36  # pixels a side: smaller images vanish in the third convolution


def make_observation_encoder(
    space: spaces.Box, config: DecisionMambaConfig, statistics: ObservationStatistics | None
) -> LinearEncoder | NatureCNNEncoder:
    """Build the encoder named by ``config.encoder``; ``"auto"`` chooses by the space."""
    if config.encoder == "nature_cnn" and (len(space.shape) != 3 or space.dtype != np.uint8):
        message = (
            f"encoder='nature_cnn' needs images (channels, height, width) of bytes, and the "
            f"observations are {space}: use encoder='linear', or policy_kwargs with a features "
            f"extractor of your own"
        )
        raise SpaceError(message, setting="encoder", value="nature_cnn")
    is_image = config.encoder == "auto" and is_image_space(space, normalized_image=False)
    if is_image or config.encoder == "nature_cnn":
        return NatureCNNEncoder(space, config.hidden_size)
    return LinearEncoder(space, config.hidden_size, statistics)


def make_normalization(
    space: spaces.Box, statistics: ObservationStatistics | None
) -> tuple[Float[Tensor, "*obs"], Float[Tensor, "*obs"]]:
    """Return the mean and standard deviation that observations are standardised with."""
    if statistics is None:
        scale = 255.0 if space.dtype == np.uint8 else 1.0
        return torch.zeros(space.shape), torch.full(space.shape, scale)
    mean, std = torch.as_tensor(statistics.mean), torch.as_tensor(statistics.std)
    return mean.reshape(space.shape).float().clone(), std.reshape(space.shape).float().clone()


class LinearEncoder(nn.Module):
    """Flatten, standardise and project an observation."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, space: spaces.Box, hidden_size: int, statistics: ObservationStatistics | None
    ) -> None:
        super().__init__()
        mean, std = make_normalization(space, statistics)
        self.register_buffer("mean", mean.flatten())  # saved and moved with the weights
        self.register_buffer("std", std.flatten())
        self.projection = nn.Linear(math.prod(space.shape), hidden_size)

    def forward(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Encode raw observations, in the environment's units."""
        flat = observations.flatten(2).float()  # (B, K, size)
        encoded: Tensor = self.projection((flat - self.mean) / self.std)
        return encoded


class NatureCNNEncoder(nn.Module):
    """The convolutional network of DQN's Nature paper, for images of bytes.

    Source: Mnih et al. 2015; the sizes are those of the Decision Transformer's Atari encoder.
    """

    def __init__(self, space: spaces.Box, hidden_size: int, scale: float = 255.0) -> None:
        super().__init__()
        self.scale = scale
        self.channels_last = min(range(3), key=lambda axis: space.shape[axis]) == 2
        shape = space.shape[-1:] + space.shape[:-1] if self.channels_last else space.shape
        if min(shape[1:]) < _SMALLEST_NATURE_CNN_INPUT:
            message = (
                f"images of shape {space.shape} are too small for encoder='nature_cnn' (at least "
                f"{_SMALLEST_NATURE_CNN_INPUT} pixels a side): resize them, or use encoder='linear'"
            )
            raise SpaceError(message, setting="encoder", value="nature_cnn")
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape[0], 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, *shape)).shape[1]
        self.projection = nn.Linear(size, hidden_size)

    def forward(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Encode raw images, which are converted to floats here, on the device."""
        images = observations.flatten(0, 1)  # (B * K, *obs)
        if self.channels_last:
            images = images.movedim(-1, 1)
        encoded: Tensor = self.projection(self.convolutions(images.float() / self.scale))
        return encoded.view(*observations.shape[:2], -1)  # (B, K, H)


class ExtractorEncoder(nn.Module):
    """Apply a features extractor to every step of a batch of windows and project its features.

    As in Stable-Baselines3, the extractor gets images with their channels first, divided by 255.
    Other observations are standardised with the dataset's statistics.

    Args:
        space: Space of one observation.
        config: ``hidden_size``, the width of the result.
        statistics: Mean and standard deviation; None divides bytes by 255.
        features_extractor_class: Called with the space (channels first for images) and
            ``features_extractor_kwargs``; returns a module with ``features_dim`` that maps
            (N, *observation) to (N, features_dim).
        features_extractor_kwargs: Its further arguments.

    Raises:
        ConfigError: The extractor has no ``features_dim``, or the config names an encoder as well.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        space: spaces.Box,
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None,
        features_extractor_class: MakeExtractor,
        features_extractor_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if config.encoder != "auto":
            message = f"encoder={config.encoder!r} and a {_CLASS} are given: leave one of them out"
            raise ConfigError(message, setting="encoder", value=config.encoder)
        is_image = is_image_space(space, normalized_image=False)
        self.channels_last = is_image and not is_image_space_channels_first(space)
        if self.channels_last:
            low, high = (np.moveaxis(bound, -1, 0) for bound in (space.low, space.high))
            space = spaces.Box(low, high, dtype=np.uint8)
        mean, std = make_normalization(space, statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.extractor = features_extractor_class(space, **(features_extractor_kwargs or {}))
        self.features_dim = getattr(self.extractor, "features_dim", None)
        if not isinstance(self.features_dim, int):
            message = (
                f"{type(self.extractor).__name__} has no features_dim: derive it from "
                f"stable_baselines3.common.torch_layers.BaseFeaturesExtractor, or set it"
            )
            raise ConfigError(message, setting=_CLASS, value=type(self.extractor))
        self.projection = nn.Linear(self.features_dim, config.hidden_size)

    def forward(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Encode raw observations, in the environment's units.

        Raises:
            SpaceError: The extractor's result is not of shape (N, features_dim).
        """
        steps = observations.flatten(0, 1)  # (B * K, *obs)
        if self.channels_last:
            steps = steps.movedim(-1, 1)
        features = self.extractor((steps.float() - self.mean) / self.std)
        if features.shape != (len(steps), self.features_dim):
            message = (
                f"{type(self.extractor).__name__} made features of shape {tuple(features.shape)} "
                f"of {len(steps)} observations, and its features_dim is {self.features_dim}"
            )
            raise SpaceError(message, setting="features_dim", value=tuple(features.shape))
        encoded: Tensor = self.projection(features)
        return encoded.view(*observations.shape[:2], -1)  # (B, K, H)


_CLASS, _KWARGS = "features_extractor_class", "features_extractor_kwargs"

MakeExtractor = Callable[..., nn.Module]


def check_policy_kwargs(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Validate ``policy_kwargs`` and return a copy."""
    given = dict(policy_kwargs or {})
    others = sorted(given.keys() - {_CLASS, _KWARGS})
    if others:
        message = (
            f"policy_kwargs has {', '.join(others)}: it takes {_CLASS} and {_KWARGS}; the network "
            f"and its optimiser have settings of their own, such as hidden_size=256"
        )
        raise ConfigError(message, setting="policy_kwargs", value=others, choices=(_CLASS, _KWARGS))
    if given and not callable(given.get(_CLASS)):
        message = f"{_CLASS}={given.get(_CLASS)!r}: give a class such as a BaseFeaturesExtractor"
        raise ConfigError(message, setting=_CLASS, value=given.get(_CLASS))
    return given


def name_extractor(policy_kwargs: Mapping[str, Any]) -> str | None:
    """Return the full name of the features extractor's class; None without one."""
    if not policy_kwargs:
        return None
    extractor = policy_kwargs[_CLASS]
    return f"{extractor.__module__}.{getattr(extractor, '__qualname__', type(extractor).__name__)}"


def check_extractor(saved: str | None, given: str | None, path: Any) -> None:
    """Check that a file is read with the features extractor it was written with.

    Its class is never imported by name: reading a file executes nothing.
    """
    if saved == given:
        return
    wants = "has no features extractor: leave policy_kwargs out"
    if saved is not None:
        name = saved.rpartition(".")[2]
        wants = (
            f"was made with the features extractor {saved}: load it with "
            f'policy_kwargs={{"{_CLASS}": {name}, ...}}, as it was made'
        )
    raise ConfigError(f"{path} {wants}", setting="policy_kwargs", value=given, choices=[saved])


class ActionEncoder(nn.Module):
    """Embed an action: a table for discrete actions, a projection for continuous ones."""

    def __init__(self, space: spaces.Space[Any], hidden_size: int) -> None:
        super().__init__()
        self.start = int(space.start) if isinstance(space, spaces.Discrete) else None
        self.projection: nn.Module
        if isinstance(space, spaces.Discrete):
            self.projection = nn.Embedding(int(space.n), hidden_size)
        elif isinstance(space, spaces.Box):
            self.projection = nn.Linear(math.prod(space.shape), hidden_size)
        else:
            message = f"action space {space} is not supported: use Box or Discrete"
            raise SpaceError(message, setting="action_space", value=space)

    def forward(self, actions: Num[Tensor, "B K *act"]) -> Float[Tensor, "B K H"]:
        """Encode actions in the environment's units."""
        if self.start is None:
            encoded: Tensor = self.projection(actions.flatten(2))
        else:
            # Padding is zero, which may lie below the space's first action.
            encoded = self.projection((actions - self.start).clamp_min(0))
        return encoded
