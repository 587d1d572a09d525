"""Our own observation encoders as a d3rlpy encoder factory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models import EncoderFactory, register_encoder_factory
from d3rlpy.models.torch import Encoder
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks.encoders import LinearEncoder, NatureCNNEncoder

__all__ = ["DecisionMambaEncoder", "DecisionMambaEncoderFactory"]

_KINDS = ("auto", "linear", "nature_cnn")


class DecisionMambaEncoder(Encoder):
    """One of our encoders under d3rlpy's interface; it takes observations that are scaled.

    Args:
        network: The encoder, of windows.
    """

    def __init__(self, network: LinearEncoder | NatureCNNEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Encode observations (B, *obs) as (B, feature_size)."""
        encoded: Tensor = self.network(x.unsqueeze(1))[:, 0]
        return encoded


@dataclasses.dataclass()
class DecisionMambaEncoderFactory(EncoderFactory):
    """The encoders of ``sb3_dmamba.DecisionMamba``: a projection, or the network of Nature DQN.

    Scaling is left to the observation scaler: ``PixelObservationScaler`` for images.

    Args:
        feature_size: Output size, which is the model's width.
        kind: ``"linear"``, ``"nature_cnn"``, or ``"auto"``: the latter for three dimensions.

    Raises:
        ConfigError: A value is out of its range.
    """

    feature_size: int = 128
    kind: str = "auto"

    def __post_init__(self) -> None:
        self.feature_size = check_integer("feature_size", self.feature_size, 1)
        if self.kind not in _KINDS:
            raise ConfigError(f"kind={self.kind!r}: choose one of {', '.join(map(repr, _KINDS))}")

    def create(self, observation_shape: Sequence[Any]) -> DecisionMambaEncoder:
        """Return an encoder.

        Raises:
            SpaceError: Observations are tuples, or images that are none or too small.
        """
        if is_tuple_shape(observation_shape):
            raise SpaceError(
                f"DecisionMambaEncoderFactory takes one array, and observations are tuples of "
                f"shapes {observation_shape}: give an encoder factory of your own that joins them"
            )
        shape = tuple(observation_shape)
        is_image = self.kind == "nature_cnn" or (self.kind == "auto" and len(shape) == 3)
        if is_image and len(shape) != 3:
            raise SpaceError(
                f"kind='nature_cnn' takes images (channels, height, width), and observations are "
                f"of shape {shape}: use kind='linear'"
            )
        space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        if is_image:
            return DecisionMambaEncoder(NatureCNNEncoder(space, self.feature_size, scale=1.0))
        return DecisionMambaEncoder(LinearEncoder(space, self.feature_size, None))

    def create_with_action(
        self, observation_shape: Sequence[Any], action_size: int, discrete_action: bool = False
    ) -> Any:
        """Refuse: these encoders take no action.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "DecisionMambaEncoderFactory encodes observations alone: for algorithms that encode "
            "actions with them use d3rlpy's VectorEncoderFactory or PixelEncoderFactory"
        )

    @staticmethod
    def get_type() -> str:
        """Return the name that saved files know the factory by."""
        return "decision_mamba"


register_encoder_factory(DecisionMambaEncoderFactory)
