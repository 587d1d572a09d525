"""Writing the package's own format: a folder of ``.npy`` files, and one of JSON.

Each of :class:`~sb3_dmamba.data.Trajectories`' arrays is a file, which NumPy reads as it is;
``trajectories.json`` has the rest. Episodes are checked when they are written, so opening a store
looks at sizes and types and reads none of its steps.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Num
from numpy import ndarray
from typing_extensions import Self

from sb3_dmamba.data._validation import check_json
from sb3_dmamba.data.frames import check_frame_stack
from sb3_dmamba.data.mapping import NpyStream
from sb3_dmamba.data.spaces import check_action_space
from sb3_dmamba.data.store.format import HEADER_NAME, header_to_json, read_store, row_types
from sb3_dmamba.data.store.place import check_place, move_into_place
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import assemble
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["TrajectoriesWriter"]

_COPY_BYTES = 1 << 24


class TrajectoriesWriter:
    """Writes a store episode by episode, in the memory of one episode.

    A context manager::

        with TrajectoriesWriter(folder, observation_space=..., action_space=...) as writer:
            for episode in episodes:
                writer.append(obs, actions, rewards, terminated=True, truncated=False)
            data = writer.finish()

    It is written under a temporary name and renamed by :meth:`finish`; without, or after an
    exception, ``folder`` is as it was before.

    Args:
        folder: Where the store will be; folders on the way are made.
        observation_space: Flat view of the environment's observation space; with ``frame_stack``,
            of whole stacks.
        action_space: The environment's action space.
        env_id: What ``gymnasium.make`` takes, where it is known.
        env_kwargs: Its other arguments, which JSON can hold.
        source: Where the data came from, for people.
        frame_stack: Frames in an observation; where more than 1, single frames are appended.
        overwrite: Whether a store that is there already is replaced. Nothing else ever is.

    Raises:
        DatasetError: ``folder`` exists and may not be replaced, ``env_kwargs`` are no JSON, or
            ``frame_stack`` is not a positive integer.
        SpaceError: The spaces cannot be learnt, or do not hold such stacks.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        source: str = "",
        frame_stack: int = 1,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise SpaceError(f"observation_space is {observation_space}: give flat_space(space)")
        self._folder = Path(folder).expanduser().absolute()
        self._overwrite = overwrite
        check_place(self._folder, self._overwrite)
        self._fields: dict[str, Any] = {
            "observation_space": observation_space,
            "action_space": check_action_space(action_space),
            "env_id": env_id,
            "env_kwargs": check_json(env_kwargs or {}),
            "source": source,
            "frame_stack": check_frame_stack(frame_stack, observation_space),
        }
        self._terminated: list[bool] = []
        self._truncated: list[bool] = []
        self._offsets = [0]
        self._temporary: Path | None = None
        self._streams: dict[str, NpyStream] = {}

    def __enter__(self) -> Self:
        if self._temporary is not None:
            raise DatasetError(f"the writer of {self._folder} was entered before: make another")
        parent = self._folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(
            tempfile.mkdtemp(prefix=f".{self._folder.name}.", suffix=".partial", dir=parent)
        )
        for name, (dtype, shape) in row_types(self._fields).items():
            self._streams[name] = NpyStream(self._temporary / f"{name}.npy", dtype, shape)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._abandon()

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        self._streams = {}
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def n_episodes(self) -> int:
        """Episodes written so far."""
        return len(self._terminated)

    @property
    def n_steps(self) -> int:
        """Steps written so far."""
        return self._offsets[-1]

    def append(
        self,
        observations: Num[ndarray, "T *obs"],
        actions: Num[ndarray, "T *action"],
        rewards: Num[ndarray, "T"],
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Write one episode.

        Args:
            observations: Those that actions were chosen on, (T, *obs), or (T, *frame) to stack.
            actions: (T, A) for a Box, (T,) for Discrete.
            rewards: (T,), in the environment's units.
            terminated: Whether the environment ended the episode.
            truncated: Whether a limit ended it.

        Raises:
            DatasetError: The episode is not such as :class:`Trajectories` takes, names it; or the
                writer is not open.
            OSError: The disk is full.
        """
        self._check_open()
        try:
            episode = Trajectories.from_episodes(
                [observations], [actions], [rewards], [terminated], [truncated], **self._fields
            )
        except DatasetError as error:
            raise DatasetError(f"episode {self.n_episodes} to be written: {error}") from error
        self.append_all(episode)

    def append_all(self, episodes: Trajectories) -> None:
        """Write all episodes of a dataset, which were checked when it was made.

        Raises:
            DatasetError: They are in other spaces than the store's, or stacked otherwise; or the
                writer is not open.
            OSError: The disk is full.
        """
        self._check_open()
        for name in ("observation_space", "action_space", "frame_stack"):
            if getattr(episodes, name) != self._fields[name]:
                raise DatasetError(
                    f"the episodes' {name} is {getattr(episodes, name)}, and the store's "
                    f"{self._fields[name]}: write them to a store of their own"
                )
        try:
            for name, stream in self._streams.items():
                array = getattr(episodes, name)
                step = max(1, _COPY_BYTES // max(1, array[:1].nbytes))
                for start in range(0, len(array), step):
                    stream.write(array[start : start + step])
        except BaseException:
            self._abandon()  # the arrays differ in length now: nothing can be finished
            raise
        self._terminated += episodes.terminated.tolist()
        self._truncated += episodes.truncated.tolist()
        self._offsets += (self.n_steps + episodes.episode_offsets[1:]).tolist()

    def finish(self, *, source: str | None = None) -> Trajectories:
        """Put the store at its place and open it.

        Args:
            source: Where the data came from, where that is known only now; None is what was given.

        Raises:
            DatasetError: No episode was written, the writer is not open, or the place is taken.
            OSError: The disk is full.
        """
        self._check_open()
        if not self.n_episodes:
            raise DatasetError(f"no episode was written to {self._folder}: a store needs one")
        if source is not None:
            self._fields["source"] = source
        check_place(self._folder, self._overwrite)
        assert self._temporary is not None
        for stream in self._streams.values():
            stream.finish()
        self._streams = {}
        per_episode = {
            "terminated": np.array(self._terminated, np.bool_),
            "truncated": np.array(self._truncated, np.bool_),
            "episode_offsets": np.array(self._offsets, np.int64),
        }
        for name, array in per_episode.items():
            stream = NpyStream(self._temporary / f"{name}.npy", array.dtype, ())
            stream.write(array)
            stream.finish()
        self._write_header()
        move_into_place(self._temporary, self._folder)
        return assemble(Trajectories, read_store(self._folder))

    def _write_header(self) -> None:
        assert self._temporary is not None
        header = header_to_json(self._fields, self.n_episodes, self.n_steps)
        with (self._temporary / HEADER_NAME).open("w", encoding="utf-8") as file:
            json.dump(header, file, indent=2)
            file.flush()
            os.fsync(file.fileno())

    def _check_open(self) -> None:
        if not self._streams:
            raise DatasetError(
                f"the writer of {self._folder} is not open: write within "
                f"'with TrajectoriesWriter(...) as writer:' and before finish()"
            )
