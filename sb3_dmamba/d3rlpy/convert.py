"""Convert models between the Stable-Baselines3 and d3rlpy APIs.

Both hold the same network. d3rlpy's scalers correspond to weights of its first layers: observation
scalers to the normalisation in the encoder, action and reward scalers to a rescaling of the
projections of actions and returns-to-go.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from d3rlpy.constants import PositionEncodingType
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models import PixelEncoderFactory, VectorEncoderFactory
from d3rlpy.optimizers import AdamFactory, AdamWFactory, GPTAdamWFactory, WarmupSchedulerFactory
from d3rlpy.preprocessing import (
    ConstantShiftRewardScaler,
    MinMaxActionScaler,
    MinMaxObservationScaler,
    MinMaxRewardScaler,
    MultiplyRewardScaler,
    PixelObservationScaler,
    ReturnBasedRewardScaler,
    StandardObservationScaler,
    StandardRewardScaler,
)
from gymnasium import spaces
from numpy import ndarray
from torch import Tensor

from sb3_dmamba.algorithm import DecisionMamba as Sb3DecisionMamba
from sb3_dmamba.context import Environment
from sb3_dmamba.d3rlpy.algo import (
    DecisionMamba,
    DecisionMambaConfig,
    DiscreteDecisionMamba,
    DiscreteDecisionMambaConfig,
)
from sb3_dmamba.d3rlpy.factories import (
    DecisionMambaAdamWFactory,
    DecisionMambaEncoderFactory,
    DecisionMambaLRFactory,
)
from sb3_dmamba.d3rlpy.network import CORE_NAMES, make_core_config
from sb3_dmamba.errors import ConfigError, NotFittedError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import NatureCNNEncoder, name_extractor
from sb3_dmamba.training.updater import Updater, draw_seed

Learnable = DecisionMamba | DiscreteDecisionMamba
Weights = dict[str, Tensor]

_ENCODER = "embedding.observation_encoder."
_ACTIONS = "embedding.action_encoder.projection."
_RETURNS = "embedding.return_encoder."  # with "0." where returns-to-go are no tokens
_BYTES = 255.0
_SCHEDULE_SETTINGS = [field.name for field in dataclasses.fields(DecisionMambaLRFactory)]

_NATURE_FILTERS = [[32, 8, 4], [64, 4, 2], [64, 3, 1]]
# Prefixes of weights in d3rlpy's encoders -> in ours.
_OWN_NAMES = {"network.": ""}
_VECTOR_NAMES = {"_layers.0.": "projection."}
_PIXEL_NAMES = {
    **{f"_cnn_layers.{index}.": f"convolutions.{index}." for index in (0, 2, 4)},
    "_last_layers.0.": "projection.",
}


def from_sb3(
    model: Sb3DecisionMamba | str | os.PathLike[str], device: bool | int | str = False
) -> Learnable:
    """Convert a ``sb3_dmamba.DecisionMamba`` to a d3rlpy learnable.

    Weights, settings, the seed and the count of updates are kept; the normalisation, the return
    scale and the bounds of the actions become scalers. The optimiser starts anew. The weights are
    those that act: the average with ``ema_decay``. ``carry_state``, ``burn_in``, ``sampling``,
    ``balance`` and ``ema_decay``, which concern training, have no counterpart in d3rlpy and are
    dropped.

    Args:
        model: The model, fitted, or the file of one.
        device: As for a config's ``create``.

    Returns:
        A built :class:`DecisionMamba` or :class:`DiscreteDecisionMamba`.

    Raises:
        NotFittedError: The model has no weights yet.
        ConfigError: ``model`` is neither a ``sb3_dmamba.DecisionMamba`` nor a file's name, or it
            has a features extractor.
        ModelFileError: The file does not hold a model.
        SpaceError: Discrete actions do not start at 0, as d3rlpy's do.
    """
    if not isinstance(model, (Sb3DecisionMamba, str, os.PathLike)):
        raise ConfigError(
            f"from_sb3 takes a sb3_dmamba.DecisionMamba or the file of one, and this is a "
            f"{type(model).__module__}.{type(model).__name__}: for the other direction use "
            f"to_sb3(learnable)",
            setting="model",
            value=model,
        )
    if not isinstance(model, Sb3DecisionMamba):
        model = Sb3DecisionMamba.load(model, device="cpu")
    policy = model._built_policy()
    action_size = _count_actions(policy.action_space)
    if policy.policy_kwargs:
        message = (
            f"the model has a features extractor, {name_extractor(policy.policy_kwargs)}, which "
            f"d3rlpy cannot take over: train there with an encoder factory of your own"
        )
        raise ConfigError(message, setting="policy_kwargs", value=policy.policy_kwargs)
    core, weights = policy.config, dict(policy.model.state_dict())
    is_image = isinstance(policy.model.embedding.observation_encoder, NatureCNNEncoder)
    observation_scaler = PixelObservationScaler()
    if not is_image:
        observation_scaler = _extract_normalization(weights, policy.flat_space.shape)
    encoder = "nature_cnn" if is_image else "linear"
    schedule = {name: getattr(core, name) for name in _SCHEDULE_SETTINGS}
    is_global = core.time_encoding == "global"
    position = PositionEncodingType.GLOBAL if is_global else PositionEncodingType.SIMPLE
    reward_scaler = None
    if core.resolved_return_scale != 1.0:
        reward_scaler = MultiplyRewardScaler(1.0 / core.resolved_return_scale)
    is_discrete = isinstance(policy.action_space, spaces.Discrete)
    fields = {theirs: getattr(core, ours) for theirs, ours in CORE_NAMES.items()}
    config = (DiscreteDecisionMambaConfig if is_discrete else DecisionMambaConfig)(
        **{**fields, "channel_mixing": core.resolved_channel_mixing},
        observation_scaler=observation_scaler,
        action_scaler=_extract_action_bounds(weights, policy),
        reward_scaler=reward_scaler,
        encoder_factory=DecisionMambaEncoderFactory(core.hidden_size, encoder),
        optim_factory=DecisionMambaAdamWFactory(
            clip_grad_norm=core.max_grad_norm,
            betas=core.adam_betas,
            weight_decay=core.weight_decay,
            lr_scheduler_factory=DecisionMambaLRFactory(**schedule),
        ),
        attn_dropout=core.dropout,
        embed_dropout=core.dropout,
        activation_type=core.activation,
        embedding=core.embedding,
        position_encoding_type=position,
        time_encoding=None if is_global else core.resolved_time_encoding,
        seed=model.seed,
    )
    learnable = config.create(device=device)
    learnable.create_impl(policy.flat_space.shape, action_size)
    _rename_weights(weights, {_ENCODER: f"{_ENCODER}encoder.network."})
    learnable.impl.model.load_state_dict(weights)
    learnable.impl.progress.n_updates.fill_(model._n_updates)
    return learnable


def _count_actions(space: spaces.Space[Any]) -> int:
    """Return d3rlpy's size of an action space; a SpaceError where it does not start at 0."""
    if isinstance(space, spaces.Discrete):
        if space.start != 0:
            message = (
                f"the action space {space} starts at {space.start}, and d3rlpy counts actions from "
                f"0"
            )
            raise SpaceError(message, setting="action_space", value=space)
        return int(space.n)
    assert isinstance(space, spaces.Box)
    return int(space.shape[0])


