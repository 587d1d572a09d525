"""The network of the d3rlpy API: its settings, its construction, and its input windows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from d3rlpy.algos.transformer.base import TransformerConfig
from d3rlpy.constants import PositionEncodingType
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models.torch import compute_output_size
from d3rlpy.models.utility import create_activation
from gymnasium import spaces
from torch import Tensor, nn

from sb3_dmamba.checks import check_optional_integer
from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.config import check_setting
from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.networks import AttentionMixer, SequenceModel

CORE_NAMES = {  # d3rlpy's name of a setting -> the core config's, where the value is the same
    "context_size": "context_length",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "resid_dropout": "dropout",
    **{
        name: name
        for name in (
            *("mixer", "channel_mixing", "d_state", "d_conv", "expand", "dt_rank"),
            *("filter_length", "init", "max_timestep", "batch_size", "learning_rate"),
            *("precision", "backend", "memory", "conditioning"),
        )
    },
}
_TIME_ENCODINGS = {PositionEncodingType.SIMPLE: "timestep", PositionEncodingType.GLOBAL: "global"}
_CORE_ACTIVATIONS = ("gelu", "relu")
_ACTIVATIONS = ("relu", "gelu", "tanh", "swish", "none")  # d3rlpy's that keep the width
_ACTIVATION = 2  # index in a block's MLP: norm, projection, activation, projection, dropout


@dataclasses.dataclass()
class SequenceConfig(TransformerConfig):
    """Fields of both our configs that d3rlpy's Decision Transformer configs do not have.

    :class:`~sb3_dmamba.d3rlpy.DecisionMambaConfig` describes them.
    """

    is_discrete: ClassVar[bool]

    mixer: str = "mamba"
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    filter_length: int = 6
    channel_mixing: bool = True
    init: str = "mamba"
    embedding: str | None = None
    time_encoding: str | None = None
    conditioning: str = "sequence"
    precision: str = "fp32"
    backend: str = "auto"
    memory: str = "window"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the fields that need no data; NumPy's numbers become Python's own."""
        if self.position_encoding_type not in _TIME_ENCODINGS:
            raise ConfigError(
                f"position_encoding_type={self.position_encoding_type!r}: give "
                f"{' or '.join(f'd3rlpy.{encoding}' for encoding in _TIME_ENCODINGS)}",
                setting="position_encoding_type",
                value=self.position_encoding_type,
                choices=_TIME_ENCODINGS,
            )
        for name in ("attn_dropout", "embed_dropout"):
            setattr(self, name, check_setting("dropout", getattr(self, name), name))
        for name in ("activation_type", "embed_activation_type"):
            value = getattr(self, name, "none")
            if value not in _ACTIVATIONS:
                message = f"{name}={value!r}: choose one of {', '.join(map(repr, _ACTIVATIONS))}"
                raise ConfigError(message, setting=name, value=value, choices=_ACTIVATIONS)
        self.seed = check_optional_integer("seed", self.seed, 0)
        # The width is the encoder's and not known yet: any multiple of num_heads will do.
        width = check_setting("n_heads", self.num_heads, "num_heads")
        core = make_core_config(self, hidden_size=width)
        for theirs, ours in CORE_NAMES.items():
            setattr(self, theirs, getattr(core, ours))


def make_core_config(config: SequenceConfig, hidden_size: int) -> CoreConfig:
    """Convert a d3rlpy config to the config of the network."""
    fields = {ours: getattr(config, theirs) for theirs, ours in CORE_NAMES.items()}
    fields["embedding"] = config.embedding
    if config.embedding is None:
        fields["embedding"] = "tanh" if config.is_discrete else "norm"
    fields["time_encoding"] = config.time_encoding or _TIME_ENCODINGS[config.position_encoding_type]
    if config.activation_type in _CORE_ACTIVATIONS:  # make_model sets the others
        fields["activation"] = config.activation_type
    try:  # scaling is left to the reward and observation scalers
        return CoreConfig(
            **fields, hidden_size=hidden_size, return_scale=1.0, normalize_observations=False
        )
    except ConfigError as error:
        raise _rename_settings(error, config) from None


def _rename_settings(error: ConfigError, config: SequenceConfig) -> ConfigError:
    """Return an error of the core config with d3rlpy's names of its settings."""
    names = {ours: theirs for theirs, ours in CORE_NAMES.items()}
    in_text = {**names, "hidden_size": "the encoder's output size, "}
    message = str(error)
    if config.time_encoding is None:
        for encoding, value in _TIME_ENCODINGS.items():
            message = message.replace(
                f'time_encoding="{value}"', f"position_encoding_type={encoding}"
            )
    return ConfigError(
        re.sub(r"\b(\w+)(?==)", lambda match: in_text.get(match[1], match[1]), message),
        setting=names.get(str(error.setting), error.setting),
        value=error.value,
        choices=error.choices,
    )


class EpisodeEncoder(nn.Module):
    """Apply a d3rlpy encoder to every step of a batch of windows."""

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


