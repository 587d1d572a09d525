"""Convert models between the Stable-Baselines3 and d3rlpy APIs."""

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
from d3rlpy.optimizers import (
    AdamFactory,
    AdamWFactory,
    GPTAdamWFactory,
    WarmupSchedulerFactory,
)
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
from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.context import Environment
from sb3_dmamba.d3rlpy.algo import DecisionMamba, DiscreteDecisionMamba
from sb3_dmamba.d3rlpy.config import (
    CORE_NAMES,
    DecisionMambaConfig,
    DiscreteDecisionMambaConfig,
    make_core_config,
)
from sb3_dmamba.d3rlpy.factories import (
    DecisionMambaAdamWFactory,
    DecisionMambaEncoderFactory,
    DecisionMambaLRFactory,
)
from sb3_dmamba.errors import ConfigError, NotFittedError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import NatureCNNEncoder, name_extractor
from sb3_dmamba.training.updater import Updater, draw_seed

_BYTES = 255.0


@dataclass(frozen=True, eq=False)
class Affine:
    """What a scaler does: ``(x - shift) / scale``.

    Args:
        shift: Numbers, or an array of the shape of ``x``.
        scale: Likewise; nowhere zero.
    """

    shift: ndarray
    scale: ndarray

    @classmethod
    def between(cls, minimum: Any, maximum: Any) -> Affine:
        """Return what takes a range to [-1, 1]."""
        low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
        return cls((low + high) / 2.0, (high - low) / 2.0)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return not self.shift.any() and bool((self.scale == 1.0).all())


def read_observation_scaler(scaler: Any) -> Affine:
    """Say what an observation scaler does.

    Raises:
        ConfigError: It was not fitted, or is of a kind that our networks cannot hold.
    """
    _check_built(scaler, "observation_scaler")
    if scaler is None:
        return _affine(0.0, 1.0)
    if isinstance(scaler, PixelObservationScaler):
        return _affine(0.0, _BYTES)
    if isinstance(scaler, StandardObservationScaler):
        return _affine(scaler.mean, np.asarray(scaler.std) + scaler.eps)
    if isinstance(scaler, MinMaxObservationScaler):
        return Affine.between(scaler.minimum, scaler.maximum)
    raise _cannot_cross("observation_scaler", scaler)


def read_action_scaler(scaler: Any, action_size: int) -> Affine:
    """Say what an action scaler does, in each dimension.

    Raises:
        ConfigError: As :func:`read_observation_scaler`.
    """
    _check_built(scaler, "action_scaler")
    if scaler is None:
        return _affine(np.zeros(action_size), np.ones(action_size))
    if isinstance(scaler, MinMaxActionScaler):
        return Affine.between(scaler.minimum, scaler.maximum)
    raise _cannot_cross("action_scaler", scaler)


def read_reward_scaler(scaler: Any) -> Affine:
    """Say what a reward scaler does to a return-to-go.

    Raises:
        ConfigError: As :func:`read_observation_scaler`, or it multiplies by zero.
    """
    _check_built(scaler, "reward_scaler")
    shift, factor = 0.0, 1.0
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
    elif scaler is not None:
        raise _cannot_cross("reward_scaler", scaler)
    if factor == 0.0 or not np.isfinite(factor):
        raise ConfigError(f"reward_scaler={scaler!r} multiplies by {factor}: no return is left")
    return _affine(shift, 1.0 / factor)


def fold_actions(
    weight: Tensor, bias: Tensor, actions: Affine, *, into_scaled: bool
) -> tuple[Tensor, Tensor]:
    """Change a projection of actions so that it takes them before, or after, scaling.

    Args:
        weight: (H, A).
        bias: (H,).
        actions: What scales them.
        into_scaled: True where it took them in the environment's units and is to take them
            scaled; False for the way back.

    Returns:
        The new weight and bias; the same ones where scaling changes nothing.
    """
    if actions.is_identity:
        return weight, bias
    shift, scale = (_like(part, weight) for part in (actions.shift, actions.scale))
    old_weight, old_bias = weight.double(), bias.double()
    if into_scaled:
        new_weight, new_bias = old_weight * scale, old_bias + old_weight @ shift
    else:
        new_weight = old_weight / scale
        new_bias = old_bias - new_weight @ shift
    return new_weight.to(weight.dtype), new_bias.to(bias.dtype)


