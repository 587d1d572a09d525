"""Checks of dataset arrays, in bounded memory, each naming the first bad index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Int64
from numpy import ndarray

from sb3_dmamba.data.mapping import check_frame_stack, convert_rows, frame_shape
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, loosen_bounds, observation_dtype

CHUNK_BYTES = 1 << 22
"""How much of a (perhaps memory-mapped) array is looked at together."""

_TOLERANT: ContextVar[bool] = ContextVar("tolerant", default=False)


def rows_per_chunk(array: ndarray) -> int:
    """Return how many rows of ``array`` make up :data:`CHUNK_BYTES` as float64."""
    return max(1, CHUNK_BYTES // max(1, 8 * int(np.prod(array.shape[1:], dtype=np.int64))))


@contextlib.contextmanager
def tolerate_non_finite() -> Iterator[None]:
    """Let NaN and infinities pass :func:`check_finite`, so that all of them can be described."""
    token = _TOLERANT.set(True)
    try:
        yield
    finally:
        _TOLERANT.reset(token)


def check_finite(
    name: str, array: ndarray, offsets: Int64[ndarray, "E+1"] | None = None, first: int = 0
) -> None:
    """Raise DatasetError if an entry is NaN or infinite, naming its index.

    Args:
        name: What the array is.
        array: Rows of it.
        offsets: Where its episodes begin.
        first: Index of the first row.
    """
    if array.dtype.kind not in "fc" or _TOLERANT.get():
        return
    step = rows_per_chunk(array)
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step])
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            value = array[(start + index[0], *index[1:])]
            index = (first + start + index[0], *index[1:])
            raise DatasetError(
                f"{name}{_subscript(index)} is {value}{describe_step(index[0], offsets)}: "
                f"every value must be finite; leave out that episode or repair it",
                episode=_find_episode(index[0], offsets),
                index=index[0],
                setting=name,
                value=value,
            )


def check_offsets(offsets: ndarray, n_steps: int) -> None:
    """Raise DatasetError unless the offsets cut ``n_steps`` steps into non-empty episodes."""
    offsets = np.asarray(offsets)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise DatasetError(
            f"episode_offsets have shape {offsets.shape} and dtype {offsets.dtype}: give the "
            f"first step of each of at least one episode and then the number of steps, as integers"
        )
    if offsets[0] != 0:
        raise DatasetError(f"episode_offsets[0] is {offsets[0]}: the first episode starts at 0")
    empty = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if len(empty):
        episode = int(empty[0])
        raise DatasetError(
            f"episode {episode} goes from step {offsets[episode]} to {offsets[episode + 1]}: "
            f"every episode needs at least one step; leave out empty ones",
            episode=episode,
            setting="episode_offsets",
        )
    if offsets[-1] != n_steps:
        raise DatasetError(
            f"episode_offsets end at {offsets[-1]} and there are {n_steps} steps: "
            f"the last offset is the number of steps"
        )


def check_box_actions(
    actions: ndarray, space: spaces.Box, offsets: Int64[ndarray, "E+1"] | None = None
) -> None:
    """Raise DatasetError if an action lies outside the space by more than rounding."""
    low, high = loosen_bounds(space)
    step = rows_per_chunk(actions)
    for start in range(0, len(actions), step):
        chunk = actions[start : start + step]
        inside = (chunk >= low) & (chunk <= high)
        if _TOLERANT.get():
            inside |= ~np.isfinite(chunk)
        if not inside.all():
            row, column = (int(i) for i in np.argwhere(~inside)[0])
            raise DatasetError(
                f"actions[{start + row}, {column}] is {chunk[row, column]:g}"
                f"{describe_step(start + row, offsets)}, outside the action space's "
                f"[{space.low[column]:g}, {space.high[column]:g}]: clip the recorded actions to "
                f"the space, or describe them with a wider Box",
                episode=_find_episode(start + row, offsets),
                index=start + row,
                setting="actions",
                value=chunk[row, column],
            )


def check_discrete_actions(
    actions: ndarray, space: spaces.Discrete, offsets: Int64[ndarray, "E+1"] | None = None
) -> None:
    """Raise DatasetError if an action is none of the space's."""
    first, end = int(space.start), int(space.start) + int(space.n)
    rows = rows_per_chunk(actions)
    for start in range(0, len(actions), rows):
        chunk = actions[start : start + rows]
        bad = np.flatnonzero((chunk < first) | (chunk >= end))
        if len(bad):
            step = start + int(bad[0])
            raise DatasetError(
                f"actions[{step}] is {actions[step]}{describe_step(step, offsets)}: "
                f"{space} allows {first} to {end - 1}",
                episode=_find_episode(step, offsets),
                index=step,
                setting="actions",
                value=actions[step],
            )


def describe_step(step: int, offsets: Any) -> str:
    """Say which step of which episode a flat index is, if the offsets are known."""
    episode = _find_episode(step, offsets)
    if episode is None:
        return ""
    return f" (episode {episode}, step {step - int(offsets[episode])})"


def _find_episode(step: int, offsets: Any) -> int | None:
    return None if offsets is None else int(np.searchsorted(offsets, step, side="right")) - 1


def _subscript(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


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
