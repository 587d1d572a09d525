"""Checks of dataset arrays, in bounded memory, each naming the first bad index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Int64
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.data.mapping import as_array, convert_rows
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, loosen_bounds, observation_dtype

CHUNK_BYTES = 1 << 22
"""How much of a (perhaps memory-mapped) array is looked at together."""

STEP_ARRAYS = ("observations", "actions", "rewards")
ARRAYS = (*STEP_ARRAYS, "terminated", "truncated", "episode_offsets")

_TOLERANT: ContextVar[bool] = ContextVar("tolerant", default=False)


def validate_arrays(
    arrays: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    frame_stack: int = 1,
) -> dict[str, ndarray]:
    """Check the :data:`ARRAYS` of a dataset, and return them with the dtypes they are stored in."""
    space = check_flat(observation_space)
    frame_stack = check_frame_stack(frame_stack, space)
    action_space = check_action_space(action_space)
    found = {name: as_array(arrays[name], name) for name in ARRAYS}
    if found["rewards"].size == 0:
        raise DatasetError("the dataset is empty: it needs at least one episode of one step")
    _check_shapes(found, frame_shape(space, frame_stack), space, action_space)
    check_offsets(found["episode_offsets"], len(found["rewards"]))
    stored = _convert(found, space, action_space)
    offsets = stored["episode_offsets"]
    for name in ("observations", "rewards", "actions"):
        check_finite(name, stored[name], offsets)
    # integers as they were given: 64 bits without a sign may not fit into int64
    actions = stored if isinstance(action_space, spaces.Box) else found
    _check_actions(actions["actions"], action_space, offsets)
    return stored


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
            problem = (
                f"{name} have shape {arrays[name].shape} where {shape} is needed: {n_steps} "
                f"rewards, {n_episodes} episodes, {observation_space}{frames}, {action_space}"
            )
            raise DatasetError(problem, setting=name, value=arrays[name].shape)


def _convert(
    arrays: Mapping[str, ndarray],
    observation_space: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    discrete = isinstance(action_space, spaces.Discrete)
    frames = observation_dtype(observation_space) is np.uint8
    given = {name: arrays[name].dtype for name in STEP_ARRAYS}
    if discrete and given["actions"].kind not in "iu":
        expected = f" and the action space is {action_space}: give integers, or the Box they lie in"
        raise _wrong_dtype("actions", given["actions"], expected)
    if frames and given["observations"] != np.uint8:
        expected = f" and the space is {observation_space}: give the frames as uint8"
        raise _wrong_dtype("observations", given["observations"], expected)
    for name, dtype in given.items():
        if dtype.kind not in "biuf":
            raise _wrong_dtype(name, dtype, ": give numbers")
    dtypes: dict[str, type[np.generic]] = {
        "observations": np.uint8 if frames else np.float32,
        "actions": np.int64 if discrete else np.float32,
        "rewards": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "episode_offsets": np.int64,
    }
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is named
        return {name: convert_rows(arrays[name], np.dtype(dtype)) for name, dtype in dtypes.items()}


def _wrong_dtype(name: str, dtype: np.dtype[Any], expected: str) -> DatasetError:
    return DatasetError(f"{name} are {dtype}{expected}", setting=name, value=dtype)


def rows_per_chunk(array: Any) -> int:
    """Return how many rows of ``array`` make up :data:`CHUNK_BYTES` as float64."""
    return max(1, CHUNK_BYTES // max(1, 8 * int(np.prod(array.shape[1:], dtype=np.int64))))


def iterate_chunks(array: ndarray) -> Iterator[tuple[int, ndarray]]:
    """Yield all rows, :func:`rows_per_chunk` at once, each time after the first one's index."""
    step = rows_per_chunk(array)
    return ((start, array[start : start + step]) for start in range(0, len(array), step))


def find_episodes(steps: Int64[ndarray, "*n"], offsets: Int64[ndarray, "E+1"]) -> ndarray:
    """Return the number of the episode that each step belongs to."""
    return np.searchsorted(offsets, steps, side="right") - 1


def group_episodes(offsets: Int64[ndarray, "E+1"], most: int) -> Iterator[tuple[int, int]]:
    """Yield first and last, exclusive, of as many whole episodes as ``most`` steps hold, or one."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        yield first, (last := max(last, first + 1))
        first = last


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
    """Raise DatasetError if an entry of rows is NaN or infinite; ``first`` is the first's index."""
    if array.dtype.kind in "fc" and not _TOLERANT.get():
        fix = ": every value must be finite; leave out that episode or repair it"
        _check_values(name, array, np.isfinite, fix, offsets, first)


def _check_actions(
    actions: ndarray, space: spaces.Box | spaces.Discrete, offsets: Int64[ndarray, "E+1"]
) -> None:
    low: Any
    high: Any
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
        fix = f": {space} allows {low} to {high}"
    else:
        low, high = loosen_bounds(space)
        fix = (
            f", outside the action space {space}: clip the actions, or pass action_space=, a Box "
            "that holds them all"
        )

    def is_inside(rows: ndarray) -> ndarray:
        inside: ndarray = (rows >= low) & (rows <= high)
        return inside | ~np.isfinite(rows) if _TOLERANT.get() else inside

    _check_values("actions", actions, is_inside, fix, offsets)