def fold_returns(weight: Tensor, bias: Tensor, returns: Affine) -> tuple[Tensor, Tensor, float]:
    """Change a projection of scaled returns so that it takes returns over a positive number.

    Args:
        weight: (H, 1).
        bias: (H,).
        returns: What scaled them.

    Returns:
        The new weight and bias, and the number.
    """
    shift, scale = float(returns.shift), float(returns.scale)
    if scale < 0.0:
        weight, scale = -weight, -scale  # (r - s) / -c = -((r - s) / c)
    if shift != 0.0:
        bias = (bias.double() - weight[:, 0].double() * (shift / scale)).to(bias.dtype)
    return weight, bias, scale


def _affine(shift: Any, scale: Any) -> Affine:
    return Affine(np.asarray(shift, dtype=np.float64), np.asarray(scale, dtype=np.float64))


def _like(values: ndarray, tensor: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device=tensor.device)


def _check_built(scaler: Any, field: str) -> None:
    if scaler is not None and not scaler.built:
        raise ConfigError(
            f"{field}={scaler!r} has not seen data yet: call fit, or give it its numbers"
        )


def _cannot_cross(field: str, scaler: Any) -> ConfigError:
    return ConfigError(
        f"{field}={scaler!r} has no counterpart in sb3_dmamba.DecisionMamba, whose networks shift "
        f"and scale: train with one that does so, or act through as_stateful_wrapper"
    )


Weights = dict[str, Tensor]

ENCODER = "embedding.observation_encoder."
RETURNS = "embedding.return_encoder."
_ACTIONS = "embedding.action_encoder.projection."


def refold_actions(weights: Weights, actions: Affine, *, into_scaled: bool) -> None:
    """Let the network take actions scaled, or in the environment's units, in place."""
    weight, bias = f"{_ACTIONS}weight", f"{_ACTIONS}bias"
    weights[weight], weights[bias] = fold_actions(
        weights[weight], weights[bias], actions, into_scaled=into_scaled
    )


Learnable = DecisionMamba | DiscreteDecisionMamba


def from_sb3(
    model: Sb3DecisionMamba | str | os.PathLike[str], device: bool | int | str = False
) -> Learnable:
    """Open a model of ``sb3_dmamba.DecisionMamba`` as a d3rlpy learnable.

    Weights, settings, the seed and the count of updates come along, as do the normalisation, the
    return scale and the bounds of the actions, as scalers. The optimiser starts anew. What
    ``carry_state`` and ``burn_in`` do in training has no counterpart in d3rlpy.

    Args:
        model: The model, fitted, or the file of one.
        device: As for a config's ``create``.

    Returns:
        A built :class:`DecisionMamba` or :class:`DiscreteDecisionMamba`.

    Raises:
        NotFittedError: The model has no weights yet.
        ConfigError: ``model`` is neither a model of that face nor a file's name, or it has a
            features extractor.
        ModelFileError: The file is none of a model.
        SpaceError: d3rlpy has no such actions: not a vector, or not counted from 0.
    """
    if not isinstance(model, (Sb3DecisionMamba, str, os.PathLike)):
        raise ConfigError(
            f"from_sb3 takes a sb3_dmamba.DecisionMamba or the file of one, and this is a "
            f"{type(model).__module__}.{type(model).__name__}: to_sb3(learnable) goes the other way"
        )
    if not isinstance(model, Sb3DecisionMamba):
        model = Sb3DecisionMamba.load(model, device="cpu")
    policy = model._built_policy()
    _check_actions(policy.action_space)
    if policy.policy_kwargs:
        raise ConfigError(
            f"the model has a features extractor, {name_extractor(policy.policy_kwargs)}, which "
            f"d3rlpy cannot take over: train there with an encoder factory of your own"
        )
    core, weights = policy.config, dict(policy.model.state_dict())
    actions = _bounds(policy.action_space)
    is_discrete = isinstance(policy.action_space, spaces.Discrete)
    make_config = DiscreteDecisionMambaConfig if is_discrete else DecisionMambaConfig
    config = make_config(
        **{theirs: getattr(core, ours) for theirs, ours in CORE_NAMES.items()},
        observation_scaler=_make_observation_scaler(policy, weights),
        action_scaler=_make_action_scaler(policy.action_space, actions),
        reward_scaler=MultiplyRewardScaler(1.0 / core.return_scale)
        if core.return_scale != 1.0
        else None,
        encoder_factory=_make_encoder_factory(policy),
        optim_factory=_make_optim_factory(core),
        attn_dropout=core.dropout,
        embed_dropout=core.dropout,
        activation_type=core.activation,
        embedding=core.embedding,
        position_encoding_type=PositionEncodingType.GLOBAL
        if core.time_encoding == "global"
        else PositionEncodingType.SIMPLE,
        time_encoding="none" if core.time_encoding == "none" else None,
        seed=model.seed,
    )
    learnable = config.create(device=device)
    learnable.create_impl(policy.observation_space.shape, _count_actions(policy.action_space))
    if actions is not None:
        refold_actions(weights, actions, into_scaled=True)
    renamed = {
        f"{ENCODER}encoder.network.{name.removeprefix(ENCODER)}"
        if name.startswith(ENCODER)
        else name: tensor
        for name, tensor in weights.items()
    }
    learnable.impl.model.load_state_dict(renamed)
    learnable.impl.progress.n_updates.fill_(model._n_updates)
    return learnable