def _extract_normalization(weights: Weights, shape: tuple[int, ...]) -> Any:
    """Take the normalisation out of the weights, and return it as a scaler, or None."""
    mean, std = (weights[f"{_ENCODER}{name}"] for name in ("mean", "std"))
    weights[f"{_ENCODER}mean"] = torch.zeros_like(mean)
    weights[f"{_ENCODER}std"] = torch.ones_like(std)
    if bool((mean == 0.0).all()):
        if bool((std == 1.0).all()):
            return None
        if bool((std == _BYTES).all()):
            return PixelObservationScaler()
    as_arrays = (part.cpu().double().numpy().reshape(shape) for part in (mean, std))
    return StandardObservationScaler(*as_arrays, eps=0.0)


def _extract_action_bounds(weights: Weights, policy: DecisionMambaPolicy) -> Any:
    """Rescale the weights for actions in [-1, 1], and return the bounds as a scaler, or None."""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return None
    scaling = Scaling.between(space.low, space.high)
    if scaling.is_identity:
        return None
    _rescale_action_weights(weights, scaling, to_scaled=True)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return MinMaxActionScaler(minimum=low, maximum=high)


def to_sb3(
    learnable: Learnable,
    env: Environment | None = None,
    *,
    target_return: float | None = None,
    device: torch.device | str = "auto",
) -> Sb3DecisionMamba:
    """Convert a d3rlpy learnable of ours to a ``sb3_dmamba.DecisionMamba``.

    Scalers become part of the network. The optimiser starts anew, and ``resid_dropout`` becomes
    the rate of every dropout.

    Args:
        learnable: One of our algorithms, built.
        env: Environment to act in. A task's or environment's name is saved with the model; an
            object has to be given again after loading.
        target_return: Return to ask for at the start of each episode, in the environment's units;
            without one set ``model.target_return`` before ``model.get_env()``.
        device: Where to put the model.

    Returns:
        The model, ready to act; :meth:`fit` trains it further.

    Raises:
        ConfigError: A setting, encoder or scaler has no counterpart there; names it. Or
            ``learnable`` is something else, such as a file's name.
        SpaceError: Observations are tuples, or ``env`` has other spaces.
        NotFittedError: The learnable has not been built.
    """
    if not isinstance(learnable, Learnable):
        raise ConfigError(
            f"to_sb3 takes a learnable of sb3_dmamba.d3rlpy, and this is a "
            f"{type(learnable).__module__}.{type(learnable).__name__}: open a file first, "
            f"to_sb3(d3rlpy.load_learnable('model.d3'))",
            setting="learnable",
            value=learnable,
        )
    if learnable.impl is None:
        raise NotFittedError("the learnable has no weights yet: call fit, or create_impl")
    theirs = learnable.config
    if theirs.channel_mixing and theirs.activation_type not in ("gelu", "relu"):
        raise _no_counterpart(theirs, "activation_type", "train with 'gelu' or 'relu'")
    if theirs.is_discrete and theirs.embedding is None and theirs.embed_activation_type != "tanh":
        raise _no_counterpart(
            theirs, "embed_activation_type", "train with 'tanh', or with embedding='norm'"
        )
    state = learnable.impl.model.state_dict()
    weights = {name: tensor.detach().clone() for name, tensor in state.items()}
    observation_space, encoder = _convert_encoder(learnable, weights)
    action_space = _convert_actions(learnable, weights)
    return_scale = _convert_returns(learnable, weights)
    config = make_core_config(theirs, weights["head.projection.weight"].shape[1]).replace(
        encoder=encoder,
        return_scale=return_scale,
        normalize_observations=learnable.observation_scaler is not None and encoder == "linear",
        **_read_optim_factory(theirs.optim_factory),
    )
    seed = draw_seed() if theirs.seed is None else theirs.seed
    task = env if isinstance(env, str) else None  # a name is saved with the model
    model = Sb3DecisionMamba(task, config=config, seed=seed, device=device)
    updater = Updater.create(observation_space, action_space, config, None, seed, model.device)
    for policy in (updater.policy, updater.trained):
        policy.model.load_state_dict(weights)
    if env is not None:
        model.set_env(env)  # made when the model has its weights
    model._adopt(updater)
    model._n_updates = int(learnable.impl.progress.n_updates)
    model.target_return = target_return
    if env is not None and target_return is not None:
        model.get_env()
    return model


