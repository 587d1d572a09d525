"""What turns an observation, an action or a return into a vector of the model's width."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Num
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import SpaceError

__all__ = [
    "ActionEncoder",
    "LinearEncoder",
    "NatureCNNEncoder",
    "make_normalization",
    "make_observation_encoder",
]

_SMALLEST_NATURE_CNN_INPUT = 36  # pixels: below, the third convolution has nothing to look at


def make_normalization(
    space: spaces.Box, statistics: ObservationStatistics | None
) -> tuple[Float[Tensor, "*obs"], Float[Tensor, "*obs"]]:
    """Return what observations are shifted and divided by: the dataset's mean and deviation.

    Args:
        space: Space of one observation; without statistics bytes are divided by 255.
        statistics: Of the dataset, or None.
    """
    if statistics is None:
        scale = 255.0 if space.dtype == np.uint8 else 1.0
        return torch.zeros(space.shape), torch.full(space.shape, scale)
    mean, std = torch.as_tensor(statistics.mean), torch.as_tensor(statistics.std)
    return mean.reshape(space.shape).float().clone(), std.reshape(space.shape).float().clone()


class LinearEncoder(nn.Module):
    """Standardise a flat observation and project it.

    Args:
        space: Space of one observation; flattened first. Bytes are divided by 255.
        hidden_size: Width of the result.
        statistics: Mean and standard deviation to standardise with, or None for neither.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, space: spaces.Box, hidden_size: int, statistics: ObservationStatistics | None
    ) -> None:
        super().__init__()
        mean, std = make_normalization(space, statistics)
        # Buffers, so that the normalisation travels with the weights wherever they go.
        self.register_buffer("mean", mean.flatten())
        self.register_buffer("std", std.flatten())
        self.projection = nn.Linear(math.prod(space.shape), hidden_size)

    def forward(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Encode raw observations, in the environment's units."""
        flat = observations.flatten(2).float()  # (B, K, size)
        encoded: Tensor = self.projection((flat - self.mean) / self.std)
        return encoded


class NatureCNNEncoder(nn.Module):
    """The convolutional network of DQN's Nature paper, on images of bytes.

    Args:
        space: An image space, channels first or last.
        hidden_size: Width of the result.
        scale: Pixels are divided by this.

    Raises:
        SpaceError: The image is too small for the three convolutions.

    Source: Mnih et al. 2015; the sizes are those of the Decision Transformer's Atari encoder.
    """

    def __init__(self, space: spaces.Box, hidden_size: int, scale: float = 255.0) -> None:
        super().__init__()
        self.scale = scale
        self.channels_last = min(range(3), key=lambda axis: space.shape[axis]) == 2
        shape = space.shape[-1:] + space.shape[:-1] if self.channels_last else space.shape
        if min(shape[1:]) < _SMALLEST_NATURE_CNN_INPUT:
            raise SpaceError(
                f"images of shape {space.shape} are too small for encoder='nature_cnn' "
                f"(at least {_SMALLEST_NATURE_CNN_INPUT} pixels a side): resize them, or use "
                f"encoder='linear'",
                setting="encoder",
                value="nature_cnn",
            )
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
        """Encode raw images; they become floats here, on the device, and not before."""
        images = observations.flatten(0, 1)  # (B * K, *obs)
        if self.channels_last:
            images = images.movedim(-1, 1)
        encoded: Tensor = self.projection(self.convolutions(images.float() / self.scale))
        return encoded.view(*observations.shape[:2], -1)  # (B, K, H)


class ActionEncoder(nn.Module):
    """Embed an action: a table for discrete ones, a projection for continuous ones."""

    def __init__(self, space: spaces.Space[Any], hidden_size: int) -> None:
        super().__init__()
        self.start = int(space.start) if isinstance(space, spaces.Discrete) else None
        self.projection: nn.Module
        if isinstance(space, spaces.Discrete):
            self.projection = nn.Embedding(int(space.n), hidden_size)
        elif isinstance(space, spaces.Box):
            self.projection = nn.Linear(math.prod(space.shape), hidden_size)
        else:
            raise SpaceError(
                f"action space {space} is not supported: use Box or Discrete",
                setting="action_space",
                value=space,
            )

    def forward(self, actions: Num[Tensor, "B K *act"]) -> Float[Tensor, "B K H"]:
        """Encode actions as the environment takes them."""
        if self.start is None:
            encoded: Tensor = self.projection(actions.flatten(2))
        else:
            # Padding is zero, which a space that does not start there has no row for.
            encoded = self.projection((actions - self.start).clamp_min(0))
        return encoded


def make_observation_encoder(
    space: spaces.Box, config: DecisionMambaConfig, statistics: ObservationStatistics | None
) -> LinearEncoder | NatureCNNEncoder:
    """Build the encoder that ``config.encoder`` names, or the one that fits the space.

    Raises:
        SpaceError: ``"nature_cnn"`` was asked for and the space holds no images.
    """
    looks_like_images = is_image_space(space, normalized_image=False)
    kind: Literal["auto", "linear", "nature_cnn"] = config.encoder
    if kind == "nature_cnn" and (len(space.shape) != 3 or space.dtype != np.uint8):
        raise SpaceError(
            f"encoder='nature_cnn' needs images (channels, height, width) of bytes, and the "
            f"observations are {space}: use encoder='linear', or policy_kwargs with a features "
            f"extractor of your own",
            setting="encoder",
            value="nature_cnn",
        )
    if kind == "nature_cnn" or (kind == "auto" and looks_like_images):
        return NatureCNNEncoder(space, config.hidden_size)
    return LinearEncoder(space, config.hidden_size, statistics)
