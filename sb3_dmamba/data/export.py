"""Trajectories as other libraries have them: d3rlpy's replay buffer, Minari's dataset.

The data is a :class:`~sb3_dmamba.data.Trajectories`, whose module imports this one.
"""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_dmamba.console import warn_caller
from sb3_dmamba.errors import DatasetError, MissingDependencyError, SpaceError
from sb3_dmamba.paths import minari_folder

_MINARI_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
_NOTE = "The observation after each episode's last step was not recorded: the last is repeated."


def to_d3rlpy(trajectories: Any) -> Any:
    """See :meth:`sb3_dmamba.data.Trajectories.to_d3rlpy`."""
    try:
        from d3rlpy.constants import ActionSpace
        from d3rlpy.dataset import (
            Episode,
            FrameStackTrajectorySlicer,
            FrameStackTransitionPicker,
            InfiniteBuffer,
            ReplayBuffer,
            Signature,
        )
    except ModuleNotFoundError as error:
        if error.name != "d3rlpy":
            raise  # d3rlpy is there, and something that it needs is not
        raise MissingDependencyError("d3rlpy", "make a d3rlpy dataset", "d3rlpy") from error

    space, stack = trajectories.action_space, trajectories.frame_stack
    is_discrete = isinstance(space, spaces.Discrete)
    if is_discrete and space.start != 0:
        problem = f"d3rlpy counts actions from 0, and {space} does not: subtract {space.start}"
        raise SpaceError(problem, setting="action_space", value=space)
    episodes = [
        Episode(
            observations=part.observations[:, None] if stack > 1 else part.observations,
            actions=part.actions[:, None] if is_discrete else part.actions,
            rewards=part.rewards[:, None],
            terminated=part.terminated,
        )
        for part in (trajectories[number] for number in _find_whole(trajectories))
    ]
    first = episodes[0]
    pickers: dict[str, Any] = {}
    if stack > 1:
        pickers["transition_picker"] = FrameStackTransitionPicker(stack)
        pickers["trajectory_slicer"] = FrameStackTrajectorySlicer(stack)
    return ReplayBuffer(
        InfiniteBuffer(),
        episodes=episodes,
        # all given, because d3rlpy would guess them from the first episode's values
        observation_signature=first.observation_signature,
        action_signature=first.action_signature,
        reward_signature=Signature(dtype=[first.rewards.dtype], shape=[(1,)]),
        action_space=ActionSpace.DISCRETE if is_discrete else ActionSpace.CONTINUOUS,
        action_size=int(space.n) if is_discrete else space.shape[0],
        cache_size=1,  # of steps to be written online: none of these frames need be set aside
        **pickers,
    )


def _find_whole(trajectories: Any) -> list[int]:
    """Return the episodes that d3rlpy holds: it drops the last step of a truncated one."""
    kept = trajectories.terminated | (trajectories.lengths > 1)
    if not kept.any():
        problem = "every episode has one step and was not terminated: d3rlpy holds none such"
        raise DatasetError(problem)
    left_out = np.flatnonzero(~kept)
    if len(left_out):
        warn_caller(
            f"{len(left_out)} episodes (the first is {left_out[0]}) have one step and were not "
            f"terminated, which d3rlpy cannot hold: they are left out"
        )
    numbers: list[int] = np.flatnonzero(kept).tolist()
    return numbers


def to_minari(
    trajectories: Any, dataset_id: str, *, description: str | None = None, **metadata: Any
) -> Any:
    """See :meth:`sb3_dmamba.data.Trajectories.to_minari`."""
    import minari

    if not isinstance(dataset_id, str) or not _MINARI_ID.fullmatch(dataset_id):
        problem = f"dataset_id={dataset_id!r}: give a name with a version, as 'mine/walk-v0'"
        raise DatasetError(problem, setting="dataset_id", value=dataset_id)
    spec = _find_spec(trajectories.env_id, trajectories.env_kwargs)
    root = minari_folder()
    folder = root / dataset_id
    if folder.exists():
        problem = f"{dataset_id!r} exists in {root}: rename, or minari.delete_dataset it"
        raise DatasetError(problem, path=folder, setting="dataset_id", value=dataset_id)
    try:
        with warnings.catch_warnings():
            # Minari recommends to name an author and more, which is up to the caller.
            warnings.filterwarnings("ignore", r".*(is set to None|env_spec is None)", UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffer=_make_buffers(trajectories),  # it only iterates: one episode at a time
                description=f"{description} {_NOTE}" if description else _NOTE,
                **metadata,
                observation_space=trajectories.observation_space,
                action_space=trajectories.action_space,
                jpeg_encoding=False,  # JPEG would change the frames
            )
            if spec is not None:  # not passed above, where Minari would make the environment
                dataset.storage.update_metadata({"env_spec": spec.to_json()})
            return minari.load_dataset(dataset_id)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # half a dataset would be taken for whole
        if isinstance(error, ValueError):
            raise DatasetError(f"{dataset_id!r} cannot be written: {error}", path=folder) from error
        raise


def _make_buffers(trajectories: Any) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for number, episode in enumerate(trajectories):
        first, end = trajectories.episode_offsets[number : number + 2]
        seen = trajectories.stack_frames(np.arange(first, end))
        last = np.arange(len(episode)) == len(episode) - 1
        yield EpisodeBuffer(
            id=number,
            observations=np.concatenate([seen, seen[-1:]]),
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
        )


def _find_spec(env_id: str | None, env_kwargs: Mapping[str, Any]) -> EnvSpec | None:
    """Return the environment's spec for Minari's metadata, without making the environment."""
    if env_id is None:
        return None
    package, _, name = env_id.rpartition(":")
    try:
        if package:
            import_module(package)  # which registers the id
        spec = copy.deepcopy(gymnasium.spec(name))
    except (gymnasium.error.Error, ImportError) as error:
        problem = f"the dataset will not name its environment, {env_id}: not known here ({error})"
        warn_caller(problem)
        return None
    kwargs = dict(env_kwargs)
    spec.max_episode_steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs = {**spec.kwargs, **kwargs}
    return spec
