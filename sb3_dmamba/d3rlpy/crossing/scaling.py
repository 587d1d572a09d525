"""d3rlpy's scalers as shift and scale, and what becomes of weights when they move inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
from numpy import ndarray
from torch import Tensor

from sb3_dmamba.errors import ConfigError

__all__ = [
    "Affine",
    "fold_actions",
    "fold_returns",
    "read_action_scaler",
    "read_observation_scaler",
    "read_reward_scaler",
]

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