def make_action_space(action_size: int, is_discrete: bool) -> spaces.Space[Any]:
    """Return the space of scaled actions: ``action_size`` dimensions, or as many choices."""
    if is_discrete:
        return spaces.Discrete(action_size)
    return spaces.Box(-1.0, 1.0, (action_size,), np.float32)


def make_model(
    config: SequenceConfig, observation_shape: Sequence[Any], action_size: int
) -> SequenceModel:
    """Build the network, with weights from torch's global generator."""
    encoder = config.encoder_factory.create(observation_shape)
    with torch.random.fork_rng(devices=[]):  # it tries the encoder on noise
        hidden_size = compute_output_size([observation_shape], encoder)
    model = SequenceModel(
        spaces.Box(-np.inf, np.inf, (1,), np.float32),  # only the encoder knows the shape
        make_action_space(action_size, config.is_discrete),
        make_core_config(config, hidden_size),
        statistics=None,
        observation_encoder=EpisodeEncoder(encoder, observation_shape),
    )
    # What d3rlpy tells apart, or has more kinds of, and the core config does not.
    model.dropout.p = config.embed_dropout
    if config.is_discrete and config.embedding is None:
        model.embedding.activation = create_activation(config.embed_activation_type)
    for block in model.layers:
        if isinstance(block.mixer, AttentionMixer):
            block.mixer.dropout = config.attn_dropout
        if block.channel_mixer is not None:
            block.channel_mixer[_ACTIVATION] = create_activation(config.activation_type)
    return model


def pack_observations(observations: Tensor | Sequence[Tensor]) -> Tensor:
    """Join the arrays of tuple observations, flat, into one; one array stays as it is.

    Shapes: ``observations`` (B, K, *obs).
    """
    if isinstance(observations, Tensor):
        return observations
    return torch.cat([part.flatten(2) for part in observations], dim=2)


def to_windows(inputs: Any, *, is_discrete: bool, skip_if_full: bool = False) -> WindowBatch:
    """Convert d3rlpy's windows, padded on the left, to ours, padded on the right.

    Args:
        inputs: d3rlpy's ``TorchTrajectoryMiniBatch`` or ``TorchTransformerInput``: observations
            (B, K, *obs) or a sequence of such, actions (B, K, A) or (B, K, 1), returns_to_go
            (B, K, 1), timesteps (B, K), masks (B, K), 1 where the step is real.
        is_discrete: Whether actions are numbers of actions.
        skip_if_full: Whether to read the masks first and move nothing where there is no padding.
            Reading them waits for a GPU and cannot be traced.

    Returns:
        The windows; timesteps from 0, padding last.
    """
    real = inputs.masks.reshape(inputs.timesteps.shape) > 0  # (B, K)
    actions = inputs.actions
    if is_discrete:
        actions = actions.reshape(real.shape).long()
    tensors = {
        "observations": pack_observations(inputs.observations),
        "actions": actions,
        "returns_to_go": inputs.returns_to_go.reshape(real.shape),
        "timesteps": (inputs.timesteps.reshape(real.shape) - 1).clamp_min(0),
        "padding_mask": real,
    }
    if not (skip_if_full and bool(real.all())):
        n_steps = real.shape[1]
        place = torch.arange(n_steps, device=real.device)
        # No two keys are equal, so that the order is kept however the sort works.
        order = torch.argsort(place + n_steps * (~real).long(), dim=1)
        row = torch.arange(real.shape[0], device=real.device).unsqueeze(1)  # (B, 1)
        tensors = {name: tensor[row, order] for name, tensor in tensors.items()}
    return WindowBatch(**tensors)


def find_real_steps(masks: Tensor, timesteps: Tensor) -> Tensor:
    """Return masks (B, K) of the steps to act on, also where d3rlpy passed none.

    The function that d3rlpy exports calls the algorithm with masks of zeros; then padding is where
    the timestep is 0. If that leaves no step, the newest one is real.

    Shapes: ``masks`` (B, K), ``timesteps`` (B, K).
    """
    given = masks.reshape(timesteps.shape) > 0
    # Not torch.where, which onnxruntime does not have for booleans.
    real = given | ((timesteps > 0) & ~given.any(dim=1, keepdim=True))
    newest = real[:, -1:] | ~real.any(dim=1, keepdim=True)
    return torch.cat([real[:, :-1], newest], dim=1).to(masks.dtype)


def predict_newest(model: SequenceModel, inputs: Any, *, is_discrete: bool) -> Tensor:
    """Predict at the newest step of one window.

    Returns an action (A,), or logits (A,).
    """
    masks = find_real_steps(inputs.masks, inputs.timesteps)
    window = to_windows(dataclasses.replace(inputs, masks=masks), is_discrete=is_discrete)
    predictions = model(*window.inputs())
    newest = window.padding_mask.sum(dim=1) - 1
    prediction: Tensor = predictions[0].index_select(0, newest)[0]
    return prediction