def _no_counterpart(owner: Any, setting: str, advice: str) -> ConfigError:
    value = getattr(owner, setting)
    return ConfigError(
        f"{setting}={value!r} has no counterpart in sb3_dmamba.DecisionMamba: {advice}",
        setting=setting,
        value=value,
    )


def _convert_encoder(learnable: Learnable, weights: Weights) -> tuple[spaces.Box, str]:
    """Rename the encoder's weights, and put the observation scaler's numbers among them."""
    shape = learnable.impl.observation_shape
    if is_tuple_shape(shape):
        message = (
            f"observations are tuples of shapes {shape}, and sb3_dmamba.DecisionMamba takes one "
            f"array: join them in the environment and the dataset"
        )
        raise SpaceError(message, setting="observation_space", value=shape)
    shape = tuple(shape)
    names, kind = _identify_encoder(learnable.config, shape)
    prefix = f"{_ENCODER}encoder."
    _rename_weights(weights, {prefix + old: _ENCODER + new for old, new in names.items()})
    is_bytes = isinstance(learnable.observation_scaler, PixelObservationScaler)
    if kind == "nature_cnn" and not is_bytes:
        raise _no_counterpart(
            learnable,
            "observation_scaler",
            "it divides images by 255, so train with PixelObservationScaler()",
        )
    if kind == "linear":
        scaling = _read_scaler(learnable, "observation_scaler")
        like = weights[f"{_ENCODER}projection.weight"]
        for name, part in (("mean", scaling.shift), ("std", scaling.scale)):
            whole = np.broadcast_to(part, shape).reshape(-1).copy()
            weights[f"{_ENCODER}{name}"] = torch.as_tensor(whole, dtype=like.dtype)
    space = spaces.Box(-np.inf, np.inf, shape, np.float32)
    return (spaces.Box(0, 255, shape, np.uint8) if is_bytes else space), kind


