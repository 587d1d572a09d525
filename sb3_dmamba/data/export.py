"""Trajectories as other libraries have them: d3rlpy's replay buffer, Minari's dataset."""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Num
from numpy import ndarray

from sb3_dmamba.console import warn_caller
from sb3_dmamba.errors import DatasetError, MissingDependencyError, SpaceError
from sb3_dmamba.paths import minari_folder

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["Exports"]

_MINARI_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
_NOTE = "The observation after each episode's last step was not recorded: the last is repeated."


class Exports:
    """What :class:`~sb3_dmamba.data.Trajectories` can be turned into; its base class."""

    def to_d3rlpy(self: Trajectories) -> Any:  # type: ignore[misc]
        """Return a ``d3rlpy.dataset.ReplayBuffer`` whose episodes are views of these.

        d3rlpy knows terminated from not terminated only: episodes that were cut come back from it
        as truncated. Frames that are stacked when drawn get a channel, and the buffer d3rlpy's
        own frame stacking.

        Raises:
            DatasetError: Every episode has one step and was not terminated; d3rlpy holds none
                such, and leaves them out (with a warning) where there are others.
            SpaceError: The Discrete action space does not start at 0.
            MissingDependencyError: d3rlpy is not installed.
        """
        return _to_d3rlpy(self)

    def to_minari(self: Trajectories, dataset_id: str, **metadata: Any) -> Any:  # type: ignore[misc]
        """Write a dataset into Minari's folder, an episode at a time; return its MinariDataset.

        Minari also wants the observation after each episode's last step, which is not recorded:
        the last one is repeated, and the dataset's description says so. Frames are stored as the
        policy sees them, without loss.

        Args:
            dataset_id: ``"name-v0"``, with a namespace or without: ``"mine/hopper/medium-v0"``.
            metadata: ``algorithm_name``, ``author``, ``author_email``, ``code_permalink``,
                ``description``, ``requirements``, as Minari describes them.

        Raises:
            DatasetError: It exists already, or the id is none.
        """
        return _to_minari(self, dataset_id, **metadata)


def _to_d3rlpy(trajectories: Trajectories) -> Any:
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

    space = trajectories.action_space
    is_discrete = isinstance(space, spaces.Discrete)
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise SpaceError(
            f"the action space {space} starts at {space.start}, and d3rlpy counts actions from 0: "
            f"wrap the environment so that its actions do, and subtract {space.start} from the data"
        )
    kept = trajectories.terminated | (trajectories.lengths > 1)
    if not kept.any():
        raise DatasetError(
            "every episode has one step and was not terminated, and d3rlpy holds none such: it "
            "leaves out the last step of an episode that was not terminated"
        )
    if not kept.all():
        left_out = np.flatnonzero(~kept)
        warn_caller(
            f"{len(left_out)} episodes (the first is {left_out[0]}) have one step and were not "
            f"terminated, which d3rlpy cannot hold: they are left out"
        )
    stack = trajectories.frame_stack
    episodes = [
        Episode(
            observations=part.observations[:, None] if stack > 1 else part.observations,
            actions=part.actions[:, None] if is_discrete else part.actions,
            rewards=part.rewards[:, None],
            terminated=part.terminated,
        )
        for part in (trajectories[int(number)] for number in np.flatnonzero(kept))
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
        action_size=int(space.n) if isinstance(space, spaces.Discrete) else space.shape[0],
        cache_size=1,  # of steps to be written online: none of these frames need be set aside
        **pickers,
    )


def _to_minari(
    trajectories: Trajectories,
    dataset_id: str,
    *,
    algorithm_name: str | None = None,
    author: str | None = None,
    author_email: str | None = None,
    code_permalink: str | None = None,
    description: str | None = None,
    requirements: list[str] | None = None,
) -> Any:
    import minari
    from minari.data_collector import EpisodeBuffer

    def make_buffers() -> Iterator[Any]:
        for number, episode in enumerate(trajectories):
            last = np.arange(len(episode)) == len(episode) - 1
            seen = _as_seen(trajectories, number)
            yield EpisodeBuffer(
                id=number,
                observations=np.concatenate([seen, seen[-1:]]),
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=last & episode.terminated,
                truncations=last & episode.truncated,
            )

    if not isinstance(dataset_id, str) or not _MINARI_ID.fullmatch(dataset_id):
        raise DatasetError(
            f"{dataset_id!r} cannot name a Minari dataset: give letters, digits, - and _ with a "
            f"version at the end, such as 'walk-v0' or 'mine/walk-v0'"
        )
    spec = _find_spec(trajectories)
    root = minari_folder()
    folder = root / dataset_id
    if folder.exists():
        raise DatasetError(
            f"{dataset_id!r} exists in {root}: choose another name or version, or delete it with "
            f"minari.delete_dataset({dataset_id!r})"
        )
    try:
        with warnings.catch_warnings():
            # Minari recommends to name an author and more, which is up to the caller.
            warnings.filterwarnings("ignore", r".*(is set to None|env_spec is None)", UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffer=make_buffers(),  # it only iterates: one episode is held at a time
                algorithm_name=algorithm_name,
                author=author,
                author_email=author_email,
                code_permalink=code_permalink,
                description=f"{description} {_NOTE}" if description else _NOTE,
                requirements=requirements,
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
            raise DatasetError(f"{dataset_id!r} cannot be written: {error}") from error
        raise


def _find_spec(trajectories: Trajectories) -> EnvSpec | None:
    """Return what Minari notes of the environment, without making it."""
    if trajectories.env_id is None:
        return None
    package, _, env_id = trajectories.env_id.rpartition(":")
    try:
        if package:
            import_module(package)  # which registers the id
        spec = copy.deepcopy(gymnasium.spec(env_id))
    except (gymnasium.error.Error, ImportError) as error:
        warn_caller(
            f"the dataset will not name its environment, {trajectories.env_id}, which is not known "
            f"here ({error})"
        )
        return None
    kwargs = dict(trajectories.env_kwargs)
    spec.max_episode_steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs = {**spec.kwargs, **kwargs}
    return spec


def _as_seen(trajectories: Trajectories, episode: int) -> Num[ndarray, "T *obs"]:
    """Return one episode's observations as the policy sees them."""
    first, end = trajectories.episode_offsets[episode : episode + 2]
    if trajectories.frame_stack > 1:
        return trajectories.stack_frames(np.arange(first, end))
    return trajectories.observations[first:end]
