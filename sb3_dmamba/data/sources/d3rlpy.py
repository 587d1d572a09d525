"""d3rlpy's replay buffers, read by whole episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data.sources.arrays import copy_rows, infer_observation_space
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space

_FRAME_DIMENSIONS = 3  # of a frame in d3rlpy: channels, height, width


def load_d3rlpy(
    source: Any,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    frame_stack: int | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    name: str = "d3rlpy",
) -> Trajectories:
    """Copy the episodes of a d3rlpy ``ReplayBuffer``, ``MDPDataset`` or ``MixedReplayBuffer``.

    Every step is read, the last of a truncated episode included. d3rlpy notes only whether an
    episode was terminated: the others count as truncated, and the one that an online buffer is
    still writing as cut. What d3rlpy itself leaves out cannot be read: an episode of one step that
    was not terminated, and in ``MDPDataset`` the steps after the last flag.

    Args:
        source: The buffer. Observations of several arrays are read as a Tuple.
        observation_space: The environment's. None: an unbounded Box (frames of bytes for uint8 of
            channels, height and width), or a Tuple of such.
        action_space: The environment's. None: Discrete of d3rlpy's action size, or a Box from -1 to
            1 if no action lies outside.
        frame_stack: Frames that the policy sees together; the buffer then holds single ones,
            (1, height, width) uint8. None: as the buffer's picker or slicer has it.
        env_id: What ``gymnasium.make`` takes.
        env_kwargs: Its other arguments.
        name: Name of the dataset in summaries and reports.

    Raises:
        DatasetError: The buffer is empty, an episode does not fit the others or the spaces (names
            it), or the action space cannot be inferred.
        SpaceError: A space cannot be learnt.

    Source: d3rlpy 2.8.1, ``dataset/components.py``, ``dataset/replay_buffer.py``.
    """
    episodes = [episode for episode in source.episodes if episode.size()]
    if not episodes:
        raise DatasetError("the d3rlpy buffer has no episodes: it needs at least one of one step")
    if frame_stack is None:
        frame_stack = _find_frame_stack(source)
    if action_space is None:
        action_space = _infer_action_space(source.dataset_info, episodes)
    action_space = check_action_space(action_space)
    space = observation_space
    if space is None:
        space = _infer_space(episodes[0].observations)
    stack = None
    if frame_stack > 1:
        stack, space = _split_stack(space, frame_stack, observation_space is not None)
    unfinished = _find_unfinished(source)
    terminated = np.array([bool(episode.terminated) for episode in episodes])
    is_unfinished = np.array([any(episode is u for u in unfinished) for episode in episodes])
    return copy_rows(
        _read_episodes(episodes, space, is_discrete=isinstance(action_space, spaces.Discrete)),
        [int(episode.size()) for episode in episodes],
        terminated,
        ~terminated & ~is_unfinished,
        space=space,
        observation_space=stack,
        action_space=action_space,
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        source=name,
        frame_stack=frame_stack,
    )


def _read_episodes(
    episodes: Sequence[Any], space: spaces.Space[Any], is_discrete: bool
) -> Iterator[tuple[Any, ndarray, ndarray]]:
    for episode in episodes:
        actions = np.asarray(episode.actions)
        yield (
            _arrange(space, episode.observations),
            _drop_column(actions) if is_discrete else actions,
            _drop_column(np.asarray(episode.rewards)),
        )


def _drop_column(array: ndarray) -> ndarray:
    return array[:, 0] if array.shape[1:] == (1,) else array


def _arrange(space: spaces.Space[Any], observations: Any) -> Any:
    """Give d3rlpy's arrays the form of the space: d3rlpy has lists for dicts, and no scalars."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and isinstance(observations, (list, tuple)):
        is_dict = isinstance(space, spaces.Dict)
        keys: list[Any] = list(space.spaces) if is_dict else list(range(len(space.spaces)))
        if len(keys) != len(observations):
            return observations  # an error when it is flattened
        parts = [_arrange(space[key], part) for key, part in zip(keys, observations, strict=True)]
        return dict(zip(keys, parts, strict=True)) if is_dict else parts
    array = np.asarray(observations)
    is_frame = isinstance(space, spaces.Box) and len(space.shape) == _FRAME_DIMENSIONS - 1
    if (is_frame or space.shape == ()) and array.ndim == 2 + len(space.shape or ()):
        return array[:, 0] if array.shape[1] == 1 else array  # a frame's channel, or a scalar
    return array


def _infer_space(observations: Any) -> spaces.Space[Any]:
    if isinstance(observations, (list, tuple)):
        return spaces.Tuple([_infer_space(part) for part in observations])
    return infer_observation_space(np.asarray(observations), _FRAME_DIMENSIONS)


def _infer_action_space(info: Any, episodes: Sequence[Any]) -> spaces.Space[Any]:
    if info.action_space.name == "DISCRETE":
        return spaces.Discrete(int(info.action_size))
    largest = max(np.abs(episode.actions).max() for episode in episodes)
    if not largest <= 1.0:  # NaN included
        problem = f"continuous actions up to {largest:g} tell no action space: pass action_space"
        raise DatasetError(problem, setting="action_space", value=largest)
    return spaces.Box(-1.0, 1.0, (int(info.action_size),), np.float32)


def _split_stack(
    space: spaces.Space[Any], frame_stack: int, is_given: bool
) -> tuple[spaces.Box, spaces.Box]:
    """Return the space of stacks, and that of the single frames they are made of."""
    shape = space.shape or ()
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        if is_given and shape[:1] == (frame_stack,):  # what the policy sees
            return space, spaces.Box(0, 255, shape[1:], np.uint8)
        if len(shape) == _FRAME_DIMENSIONS and shape[0] == 1:
            stack = spaces.Box(0, 255, (frame_stack, *shape[1:]), np.uint8)
            return stack, spaces.Box(0, 255, shape[1:], np.uint8)
    problem = f"only (1, height, width) uint8 frames are stacked, got {space}: pass frame_stack=1"
    raise SpaceError(problem, setting="frame_stack", value=frame_stack)


def _find_frame_stack(source: Any) -> int:
    """Return how many frames the buffer's own samplers would stack."""
    for part in (source.trajectory_slicer, source.transition_picker):
        if type(part).__name__ in ("FrameStackTrajectorySlicer", "FrameStackTransitionPicker"):
            return int(part._n_frames)
    return 1


def _find_unfinished(source: Any) -> list[Any]:
    """Return the episodes that the buffer, or the buffers it is mixed from, still write to."""
    first = getattr(source, "primary_replay_buffer", None)
    if first is not None:
        return _find_unfinished(first) + _find_unfinished(source.secondary_replay_buffer)
    episode = getattr(getattr(source, "_writer", None), "_active_episode", None)
    return [] if episode is None else [episode]
