"""The rows of a Stable-Baselines3 buffer, cut into episodes and copied out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int64
from numpy import ndarray

from sb3_dmamba.data._checks import rows_per_chunk
from sb3_dmamba.data.spaces import (
    check_action_space,
    flat_space,
    flatten_observation,
    observation_dtype,
)
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["Segment", "build_trajectories", "cut_rows", "find_breaks", "unscale"]

ReadRows = Callable[[ndarray, int, int, int], ndarray]
"""From an array of the buffer: the rows of an environment from ``start`` to ``end`` in time."""


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one environment.

    Args:
        env: The environment's number.
        start: Its first step, counted from the oldest in the buffer.
        end: One past its last.
        terminated: Whether the environment ended it.
        truncated: Whether a limit ended it.
    """

    env: int
    start: int
    end: int
    terminated: bool
    truncated: bool


def cut_rows(
    terminated: Bool[ndarray, "M envs"],
    truncated: Bool[ndarray, "M envs"],
    broken: Bool[ndarray, "M envs"],
) -> list[Segment]:
    """Cut every environment's steps after each flag; what is left over at the end is cut too.

    Returns:
        The segments in the order in which they began.
    """
    segments = []
    for env in range(terminated.shape[1]):
        is_end = terminated[:, env] | truncated[:, env] | broken[:, env]
        is_end[-1] = True
        start = 0
        for last in np.flatnonzero(is_end).tolist():
            flags = bool(terminated[last, env]), bool(truncated[last, env])
            segments.append(Segment(env, start, last + 1, *flags))
            start = last + 1
    return sorted(segments, key=lambda segment: (segment.start, segment.env))


def find_breaks(
    observations: Any, next_observations: Any, rows: Int64[ndarray, "M"], n_envs: int
) -> Bool[ndarray, "M envs"]:
    """Tell after which rows the observation that should follow is not the next row's.

    Args:
        observations: (rows, envs, ...), or a dict of such.
        next_observations: What came after each; likewise.
        rows: The rows in time order.
        n_envs: Number of environments.
    """
    broken = np.zeros((len(rows), n_envs), dtype=bool)
    pairs = [(observations, next_observations)]
    if isinstance(observations, Mapping):
        pairs = [(observations[key], next_observations[key]) for key in observations]
    for before, after in pairs:
        step = rows_per_chunk(before)
        for start in range(0, len(rows) - 1, step):
            end = min(start + step, len(rows) - 1)
            differs = after[rows[start:end]] != before[rows[start + 1 : end + 1]]
            broken[start:end] |= differs.reshape(end - start, n_envs, -1).any(axis=2)
    return broken


def build_trajectories(
    buffer: Any,
    segments: Sequence[Segment],
    read: ReadRows,
    convert_actions: Callable[[ndarray], ndarray],
    **described: Any,
) -> Trajectories:
    """Copy the segments into arrays made once.

    Args:
        buffer: The buffer.
        segments: The episodes.
        read: Reads rows of the buffer's arrays.
        convert_actions: Makes the environment's actions of the buffer's, (T, A) to (T, A).
        described: ``env_id``, ``env_kwargs`` and ``source`` of the trajectories.
    """
    space = buffer.observation_space
    flat, action_space = flat_space(space), check_action_space(buffer.action_space)
    is_box = isinstance(action_space, spaces.Box)
    offsets = np.concatenate([[0], np.cumsum([s.end - s.start for s in segments])]).astype(np.int64)
    n_steps = int(offsets[-1])
    observations = np.empty((n_steps, *flat.shape), dtype=observation_dtype(flat))
    actions = np.empty(
        (n_steps, *(action_space.shape or ())), dtype=np.float32 if is_box else np.int64
    )
    rewards = np.empty(n_steps, dtype=np.float32)
    for offset, segment in zip(offsets[:-1].tolist(), segments, strict=True):
        for start, end in _pieces(buffer.observations, segment):
            steps = slice(offset + start - segment.start, offset + end - segment.start)
            where = segment.env, start, end
            shown = _read_observations(space, buffer.observations, read, where)
            try:
                observations[steps] = flatten_observation(space, shown, batch=True)
            except SpaceError as error:
                raise DatasetError(f"environment {segment.env}, row {start}: {error}") from error
            done = read(buffer.actions, *where)
            actions[steps] = convert_actions(done) if is_box else done[:, 0]
            rewards[steps] = read(buffer.rewards, *where)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=np.array([segment.terminated for segment in segments]),
        truncated=np.array([segment.truncated for segment in segments]),
        episode_offsets=offsets,
        observation_space=flat,
        action_space=action_space,
        **described,
    )


def unscale(actions: ndarray, space: spaces.Box) -> ndarray:
    """Map actions from [-1, 1] to the space, by the formula of SB3's ``unscale_action``."""
    unscaled: ndarray = space.low + 0.5 * (actions + 1.0) * (space.high - space.low)
    return unscaled


def _pieces(observations: Any, segment: Segment) -> Iterator[tuple[int, int]]:
    """Yield parts of a segment that are small enough to be copied once more."""
    arrays = observations.values() if isinstance(observations, Mapping) else [observations]
    step = min(rows_per_chunk(array) for array in arrays)
    for start in range(segment.start, segment.end, step):
        yield start, min(start + step, segment.end)


def _read_observations(
    space: spaces.Space[Any], arrays: Any, read: ReadRows, where: tuple[int, int, int]
) -> Any:
    """Read what a vector environment would have returned: SB3 keeps scalars as vectors of one."""
    if isinstance(space, spaces.Dict):
        return {
            key: _read_observations(part, arrays[key], read, where)
            for key, part in space.spaces.items()
        }
    values = read(arrays, *where)
    return values.reshape(len(values), *(space.shape or ()))