def _make_encoder_factory(policy: DecisionMambaPolicy) -> DecisionMambaEncoderFactory:
    encoder = policy.model.embedding.observation_encoder
    kind = "nature_cnn" if isinstance(encoder, NatureCNNEncoder) else "linear"
    return DecisionMambaEncoderFactory(policy.config.hidden_size, kind)


def _make_observation_scaler(policy: DecisionMambaPolicy, weights: Weights) -> Any:
    """Take the normalisation out of the weights, and return it as a scaler."""
    if isinstance(policy.model.embedding.observation_encoder, NatureCNNEncoder):
        return PixelObservationScaler()
    shape = policy.observation_space.shape
    mean, std = (weights[f"{ENCODER}{name}"] for name in ("mean", "std"))
    weights[f"{ENCODER}mean"], weights[f"{ENCODER}std"] = (
        torch.zeros_like(mean),
        torch.ones_like(std),
    )
    if bool((mean == 0.0).all()):
        if bool((std == 1.0).all()):
            return None
        if bool((std == 255.0).all()):
            return PixelObservationScaler()
    as_arrays = (part.cpu().double().numpy().reshape(shape) for part in (mean, std))
    return StandardObservationScaler(*as_arrays, eps=0.0)


def _make_action_scaler(space: spaces.Space[Any], bounds: Affine | None) -> Any:
    if bounds is None or bounds.is_identity:
        return None
    assert isinstance(space, spaces.Box)
    return MinMaxActionScaler(
        minimum=space.low.astype(np.float64), maximum=space.high.astype(np.float64)
    )


def _make_optim_factory(core: CoreConfig) -> DecisionMambaAdamWFactory:
    return DecisionMambaAdamWFactory(
        clip_grad_norm=core.max_grad_norm,
        betas=core.adam_betas,
        weight_decay=core.weight_decay,
        lr_scheduler_factory=DecisionMambaLRFactory(
            n_updates=core.n_updates,
            warmup_updates=core.warmup_updates,
            lr_schedule=core.lr_schedule,
            final_lr_fraction=core.final_lr_fraction,
            decay_updates=core.decay_updates,
        ),
    )


def _check_actions(space: spaces.Space[Any]) -> None:
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise SpaceError(
            f"the action space {space} starts at {space.start}, and d3rlpy counts actions from 0"
        )
    if isinstance(space, spaces.Box) and len(space.shape) != 1:
        raise SpaceError(
            f"actions are of shape {space.shape}, and d3rlpy takes vectors alone: flatten them in "
            f"the environment and the dataset"
        )


