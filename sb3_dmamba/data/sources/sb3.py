"""Stable-Baselines3's replay and rollout buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_optional_integer
from sb3_dmamba.data.sources.arrays import copy_rows
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import rows_per_chunk
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import warn_caller
from sb3_dmamba.spaces import BOUND_TOLERANCE, check_action_space


def load_replay_buffer(
    source: Any,
    *,
    scaled_actions: bool | None = None,
    keep_partial: bool = False,
    max_episode_steps: int | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    name: str = "sb3",
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Trajectories:
    """Copy the episodes out of a ``ReplayBuffer`` or ``DictReplayBuffer`` (HER's too).

    Observations and rewards are as before ``VecNormalize``. Episodes come in the order in which
    they began; one that is still running, or was left by a reset, is cut.

    Args:
        source: The buffer: ``model.replay_buffer``, or what ``load_from_pkl`` returns.
        scaled_actions: Whether the actions of a Box are scaled to [-1, 1], as SB3's algorithms keep
            them, and must be scaled back. None: find out; scale and warn where both could be.
        keep_partial: Whether to keep the oldest episode of each environment where the ring has
            wrapped and may have overwritten its first steps. Its timesteps begin at 0 where they
            should not.
        max_episode_steps: For a buffer without timeouts (``handle_timeout_termination=False``): an
            episode of this many steps was truncated.
        env_id: What ``gymnasium.make`` takes.
        env_kwargs: Its other arguments.
        name: Name of the dataset in summaries and reports.
        observation_space: The environment's; None is the buffer's, by which it is read.
        action_space: Likewise; actions are scaled back by the buffer's.

    Raises:
        DatasetError: The buffer holds no whole episode, its rows do not follow each other, or an
            action lies outside the space.
        SpaceError: A space cannot be learnt.

    Source: stable_baselines3 2.9.2, ``common/buffers.py``,
    ``OffPolicyAlgorithm._store_transition``.
    """
    limit = check_optional_integer("max_episode_steps", max_episode_steps, 1, error=DatasetError)
    rows = _order_rows(source)
    done = source.dones[rows] > 0
    truncated = done & (source.timeouts[rows] > 0)
    broken = np.zeros_like(done)
    if not source.optimize_memory_usage:
        broken = ~done & _find_breaks(source, rows)
        _check_order(done, broken, rows)
    segments = _cut_rows(done & ~truncated, truncated, broken)
    if limit is not None:
        if source.handle_timeout_termination:
            problem = f"max_episode_steps={limit}: the buffer notes timeouts; leave it out"
            raise DatasetError(problem, setting="max_episode_steps", value=limit)
        segments = [
            replace(segment, terminated=False, truncated=True)
            if segment.terminated and len(segment) == limit
            else segment
            for segment in segments
        ]
    if source.full and not keep_partial:
        segments = _leave_out_oldest(segments)
    is_scaled = _are_scaled(source, rows, scaled_actions)
    return _copy_segments(
        source,
        segments,
        lambda array, env, start, end: array[rows[start:end], env],
        lambda actions: _unscale(actions, source.action_space) if is_scaled else actions,
        given=(observation_space, action_space),
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        source=name,
    )


def load_rollout_buffer(
    source: Any,
    *,
    no_time_limit: bool = False,
    max_episode_steps: int | None = None,
    scaled_actions: bool = False,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    name: str = "sb3",
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Trajectories:
    """Copy the episodes out of a ``RolloutBuffer`` or ``DictRolloutBuffer``.

    SB3 adds an estimated value to the last reward where a time limit ended an episode, and does not
    note where: say ``no_time_limit=True``, or give ``max_episode_steps``, and an episode that long
    loses its last step and counts as cut. So does the last episode in the buffer, whose end is not
    noted. Episodes that began before the buffer are left out. Under ``VecNormalize`` the data is
    normalised. ``collect`` has none of these limits.

    Args:
        source: The buffer: ``model.rollout_buffer``, before or after the update on it.
        no_time_limit: True: no time limit has ended an episode.
        max_episode_steps: The time limit.
        scaled_actions: Whether the policy squashes its output (gSDE): actions are scaled back from
            [-1, 1]. Else they are clipped to the space, as SB3 does before it steps.
        env_id: What ``gymnasium.make`` takes.
        env_kwargs: Its other arguments.
        name: Name of the dataset in summaries and reports.
        observation_space: The environment's; None is the buffer's, by which it is read.
        action_space: Likewise; actions are scaled back by the buffer's.

    Raises:
        DatasetError: Nothing is said about time limits, or no episode began in the buffer.
        SpaceError: A space cannot be learnt.

    Source: stable_baselines3 2.9.2, ``OnPolicyAlgorithm.collect_rollouts``.
    """
    limit = check_optional_integer("max_episode_steps", max_episode_steps, 1, error=DatasetError)
    if no_time_limit == (limit is not None):
        problem = (
            "SB3 changes the last reward where a time limit ended an episode: pass "
            "no_time_limit=True, or max_episode_steps=... to leave those steps out, or record "
            "with sb3_dmamba.collect"
        )
        raise DatasetError(problem, setting="max_episode_steps", value=limit)
    n_rows = source.size()
    if not n_rows:
        raise DatasetError("the rollout buffer is empty: it needs at least one step")
    starts = source.episode_starts[:n_rows] > 0
    ended = np.concatenate([starts[1:], np.zeros_like(starts[:1])])
    segments = _cut_rows(ended, np.zeros_like(ended), np.zeros_like(ended))
    segments = [segment for segment in segments if starts[segment.start, segment.env]]
    if limit is not None:
        segments = [_leave_out_timeout(segment, limit) for segment in segments]
        segments = [segment for segment in segments if len(segment)]
    if not segments:
        raise DatasetError("no episode began in the rollout buffer: collect more steps")
    space = source.action_space

    def read(array: ndarray, env: int, start: int, end: int) -> ndarray:
        if source.generator_ready and array is not source.rewards:
            # (envs * steps, ...) since SB3 has drawn from it
            array = array.reshape(source.n_envs, -1, *array.shape[1:]).swapaxes(0, 1)
        values: ndarray = array[start:end, env]
        return values

    return _copy_segments(
        source,
        segments,
        read,
        lambda actions: (_unscale if scaled_actions else _clip)(actions, space),
        given=(observation_space, action_space),
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        source=name,
    )


@dataclass(frozen=True)
class _Segment:
    """Consecutive steps of one environment, an episode or a part of one."""

    env: int
    start: int  # counted from the oldest step in the buffer
    end: int
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return self.end - self.start


_ReadRows = Callable[[ndarray, int, int, int], ndarray]
"""From an array of the buffer: the rows of an environment from ``start`` to ``end`` in time."""


def _cut_rows(
    terminated: Bool[ndarray, "M envs"],
    truncated: Bool[ndarray, "M envs"],
    broken: Bool[ndarray, "M envs"],
) -> list[_Segment]:
    """Cut every environment's steps after each flag and at the end, in the order of the starts."""
    segments = []
    for env in range(terminated.shape[1]):
        is_end = terminated[:, env] | truncated[:, env] | broken[:, env]
        is_end[-1] = True
        start = 0
        for last in np.flatnonzero(is_end).tolist():
            flags = bool(terminated[last, env]), bool(truncated[last, env])
            segments.append(_Segment(env, start, last + 1, *flags))
            start = last + 1
    return sorted(segments, key=lambda segment: (segment.start, segment.env))


def _copy_segments(
    buffer: Any,
    segments: Sequence[_Segment],
    read: _ReadRows,
    convert_actions: Callable[[ndarray], ndarray],
    given: tuple[spaces.Space[Any] | None, spaces.Space[Any] | None],
    **described: Any,
) -> Trajectories:
    """Copy segments; ``convert_actions`` makes the environment's actions of a Box's, (T, A)."""
    own = buffer.observation_space, buffer.action_space
    space, actions = (o if space is None else space for o, space in zip(own, given, strict=True))
    action_space = check_action_space(actions)
    is_box = isinstance(action_space, spaces.Box)

    def rows() -> Iterator[tuple[Any, ndarray, ndarray]]:
        for segment in segments:
            for start, end in _pieces(buffer.observations, segment):
                where = segment.env, start, end
                actions = read(buffer.actions, *where)
                yield (
                    _read_observations(space, buffer.observations, read, where),
                    convert_actions(actions) if is_box else actions[:, 0],
                    read(buffer.rewards, *where),
                )

    return copy_rows(
        rows(),
        [len(segment) for segment in segments],
        [segment.terminated for segment in segments],
        [segment.truncated for segment in segments],
        space=space,
        action_space=action_space,
        label=lambda index: f"environment {segments[index].env}, row {segments[index].start}",
        **described,
    )


def _pieces(observations: Any, segment: _Segment) -> Iterator[tuple[int, int]]:
    """Yield parts of a segment that are small enough to be copied once more."""
    arrays = observations.values() if isinstance(observations, Mapping) else [observations]
    step = min(rows_per_chunk(array) for array in arrays)
    for start in range(segment.start, segment.end, step):
        yield start, min(start + step, segment.end)


def _read_observations(
    space: spaces.Space[Any], arrays: Any, read: _ReadRows, where: tuple[int, int, int]
) -> Any:
    """Read what a vector environment would have returned: SB3 keeps scalars as vectors of one."""
    if isinstance(space, spaces.Dict):
        return {
            key: _read_observations(part, arrays[key], read, where)
            for key, part in space.spaces.items()
        }
    values = read(arrays, *where)
    return values.reshape(len(values), *(space.shape or ()))


def _unscale(actions: ndarray, space: spaces.Box) -> ndarray:
    """Map actions from [-1, 1] to the space, as SB3's ``unscale_action`` does."""
    unscaled: ndarray = space.low + 0.5 * (actions + 1.0) * (space.high - space.low)
    return unscaled


def _clip(actions: ndarray, space: spaces.Box) -> ndarray:
    clipped: ndarray = np.clip(actions, space.low, space.high)
    return clipped


def _order_rows(source: Any) -> Int64[ndarray, "M"]:
    """Return the rows that hold a step, oldest first."""
    if not source.full:
        if not source.pos:
            raise DatasetError("the replay buffer is empty: it needs at least one step")
        return np.arange(source.pos)
    rows: Int64[ndarray, "M"] = (np.arange(source.buffer_size) + source.pos) % source.buffer_size
    # Sharing one array, the newest next observation has replaced the oldest observation.
    rows = rows[1:] if source.optimize_memory_usage else rows
    if not len(rows):
        raise DatasetError("the replay buffer holds one row, and that is half overwritten")
    return rows


def _find_breaks(source: Any, rows: Int64[ndarray, "M"]) -> Bool[ndarray, "M envs"]:
    """Find the rows after which the observation noted as next is not the next row's."""
    broken = np.zeros((len(rows), source.n_envs), dtype=bool)
    pairs = [(source.observations, source.next_observations)]
    if isinstance(source.observations, Mapping):
        pairs = [(array, source.next_observations[k]) for k, array in source.observations.items()]
    for before, after in pairs:
        step = rows_per_chunk(before)
        for start in range(0, len(rows) - 1, step):
            end = min(start + step, len(rows) - 1)
            differs = after[rows[start:end]] != before[rows[start + 1 : end + 1]]
            broken[start:end] |= differs.reshape(end - start, source.n_envs, -1).any(axis=2)
    return broken


def _check_order(
    done: Bool[ndarray, "M envs"], broken: Bool[ndarray, "M envs"], rows: Int64[ndarray, "M"]
) -> None:
    n_breaks, n_pairs = int(broken.sum()), int((~done[:-1]).sum())
    if 2 * n_breaks > n_pairs:
        row, env = (int(i) for i in np.argwhere(broken)[0])
        problem = (
            f"after {n_breaks} of {n_pairs} rows (first: row {rows[row]} of environment {env}) the "
            f"observation noted as next is not the next row's: single transitions are no episodes"
        )
        raise DatasetError(problem, index=int(rows[row]))


def _leave_out_oldest(segments: list[_Segment]) -> list[_Segment]:
    """Leave out the oldest segment of each environment, whose beginning may be overwritten."""
    kept = [segment for segment in segments if segment.start > 0]
    if not kept:
        problem = "the ring has wrapped and holds no whole episode: pass keep_partial=True"
        raise DatasetError(problem, setting="keep_partial", value=False)
    n_steps = sum(map(len, segments))
    n_left = n_steps - sum(map(len, kept))
    warn_caller(
        f"the ring is full and may have overwritten beginnings of episodes: {n_left} of {n_steps} "
        f"steps are left out; keep_partial=True keeps them"
    )
    return kept


def _leave_out_timeout(segment: _Segment, limit: int) -> _Segment:
    """Leave out the last step of an episode that the time limit ended."""
    if len(segment) > limit:
        problem = f"an episode has {len(segment)} steps: give the environment's max_episode_steps"
        raise DatasetError(problem, setting="max_episode_steps", value=limit)
    if len(segment) < limit:
        return segment
    return replace(segment, end=segment.end - 1, terminated=False)


def _are_scaled(source: Any, rows: Int64[ndarray, "M"], given: bool | None) -> bool:
    space = source.action_space
    if not isinstance(space, spaces.Box):
        return False
    if given is not None:
        return given
    if (space.low == -1).all() and (space.high == 1).all():
        return False  # scaling changes nothing
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return False  # nothing to scale by
    smallest = source.actions[rows].min(axis=(0, 1)).astype(np.float64)
    largest = source.actions[rows].max(axis=(0, 1)).astype(np.float64)
    fits_scaled = (np.maximum(-smallest, largest) <= 1 + BOUND_TOLERANCE).all()
    # of the larger bound, on both sides: unscaling rounds by it
    slack = BOUND_TOLERANCE * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
    fits_raw = (smallest >= low - slack).all() and (largest <= high + slack).all()
    if fits_scaled and fits_raw:
        warn_caller(
            f"the actions lie in [-1, 1] and the space is {space}: they are taken for scaled, as "
            f"SB3's algorithms keep them; pass scaled_actions=True or False to decide"
        )
    return bool(fits_scaled)