def _identify_encoder(config: Any, shape: tuple[int, ...]) -> tuple[dict[str, str], str]:
    """Return the prefixes of the encoder's weights with ours for them, and the encoder's kind."""
    factory = config.encoder_factory
    if isinstance(factory, DecisionMambaEncoderFactory):
        return _OWN_NAMES, "nature_cnn" if factory.makes_cnn(shape) else "linear"
    is_plain = getattr(factory, "exclude_last_activation", False) and not (
        getattr(factory, "use_batch_norm", False)
        or getattr(factory, "use_layer_norm", False)
        or getattr(factory, "dropout_rate", None)
    )
    if isinstance(factory, VectorEncoderFactory) and is_plain and len(factory.hidden_units) == 1:
        return _VECTOR_NAMES, "linear"
    if (
        isinstance(factory, PixelEncoderFactory)
        and is_plain
        and factory.activation == "relu"
        and [list(each) for each in factory.filters] == _NATURE_FILTERS
    ):
        return _PIXEL_NAMES, "nature_cnn"
    raise _no_counterpart(
        config,
        "encoder_factory",
        "train with DecisionMambaEncoderFactory(128), VectorEncoderFactory([128], "
        "exclude_last_activation=True), or PixelEncoderFactory(feature_size=128, "
        "exclude_last_activation=True)",
    )


def _convert_actions(learnable: Learnable, weights: Weights) -> spaces.Space[Any]:
    """Rescale the weights for actions in the environment's units, and return their space."""
    size = learnable.impl.action_size
    if learnable.config.is_discrete:
        return spaces.Discrete(size)
    scaling = _read_scaler(learnable, "action_scaler")
    _rescale_action_weights(weights, scaling, to_scaled=False)
    low, high = (
        np.broadcast_to(bound, (size,)).astype(np.float32)
        for bound in (scaling.shift - scaling.scale, scaling.shift + scaling.scale)
    )
    return spaces.Box(low, high, dtype=np.float32)


def _convert_returns(learnable: Learnable, weights: Weights) -> float:
    """Rescale the weights for returns divided by a positive number, and return that number."""
    scaling = _read_scaler(learnable, "reward_scaler")
    shift, scale = float(scaling.shift), float(scaling.scale)
    first = f"{_RETURNS}0." if f"{_RETURNS}0.weight" in weights else _RETURNS
    # The first column is the return-to-go's; there may be another, the time's.
    weight, bias = weights[f"{first}weight"].clone(), weights[f"{first}bias"]
    if scale < 0.0:
        weight[:, 0], scale = -weight[:, 0], -scale  # (r - s) / -c = -((r - s) / c)
    if shift != 0.0:
        bias = (bias.double() - weight[:, 0].double() * (shift / scale)).to(bias.dtype)
    weights[f"{first}weight"], weights[f"{first}bias"] = weight, bias
    return scale


def _read_optim_factory(factory: Any) -> dict[str, Any]:
    """Return the settings of the optimiser that ours has too."""
    if not isinstance(
        factory, (AdamFactory, AdamWFactory, GPTAdamWFactory, DecisionMambaAdamWFactory)
    ):
        return {}
    settings: dict[str, Any] = {"adam_betas": tuple(factory.betas)}
    if not isinstance(factory, AdamFactory):  # its weight_decay is not decoupled
        settings["weight_decay"] = factory.weight_decay
    if factory.clip_grad_norm:
        settings["max_grad_norm"] = factory.clip_grad_norm
    schedule = factory.lr_scheduler_factory
    if isinstance(schedule, DecisionMambaLRFactory):
        settings.update(dataclasses.asdict(schedule))
    elif schedule is None:
        settings["warmup_updates"] = 0
    elif isinstance(schedule, WarmupSchedulerFactory):
        settings["warmup_updates"] = schedule.warmup_steps
    return settings


