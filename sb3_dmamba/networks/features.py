"""Observation encoders that the user brings: features extractors of Stable-Baselines3's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Num
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks.encoders import make_normalization

__all__ = ["ExtractorEncoder", "check_extractor", "check_policy_kwargs", "name_extractor"]

_CLASS, _KWARGS = "features_extractor_class", "features_extractor_kwargs"

MakeExtractor = Callable[..., nn.Module]


def check_policy_kwargs(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``policy_kwargs`` as a dictionary of its own.

    Raises:
        ConfigError: It has something else than a features extractor, or a part of one.
    """
    given = dict(policy_kwargs or {})
    others = sorted(given.keys() - {_CLASS, _KWARGS})
    if others:
        raise ConfigError(
            f"policy_kwargs has {', '.join(others)}: it takes {_CLASS} and {_KWARGS}; the network "
            f"and its optimiser have settings of their own, such as hidden_size=256",
            setting="policy_kwargs",
            value=others,
            choices=(_CLASS, _KWARGS),
        )
    if given and not callable(given.get(_CLASS)):
        raise ConfigError(
            f"{_CLASS}={given.get(_CLASS)!r}: give a class such as a BaseFeaturesExtractor",
            setting=_CLASS,
            value=given.get(_CLASS),
        )
    return given


def name_extractor(policy_kwargs: Mapping[str, Any]) -> str | None:
    """Return the full name of the features extractor's class, None where there is none."""
    if not policy_kwargs:
        return None
    extractor = policy_kwargs[_CLASS]
    return f"{extractor.__module__}.{getattr(extractor, '__qualname__', type(extractor).__name__)}"


def check_extractor(saved: str | None, given: str | None, path: Any) -> None:
    """Check that a file is read with the features extractor that it was written with.

    Its class is not imported by its name: reading a file executes nothing.

    Args:
        saved: Name of the class in the file, as :func:`name_extractor` returned it.
        given: Name of the class that it is to be read with.
        path: The file.

    Raises:
        ConfigError: They differ.
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


class ExtractorEncoder(nn.Module):
    """Apply a features extractor to every step of a batch of windows, and project its features.

    The extractor sees what Stable-Baselines3 would show it: images with their channels first and
    divided by 255. Other observations come standardised with the dataset's statistics.

    Args:
        space: Space of one observation.
        config: ``hidden_size``, the width of the result.
        statistics: Mean and standard deviation to standardise with, or None for neither.
        features_extractor_class: Makes the extractor from the space (an image's with channels
            first) and ``features_extractor_kwargs``: a module with ``features_dim``, from
            (N, *observation) to (N, features_dim).
        features_extractor_kwargs: Its further arguments.

    Raises:
        ConfigError: The extractor has no ``features_dim``, or the config names an encoder too.
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
            raise ConfigError(
                f"encoder={config.encoder!r} and a {_CLASS} are given: leave one of them out",
                setting="encoder",
                value=config.encoder,
            )
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
            raise ConfigError(
                f"{type(self.extractor).__name__} has no features_dim: derive it from "
                f"stable_baselines3.common.torch_layers.BaseFeaturesExtractor, or set it",
                setting=_CLASS,
                value=type(self.extractor),
            )
        self.projection = nn.Linear(self.features_dim, config.hidden_size)

    def forward(self, observations: Num[Tensor, "B K *obs"]) -> Float[Tensor, "B K H"]:
        """Encode raw observations, in the environment's units.

        Raises:
            SpaceError: The extractor returned something else than (N, features_dim).
        """
        steps = observations.flatten(0, 1)  # (B * K, *obs)
        if self.channels_last:
            steps = steps.movedim(-1, 1)
        features = self.extractor((steps.float() - self.mean) / self.std)
        if features.shape != (len(steps), self.features_dim):
            raise SpaceError(
                f"{type(self.extractor).__name__} made features of shape {tuple(features.shape)} "
                f"of {len(steps)} observations, and its features_dim is {self.features_dim}",
                setting="features_dim",
                value=tuple(features.shape),
                choices=[(len(steps), self.features_dim)],
            )
        encoded: Tensor = self.projection(features)
        return encoded.view(*observations.shape[:2], -1)  # (B, K, H)