def _count_actions(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    assert isinstance(space, spaces.Box)
    return int(space.shape[0])


def _bounds(space: spaces.Space[Any]) -> Affine | None:
    return Affine.between(space.low, space.high) if isinstance(space, spaces.Box) else None


_NATURE_FILTERS = [[32, 8, 4], [64, 4, 2], [64, 3, 1]]
# Names inside d3rlpy's encoders that are ours under other names.
_VECTOR_NAMES = {"_layers.0.": "projection."}
_PIXEL_NAMES = {
    **{f"_cnn_layers.{index}.": f"convolutions.{index}." for index in (0, 2, 4)},
    "_last_layers.0.": "projection.",
}
_OWN_NAMES = {"network.": ""}


def to_sb3(
    learnable: Learnable,
    env: Environment | None = None,
    *,
    target_return: float | None = None,
    device: torch.device | str = "auto",
) -> Sb3DecisionMamba:
    """Open a d3rlpy learnable of ours as a ``sb3_dmamba.DecisionMamba``.

    Scalers move into the network. The optimiser starts anew, and ``resid_dropout`` is the dropout
    of everything.

    Args:
        learnable: One of our algorithms, built.
        env: Environment to act in. A task's or environment's name stays with the model and its
            files; an object is the caller's to give again.
        target_return: Return to ask for at the start of each episode, in the environment's units;
            without one ``model.target_return`` is to be set before ``model.get_env()``.
        device: Where to put the model.

    Returns:
        The model, ready to act; :meth:`fit` trains it further.

    Raises:
        ConfigError: A setting, encoder or scaler has no counterpart there; names it. Or
            ``learnable`` is something else, a file's name say.
        SpaceError: Observations are tuples, or ``env`` has other spaces.
        NotFittedError: The learnable has not been built.
    """
    if not isinstance(learnable, Learnable):
        raise ConfigError(
            f"to_sb3 takes a learnable of sb3_dmamba.d3rlpy, and this is a "
            f"{type(learnable).__module__}.{type(learnable).__name__}: open a file first, "
            f"to_sb3(d3rlpy.load_learnable('model.d3'))"
        )
    if learnable.impl is None:
        raise NotFittedError("the learnable has no weights yet: call fit, or create_impl")
    _check_details(learnable)
    weights = {
        name: tensor.detach().clone() for name, tensor in learnable.impl.model.state_dict().items()
    }
    observation_space, encoder = _move_encoder(learnable, weights)
    action_space = _move_actions(learnable, weights)
    return_scale = _move_returns(learnable, weights)
    hidden_size = weights["norm.weight"].shape[0]
    config = make_core_config(learnable.config, hidden_size).replace(
        encoder=encoder,
        return_scale=return_scale,
        normalize_observations=learnable.observation_scaler is not None and encoder == "linear",
        **_read_optim_factory(learnable.config.optim_factory),
    )
    seed = draw_seed() if learnable.config.seed is None else learnable.config.seed
    task = env if isinstance(env, str) else None  # a name is saved with the model
    model = Sb3DecisionMamba(task, config=config, seed=seed, device=device)
    updater = Updater.create(observation_space, action_space, config, None, seed, model.device)
    updater.policy.model.load_state_dict(weights)
    if env is not None:
        model.set_env(env)  # made when the model has its weights
    model._adopt(updater)
    model._n_updates = int(learnable.impl.progress.n_updates)
    model.target_return = target_return
    if env is not None and target_return is not None:
        model.get_env()
    return model


def _check_details(learnable: Learnable) -> None:
    """Refuse what d3rlpy tells apart and our config does not.

    Raises:
        ConfigError: There is such a thing; names the field.
    """
    config = learnable.config
    if config.channel_mixing and config.activation_type not in ("gelu", "relu"):
        raise ConfigError(
            f"activation_type={config.activation_type!r} has no counterpart in "
            f"sb3_dmamba.DecisionMamba: train with 'gelu' or 'relu'"
        )
    is_discrete = isinstance(config, DiscreteDecisionMambaConfig)
    if is_discrete and config.embedding is None and config.embed_activation_type != "tanh":
        raise ConfigError(
            f"embed_activation_type={config.embed_activation_type!r} has no counterpart in "
            f"sb3_dmamba.DecisionMamba: train with 'tanh', or with embedding='norm'"
        )


def _move_encoder(learnable: Learnable, weights: Weights) -> tuple[spaces.Box, str]:
    """Rename the encoder's weights and put the observation scaler among them.

    Returns:
        The observation space and the encoder's kind.
    """
    shape = learnable.impl.observation_shape
    if is_tuple_shape(shape):
        raise SpaceError(
            f"observations are tuples of shapes {shape}, and sb3_dmamba.DecisionMamba takes one "
            f"array: join them in the environment and the dataset"
        )
    shape = tuple(shape)
    names, kind = _name_encoder(learnable.config.encoder_factory, shape)
    prefix = f"{ENCODER}encoder."
    for name in [name for name in weights if name.startswith(prefix)]:
        inner = name.removeprefix(prefix)
        for theirs, ours in names.items():
            if inner.startswith(theirs):
                weights[f"{ENCODER}{ours}{inner.removeprefix(theirs)}"] = weights.pop(name)
                break
    scaler = learnable.observation_scaler
    is_bytes = isinstance(scaler, PixelObservationScaler)
    if kind == "nature_cnn" and not is_bytes:
        raise ConfigError(
            f"observation_scaler={scaler!r} has no counterpart for images in "
            f"sb3_dmamba.DecisionMamba, which divides them by 255: train with "
            f"PixelObservationScaler()"
        )
    if kind == "linear":
        scaling = read_observation_scaler(scaler)
        like = weights[f"{ENCODER}projection.weight"]
        for name, part in (("mean", scaling.shift), ("std", scaling.scale)):
            whole = np.broadcast_to(part, shape).reshape(-1).copy()
            weights[f"{ENCODER}{name}"] = torch.as_tensor(whole, dtype=like.dtype)
    space = spaces.Box(-np.inf, np.inf, shape, np.float32)
    return (spaces.Box(0, 255, shape, np.uint8) if is_bytes else space), kind


def _name_encoder(factory: Any, shape: tuple[int, ...]) -> tuple[dict[str, str], str]:
    """Return what the encoder's weights are called there, and its kind.

    Raises:
        ConfigError: We have no such encoder; names it.
    """
    if isinstance(factory, DecisionMambaEncoderFactory):
        is_image = factory.kind == "nature_cnn" or (factory.kind == "auto" and len(shape) == 3)
        return _OWN_NAMES, "nature_cnn" if is_image else "linear"
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
    raise ConfigError(
        f"encoder_factory={factory!r} has no counterpart in sb3_dmamba.DecisionMamba: train with "
        f"DecisionMambaEncoderFactory(128), VectorEncoderFactory([128], "
        f"exclude_last_activation=True), or PixelEncoderFactory(feature_size=128, "
        f"exclude_last_activation=True)"
    )


def _move_actions(learnable: Learnable, weights: Weights) -> spaces.Space[Any]:
    size = learnable.impl.action_size
    if isinstance(learnable.config, DiscreteDecisionMambaConfig):
        return spaces.Discrete(size)
    actions = read_action_scaler(learnable.action_scaler, size)
    refold_actions(weights, actions, into_scaled=False)
    low, high = actions.shift - actions.scale, actions.shift + actions.scale
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _move_returns(learnable: Learnable, weights: Weights) -> float:
    """Put the reward scaler among the weights, and return what is left to divide by."""
    weight, bias = f"{RETURNS}weight", f"{RETURNS}bias"
    scaling = read_reward_scaler(learnable.reward_scaler)
    weights[weight], weights[bias], scale = fold_returns(weights[weight], weights[bias], scaling)
    return scale


def _read_optim_factory(factory: Any) -> dict[str, Any]:
    """Return the settings of the optimiser that ours has too."""
    if not isinstance(
        factory, (AdamFactory, AdamWFactory, GPTAdamWFactory, DecisionMambaAdamWFactory)
    ):
        return {}
    settings: dict[str, Any] = {"adam_betas": tuple(factory.betas)}
    if not isinstance(factory, AdamFactory):  # whose decay is another thing
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
