"""From Stable-Baselines3's face to d3rlpy's."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from d3rlpy.constants import PositionEncodingType
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MultiplyRewardScaler,
    PixelObservationScaler,
    StandardObservationScaler,
)
from gymnasium import spaces

from sb3_dmamba.algorithm import DecisionMamba as Sb3DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.d3rlpy.algos import (
    DecisionMamba,
    DecisionMambaConfig,
    DiscreteDecisionMamba,
    DiscreteDecisionMambaConfig,
)
from sb3_dmamba.d3rlpy.config import CORE_NAMES
from sb3_dmamba.d3rlpy.crossing.scaling import Affine
from sb3_dmamba.d3rlpy.crossing.weights import ENCODER, Weights, refold_actions
from sb3_dmamba.d3rlpy.encoders import DecisionMambaEncoderFactory
from sb3_dmamba.d3rlpy.optimizers import DecisionMambaAdamWFactory, DecisionMambaLRFactory
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import NatureCNNEncoder
from sb3_dmamba.networks.features import name_extractor

__all__ = ["from_sb3"]

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
