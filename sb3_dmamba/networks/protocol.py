"""What callers of ``predict`` pass, read and checked: observations, returns-to-go, states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_dmamba.data.spaces import channels_first
from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.networks.state import ActingState

__all__ = ["Conditioned", "check_finite", "read_observation", "read_starts", "read_state"]

Conditioned = tuple[NDArray[Any], NDArray[np.float32], bool]

_WRAP_IT = (
    "wrap the environment, env = ReturnToGo(env, target_return), or use model.get_env(); if you "
    "hold the rewards yourself, use model.as_stateful_wrapper(target_return)"
)


def read_observation(observation: Any, space: spaces.Box) -> Conditioned:
    """Read what a :class:`~sb3_dmamba.ReturnToGo` environment shows.

    Images whose channels are last are transposed where the space has them first, as
    Stable-Baselines3's policies do. Of stacked returns-to-go (a ``VecFrameStack`` outside of the
    wrapper) the newest counts.

    Args:
        observation: A mapping with ``"observation"``, of shape (*space.shape) or
            (n, *space.shape), and ``"return_to_go"``, of shape (n,), (n, 1) or (n, stacked).
        space: The policy's flat observations.

    Returns:
        Observations (n, *space.shape), returns-to-go (n,) float32, and whether it was one
        observation without an axis of environments.

    Raises:
        ConditioningError: There is no return-to-go, not one an observation, or it is not a finite
            number.
        SpaceError: The observation is not of the space's shape.
    """
    if not isinstance(observation, Mapping) or not {"observation", "return_to_go"} <= set(
        observation
    ):
        raise ConditioningError(
            "the observation has no return_to_go, and no policy can know how much return is still "
            f"to come: {_WRAP_IT}",
            setting="observation",
        )
    observations = channels_first(np.asarray(observation["observation"]), space)
    single = observations.ndim == len(space.shape)
    if single:
        observations = observations[np.newaxis]
    if observations.shape[1:] != space.shape:
        expected = (*observations.shape[:1], *space.shape)
        raise SpaceError(
            f"observations have shape {observations.shape}, and {expected} "
            f"was expected: act in the environment that the data is of, ReturnToGo(env, "
            f"target_return)",
            setting="observation",
            value=observations.shape,
            choices=[expected],
        )
    return observations, _read_returns(observation["return_to_go"], len(observations)), single


def check_finite(observations: NDArray[Any]) -> None:
    """Refuse observations that no action can follow from; images in bytes pass at no cost.

    Args:
        observations: Shape (n, *obs), any dtype.

    Raises:
        SpaceError: A value is NaN or infinite; says of which environment and where.
    """
    if observations.dtype.kind != "f" or np.isfinite(observations).all():
        return
    row, *place = (int(index) for index in np.argwhere(~np.isfinite(observations))[0])
    value = observations[(row, *place)]
    raise SpaceError(
        f"the observation of environment {row} has {value} at {tuple(place)}, which would "
        f"make every later action meaningless: fix the environment's output (np.nan_to_num "
        f"replaces such values) or end the episode there",
        setting="observation",
        value=value,
    )


def read_starts(episode_start: Any, n_envs: int) -> NDArray[np.bool_]:
    """Read which of ``n_envs`` environments start an episode.

    Raises:
        ConditioningError: There is neither one flag nor one an environment, or it is Python's True
            or False: a bare bool in this place is usually a misplaced ``deterministic``.
    """
    if isinstance(episode_start, bool):
        raise ConditioningError(
            f"episode_start={episode_start} is not an array: write "
            f"predict(observation, state, deterministic={episode_start}) if that was meant, or "
            f"episode_start=np.full({n_envs}, {episode_start})",
            setting="episode_start",
            value=episode_start,
        )
    starts = np.asarray(episode_start, dtype=bool)
    if starts.shape not in ((), (1,), (n_envs,)):
        raise ConditioningError(
            f"episode_start has shape {starts.shape}, and {n_envs} observations came: give one "
            f"flag each, np.ones({n_envs}, dtype=bool) at the first step and what env.step "
            f"returned as done afterwards",
            setting="episode_start",
            value=starts.shape,
            choices=[(), (1,), (n_envs,)],
        )
    return np.broadcast_to(starts, (n_envs,))


def read_state(
    state: ActingState,
    n_envs: int,
    layout: Mapping[str, tuple[int, ...]],
    device: torch.device,
) -> ActingState:
    """Check that a state is one of ``n_envs`` episodes of this policy.

    Args:
        state: What the last ``predict`` returned, perhaps joined, reordered or pickled since.
        n_envs: Number of observations that came with it.
        layout: The shape of a row of each tensor that such a state of this policy holds.
        device: Where the policy is.

    Returns:
        The state, on ``device``.

    Raises:
        ConditioningError: It is of other environments or another policy.
    """
    if len(state) != n_envs:
        raise ConditioningError(
            f"state holds {len(state)} environments, but {n_envs} observations came: pass the "
            f"state that the last predict returned for these environments (state.take(rows) "
            f"drops some), or None at the first step",
            setting="state",
            value=len(state),
            choices=[n_envs],
        )
    found = {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()}
    if found != layout:
        name = next(key for key in {**layout, **found} if found.get(key) != layout.get(key))
        raise ConditioningError(
            f"state is another model's (a row of {name} has shape {found.get(name)}, and this "
            f"model's {layout.get(name)}): pass None at the first step with this model",
            setting="state",
        )
    return state if state.tensors["timestep"].device == device else state.to(device)


def _read_returns(returns_to_go: Any, n_envs: int) -> NDArray[np.float32]:
    returns = np.asarray(returns_to_go, dtype=np.float32)
    if returns.ndim == 2 and len(returns) == n_envs:
        returns = returns[:, -1:]
    returns = returns.reshape(-1)
    if len(returns) != n_envs:
        raise ConditioningError(
            f"{n_envs} observations came with {len(returns)} returns-to-go: give one each",
            setting="return_to_go",
            value=len(returns),
            choices=[n_envs],
        )
    # math.isfinite is several times faster than NumPy's on the one number of one environment
    if not (math.isfinite(returns[0]) if n_envs == 1 else np.isfinite(returns).all()):
        raise ConditioningError(
            f"return_to_go={returns.tolist()}: give finite numbers, ReturnToGo(env, target_return) "
            f"counts them",
            setting="return_to_go",
            value=returns.tolist(),
        )
    return returns