@dataclass(frozen=True, eq=False)
class Scaling:
    """Shift and scale of a scaler, which computes ``(x - shift) / scale``."""

    shift: ndarray
    scale: ndarray

    @classmethod
    def of(cls, shift: Any, scale: Any) -> Scaling:
        """Convert both to float64."""
        return cls(np.asarray(shift, np.float64), np.asarray(scale, np.float64))

    @classmethod
    def between(cls, minimum: Any, maximum: Any) -> Scaling:
        """Return the scaling of a range to [-1, 1]."""
        low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
        return cls((low + high) / 2.0, (high - low) / 2.0)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return not self.shift.any() and bool((self.scale == 1.0).all())


def _read_scaler(learnable: Learnable, field: str) -> Scaling:
    """Return the scaling of ``observation_scaler``, ``action_scaler`` or ``reward_scaler``."""
    scaler: Any = getattr(learnable, field)
    if scaler is None:
        return Scaling.of(0.0, 1.0)
    if not scaler.built:
        message = f"{field}={scaler!r} has not seen data yet: call fit, or give it its numbers"
        raise ConfigError(message, setting=field, value=scaler)
    if isinstance(scaler, PixelObservationScaler):
        return Scaling.of(0.0, _BYTES)
    if isinstance(scaler, StandardObservationScaler):
        return Scaling.of(scaler.mean, np.asarray(scaler.std) + scaler.eps)
    if isinstance(scaler, (MinMaxObservationScaler, MinMaxActionScaler)):
        return Scaling.between(scaler.minimum, scaler.maximum)
    shift = 0.0
    if isinstance(scaler, MultiplyRewardScaler):
        factor = scaler.multiplier
    elif isinstance(scaler, ReturnBasedRewardScaler):
        factor = scaler.multiplier / (scaler.return_max - scaler.return_min)
    elif isinstance(scaler, MinMaxRewardScaler):
        shift, factor = scaler.minimum, scaler.multiplier / (scaler.maximum - scaler.minimum)
    elif isinstance(scaler, StandardRewardScaler):
        shift, factor = scaler.mean, scaler.multiplier / (scaler.std + scaler.eps)
    elif isinstance(scaler, ConstantShiftRewardScaler):
        factor = scaler.multiplier
        shift = -scaler.shift / factor if scaler.multiply_first else -scaler.shift
    else:
        raise _no_counterpart(
            learnable,
            field,
            "its networks shift and scale, so train with a scaler that does so, or act through "
            "as_stateful_wrapper",
        )
    if factor == 0.0 or not np.isfinite(factor):
        message = f"{field}={scaler!r} multiplies by {factor}: no return is left"
        raise ConfigError(message, setting=field, value=scaler)
    return Scaling.of(shift, 1.0 / factor)


def _rescale_action_weights(weights: Weights, scaling: Scaling, *, to_scaled: bool) -> None:
    """Rescale the first layer's weights to take actions scaled, or unscaled, in place."""
    if scaling.is_identity:
        return
    old_weight, old_bias = weights[f"{_ACTIONS}weight"], weights[f"{_ACTIONS}bias"]
    shift, scale = (
        torch.as_tensor(part, dtype=torch.float64, device=old_weight.device)
        for part in (scaling.shift, scaling.scale)
    )
    weight, bias = old_weight.double(), old_bias.double()
    if to_scaled:
        bias = bias + weight @ shift
        weight = weight * scale
    else:
        weight = weight / scale
        bias = bias - weight @ shift
    weights[f"{_ACTIONS}weight"] = weight.to(old_weight.dtype)
    weights[f"{_ACTIONS}bias"] = bias.to(old_bias.dtype)


def _rename_weights(weights: Weights, prefixes: dict[str, str]) -> None:
    """Replace prefixes of names, in place."""
    for name in list(weights):
        for old, new in prefixes.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = weights.pop(name)
                break
