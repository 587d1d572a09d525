"""What the arrays of a :class:`~sb3_dmamba.data.Trajectories` must be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data._checks import (
    check_box_actions,
    check_discrete_actions,
    check_finite,
    check_offsets,
)
from sb3_dmamba.data.frames import check_frame_stack, frame_shape
from sb3_dmamba.data.mapping import convert_rows
from sb3_dmamba.data.spaces import check_action_space, observation_dtype
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["ARRAYS", "check_episodes", "check_json", "validate_arrays"]

ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")


def validate_arrays(
    arrays: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    frame_stack: int = 1,
) -> dict[str, ndarray]:
    """Return the arrays with the dtypes they are stored in, or say what is wrong with them.

    Args:
        arrays: One for each of :data:`ARRAYS`.
        observation_space: Flat view of the environment's.
        action_space: The environment's.
        frame_stack: Frames in an observation, which are stored one by one where it is more than 1.

    Raises:
        DatasetError: The first thing that is wrong with the arrays.
        SpaceError: The spaces are not such as can be learnt.
    """
    if not isinstance(observation_space, spaces.Box):
        raise SpaceError(
            f"observation_space is {observation_space}: give the flat view, flat_space(space), "
            f"and observations from flatten_observation(space, ...)"
        )
    frame_stack = check_frame_stack(frame_stack, observation_space)
    action_space = check_action_space(action_space)
    found = {name: np.asanyarray(arrays[name]) for name in ARRAYS}
    if found["rewards"].size == 0:
        raise DatasetError("the dataset is empty: it needs at least one episode of one step")
    stored_shape = frame_shape(observation_space, frame_stack)
    _check_shapes(found, stored_shape, observation_space, action_space)
    check_offsets(found["episode_offsets"], len(found["rewards"]))
    stored = _convert(found, observation_space, action_space)
    offsets = stored["episode_offsets"]
    for name in ("observations", "rewards", "actions"):
        check_finite(name, stored[name], offsets)
    if isinstance(action_space, spaces.Box):
        check_box_actions(stored["actions"], action_space, offsets)
    else:
        given = found["actions"]  # as they are: 64 bits without a sign may not fit into int64
        check_discrete_actions(given, action_space, offsets)
    return stored


def check_episodes(
    observations: Sequence[ndarray],
    actions: Sequence[ndarray],
    rewards: Sequence[ndarray],
    n_episodes: int,
) -> None:
    """Check that there is one array per episode, and one row per step in each.

    Raises:
        DatasetError: There is not, or there is no episode.
    """
    lists = {"observations": observations, "actions": actions, "rewards": rewards}
    for name, values in lists.items():
        if len(values) != n_episodes:
            raise DatasetError(
                f"{len(values)} episodes of {name} and {n_episodes} of terminated: "
                f"give one entry per episode in each"
            )
    if not len(rewards):
        raise DatasetError("the dataset is empty: it needs at least one episode of one step")
    for episode, lengths in enumerate(
        zip(*(map(len, values) for values in lists.values()), strict=True)
    ):
        if len(set(lengths)) > 1:
            raise DatasetError(
                f"episode {episode} has {lengths[0]} observations, {lengths[1]} actions and "
                f"{lengths[2]} rewards: give one of each per step (without the observation "
                f"after the last step)",
                episode=episode,
            )


def check_json(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what JSON can hold.

    Raises:
        DatasetError: JSON cannot hold it.
    """
    try:
        json.dumps(dict(env_kwargs))
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"env_kwargs={env_kwargs!r} cannot be written as JSON ({error}): "
            f"keep to numbers, strings, booleans, lists and dicts"
        ) from error
    return dict(env_kwargs)


def _check_shapes(
    arrays: Mapping[str, ndarray],
    stored_shape: tuple[int, ...],
    observation_space: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> None:
    stacked = stored_shape != observation_space.shape
    frames = ", whose frames are stored one by one (frame_stack)," if stacked else ""
    n_steps, n_episodes = arrays["rewards"].size, max(arrays["episode_offsets"].size - 1, 0)
    expected = {
        "rewards": (n_steps,),
        "observations": (n_steps, *stored_shape),
        "actions": (n_steps, *(action_space.shape or ())),
        "terminated": (n_episodes,),
        "truncated": (n_episodes,),
    }
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise DatasetError(
                f"{name} have shape {arrays[name].shape} where {shape} is needed: there are "
                f"{n_steps} rewards and {n_episodes} episodes, observations in "
                f"{observation_space}{frames} and actions in {action_space}"
            )


def _convert(
    arrays: Mapping[str, ndarray],
    observation_space: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    discrete = isinstance(action_space, spaces.Discrete)
    frames = observation_dtype(observation_space) is np.uint8
    if discrete and arrays["actions"].dtype.kind not in "iu":
        raise DatasetError(
            f"actions are {arrays['actions'].dtype} and the action space is {action_space}: "
            f"give integers, or the Box they lie in"
        )
    if frames and arrays["observations"].dtype != np.uint8:
        raise DatasetError(
            f"observations are {arrays['observations'].dtype} and the space is "
            f"{observation_space}: give the frames as uint8"
        )
    dtypes: dict[str, type[np.generic]] = {
        "observations": np.uint8 if frames else np.float32,
        "actions": np.int64 if discrete else np.float32,
        "rewards": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "episode_offsets": np.int64,
    }
    for name in ("observations", "actions", "rewards"):
        if arrays[name].dtype.kind not in "biuf":
            raise DatasetError(f"{name} are {arrays[name].dtype}: give numbers")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is named
        return {name: convert_rows(arrays[name], np.dtype(dtype)) for name, dtype in dtypes.items()}
