"""Where the episodes of a flat file lie, and which spaces hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.d4rl import find_robot
from sb3_dmamba.data._checks import CHUNK_BYTES
from sb3_dmamba.data.sources.arrays import flatten_observations, infer_action_space
from sb3_dmamba.data.sources.d4rl.hdf5 import FlatFile
from sb3_dmamba.data.spaces import check_action_space
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["Given", "Layout"]


@dataclass(frozen=True)
class Given:
    """What the user says of a file."""

    observation_space: spaces.Space[Any] | None
    action_space: spaces.Space[Any] | None
    env_id: str | None
    env_kwargs: Mapping[str, Any] | None

    def environment(
        self, path: Path, observation: tuple[int, ...], action: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return ``env_id`` and ``env_kwargs``: those given, else what the file's name says."""
        robot = find_robot(path, observation, action)
        if self.env_id is None and robot is not None:
            return {"env_id": robot.env_id, "env_kwargs": self.env_kwargs or robot.env_kwargs}
        return {"env_id": self.env_id, "env_kwargs": self.env_kwargs or {}}


class Layout:
    """Where the episodes of an open file lie, and which spaces hold what it has."""

    def __init__(self, file: FlatFile, given: Given, max_episode_steps: int | None) -> None:
        self.file = file
        truncated = file.truncated
        if truncated is None:
            truncated = _cut_by_length(file.terminated, max_episode_steps)
        last = np.flatnonzero(file.terminated | truncated)
        if not len(last) or last[-1] != file.n_steps - 1:
            last = np.append(last, file.n_steps - 1)
        self.offsets: Int64[ndarray, "E+1"] = np.concatenate([[0], last + 1])
        self.terminated: Bool[ndarray, "E"] = file.terminated[last]
        self.truncated: Bool[ndarray, "E"] = truncated[last]
        self.n_episodes = len(last)
        self.observation_space = given.observation_space
        action_space = given.action_space
        if action_space is None:
            try:
                action_space = infer_action_space(file.iterate("actions"))
            except DatasetError as error:
                raise DatasetError(f"{file.path}: {error}") from error
        self.action_space = check_action_space(action_space)
        self.environment = given.environment(
            file.path, file.shape("observations"), file.shape("actions")
        )

    @property
    def n_bytes(self) -> int:
        """How much memory the whole dataset takes."""
        return self.file.n_steps * self._bytes_per_step

    @property
    def _bytes_per_step(self) -> int:
        keys = ("observations", "actions")
        return max(
            1, sum(math.prod(self.file.shape(k)) * self.file.dtype(k).itemsize for k in keys)
        )

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield first and last episode (exclusive) of pieces that fit into little memory."""
        steps = max(1, CHUNK_BYTES // self._bytes_per_step)
        first = 0
        while first < self.n_episodes:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + steps, side="right")) - 1
            last = max(last, first + 1)
            yield first, last
            first = last

    def read(self, first: int, last: int) -> Trajectories:
        """Read episodes ``first`` to ``last``, exclusive.

        Raises:
            DatasetError: The file is damaged there, or its values are not usable.
        """
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        try:
            observations, flat = flatten_observations(
                self.file.read("observations", start, stop), self.observation_space
            )
            return Trajectories(
                observations=observations,
                actions=self.file.read("actions", start, stop),
                rewards=self.file.rewards[start:stop],
                terminated=self.terminated[first:last],
                truncated=self.truncated[first:last],
                episode_offsets=self.offsets[first : last + 1] - start,
                observation_space=flat,
                action_space=self.action_space,
                **self.environment,
                source=f"d4rl:{self.file.path}",
            )
        except DatasetError as error:
            if str(error).startswith(str(self.file.path)):
                raise
            where = f", from step {start} (episode {first}) on" if first else ""
            raise DatasetError(f"{self.file.path}{where}: {error}") from error


def _cut_by_length(terminated: Bool[ndarray, "N"], limit: int | None) -> Bool[ndarray, "N"]:
    """Set a flag at each step that is the ``limit``-th of its episode, if it did not terminate."""
    truncated: Bool[ndarray, "N"] = np.zeros(len(terminated), dtype=bool)
    if limit is None:
        return truncated
    limit = check_integer("max_episode_steps", limit, 1, error=DatasetError)
    starts = np.concatenate([[0], np.flatnonzero(terminated) + 1])
    steps = np.arange(len(terminated))
    within = steps - starts[np.searchsorted(starts, steps, side="right") - 1]
    truncated[within % limit == limit - 1] = True
    truncated &= ~terminated
    return truncated
