"""From d3rlpy's face to Stable-Baselines3's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models import PixelEncoderFactory, VectorEncoderFactory
from d3rlpy.optimizers import (
    AdamFactory,
    AdamWFactory,
    GPTAdamWFactory,
    WarmupSchedulerFactory,
)
from d3rlpy.preprocessing import PixelObservationScaler
from gymnasium import spaces

from sb3_dmamba.algorithm import DecisionMamba as Sb3DecisionMamba
from sb3_dmamba.d3rlpy.algos import DecisionMamba, DiscreteDecisionMamba
from sb3_dmamba.d3rlpy.config import DiscreteDecisionMambaConfig, make_core_config
from sb3_dmamba.d3rlpy.crossing.scaling import (
    fold_returns,
    read_action_scaler,
    read_observation_scaler,
    read_reward_scaler,
)
from sb3_dmamba.d3rlpy.crossing.weights import ENCODER, RETURNS, Weights, refold_actions
from sb3_dmamba.d3rlpy.encoders import DecisionMambaEncoderFactory
from sb3_dmamba.d3rlpy.optimizers import DecisionMambaAdamWFactory, DecisionMambaLRFactory
from sb3_dmamba.environments import Environment
from sb3_dmamba.errors import ConfigError, NotFittedError, SpaceError
from sb3_dmamba.training.seeding import draw_seed
from sb3_dmamba.training.updater import Updater

__all__ = ["to_sb3"]

Learnable = DecisionMamba | DiscreteDecisionMamba

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