def _check_values(
    name: str,
    array: ndarray,
    is_good: Callable[[ndarray], ndarray],
    fix: str,
    offsets: Int64[ndarray, "E+1"] | None,
    first: int = 0,
) -> None:
    """Raise DatasetError at the first bad entry; ``fix`` is the end of the message."""
    for start, rows in iterate_chunks(array):
        good = is_good(rows)
        if good.all():
            continue
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        value, step, episode, where = rows[place], first + start + place[0], None, ""
        if offsets is not None:
            episode = int(find_episodes(np.array(step), offsets))
            where = f" (episode {episode}, step {step - int(offsets[episode])})"
        index = ", ".join(map(str, (step, *place[1:])))
        problem = f"{name}[{index}] is {value!s}{where}{fix}"
        raise DatasetError(problem, episode=episode, index=step, setting=name, value=value)


def check_flat(space: spaces.Space[Any]) -> spaces.Box:
    """Return an observation space if it is a Box, such as ``flat_space`` makes."""
    if isinstance(space, spaces.Box):
        return space
    problem = f"observation_space is {space}: give flat_space(space) and flat observations"
    raise SpaceError(problem, setting="observation_space", value=space)


def check_frame_stack(frame_stack: Any, space: spaces.Box) -> int:
    """Return the number of frames in an observation, as an int."""
    count = check_integer("frame_stack", frame_stack, 1, error=DatasetError)
    if count > 1 and (space.dtype != np.uint8 or len(space.shape) < 2 or space.shape[0] != count):
        problem = f"frame_stack={count} needs a uint8 Box of shape ({count}, *frame), got {space}"
        raise SpaceError(problem, setting="frame_stack", value=count)
    return count


def frame_shape(space: spaces.Box, frame_stack: int) -> tuple[int, ...]:
    """Return the shape of what is stored for one step."""
    return space.shape if frame_stack == 1 else space.shape[1:]


def check_offsets(offsets: ndarray, n_steps: int) -> None:
    """Raise DatasetError unless the offsets cut ``n_steps`` steps into non-empty episodes."""
    offsets = np.asarray(offsets)
    problem, episode = "", None
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        problem = f"episode_offsets are {offsets.dtype}{offsets.shape}: expected (E + 1,) integers"
    elif offsets[0] != 0:
        problem = f"episode_offsets[0] is {offsets[0]}: the first episode starts at 0"
    elif len(empty := np.flatnonzero(offsets[1:] <= offsets[:-1])):
        episode = int(empty[0])
        problem = f"episode {episode} goes from step {offsets[episode]} to {offsets[episode + 1]}"
    elif offsets[-1] != n_steps:
        problem = f"episode_offsets end at {offsets[-1]}, and there are {n_steps} steps"
    if problem:
        raise DatasetError(problem, episode=episode, setting="episode_offsets")


def check_steps(
    steps: Int64[ndarray, "M"], n_steps: int, name: str = "steps"
) -> Int64[ndarray, "M"]:
    """Return flat indices of steps as int64."""
    array = np.atleast_1d(np.asarray(steps))
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        problem = f"{name}={steps!r}: give at least one integer"
        raise DatasetError(problem, setting=name, value=steps)
    bad = np.flatnonzero((array < 0) | (array >= n_steps))
    if len(bad):
        problem = f"{name}[{bad[0]}] is {array[bad[0]]}: steps go from 0 to {n_steps - 1}"
        raise DatasetError(problem, index=int(bad[0]), setting=name, value=array[bad[0]])
    return array.astype(np.int64, copy=False)


def check_episodes(
    observations: Sequence[ndarray],
    actions: Sequence[ndarray],
    rewards: Sequence[ndarray],
    n_episodes: int,
) -> None:
    """Raise DatasetError unless there is an array per episode, and a row per step in each."""
    lists = {"observations": observations, "actions": actions, "rewards": rewards}
    for name, values in lists.items():
        if len(values) != n_episodes:
            problem = f"{len(values)} episodes of {name} and {n_episodes} of terminated"
            raise DatasetError(problem, setting=name)
    if not len(rewards):
        raise DatasetError("the dataset is empty: it needs at least one episode of one step")
    for episode, arrays in enumerate(zip(*lists.values(), strict=True)):
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1:
            counts = "{} observations, {} actions and {} rewards".format(*lengths)
            problem = f"episode {episode} has {counts}: give one of each per step"
            raise DatasetError(problem, episode=episode)


def within(error: DatasetError, where: str, **attributes: Any) -> DatasetError:
    """Return the error with a place before its message, and other attributes."""
    return DatasetError(f"{where}: {error}", **{**vars(error), **attributes})


def check_json(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy, or raise DatasetError if JSON cannot hold it."""
    try:
        json.dumps(dict(env_kwargs))
    except (TypeError, ValueError) as error:
        problem = f"env_kwargs={env_kwargs!r} cannot be written as JSON ({error})"
        raise DatasetError(problem, setting="env_kwargs", value=env_kwargs) from error
    return dict(env_kwargs)
