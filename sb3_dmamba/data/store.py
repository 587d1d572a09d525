"""The dataset store: a folder of ``.npy`` files and a JSON header, memory-mapped when read."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Num
from numpy import ndarray
from typing_extensions import Self

from sb3_dmamba.console import Bar
from sb3_dmamba.data.mapping import NpyStream, check_frame_stack, frame_shape, map_npy
from sb3_dmamba.data.trajectories import Trajectories, assemble, replace
from sb3_dmamba.data.validation import ARRAYS, CHUNK_BYTES, check_json, check_offsets
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, observation_dtype, space_from_json, space_to_json

FORMAT_VERSION = 1
HEADER_NAME = "trajectories.json"
STEP_ARRAYS = ("observations", "actions", "rewards")
_EPISODE_ARRAYS = {"terminated": np.bool_, "truncated": np.bool_, "episode_offsets": np.int64}
_FORMAT = "sb3_dmamba.Trajectories"

RowTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def row_types(fields: Mapping[str, Any]) -> RowTypes:
    """Return dtype and shape of one step in each of :data:`STEP_ARRAYS`.

    Args:
        fields: ``observation_space``, ``action_space`` and ``frame_stack`` of the data.
    """
    space, action_space = fields["observation_space"], fields["action_space"]
    discrete = isinstance(action_space, spaces.Discrete)
    return {
        "observations": (
            np.dtype(observation_dtype(space)),
            frame_shape(space, fields["frame_stack"]),
        ),
        "actions": (np.dtype(np.int64 if discrete else np.float32), action_space.shape or ()),
        "rewards": (np.dtype(np.float32), ()),
    }


def header_to_json(fields: Mapping[str, Any], n_episodes: int, n_steps: int) -> dict[str, Any]:
    """Return what :data:`HEADER_NAME` says about data of these fields."""
    counts = {"n_episodes": n_episodes, "n_steps": n_steps}
    written = {"format": _FORMAT, "format_version": FORMAT_VERSION, **counts, **fields}
    for name in ("observation_space", "action_space"):
        written[name] = space_to_json(fields[name])
    return written


def read_store(folder: Path) -> dict[str, Any]:
    """Return the fields of a store's :class:`Trajectories`; steps are mapped, not read.

    Raises:
        DatasetError: A file is missing or damaged, names it, or of a newer version.
    """
    path = folder / HEADER_NAME
    if not path.is_file():
        raise DatasetError(f"there is no {path}: give a folder that Trajectories.save wrote")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{path} is not readable JSON ({error}): save the data anew") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise DatasetError(f"{path} is not the header of a store: it has no format {_FORMAT!r}")
    version = header.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise DatasetError(
            f"{path} has format version {version!r}, and this sb3_dmamba reads 1 to "
            f"{FORMAT_VERSION}: upgrade with pip install -U sb3-dmamba"
        )
    fields = _read_fields(path, header)
    n_episodes, n_steps = (_count(path, header, name) for name in ("n_episodes", "n_steps"))
    arrays: dict[str, ndarray] = {
        name: map_npy(folder / f"{name}.npy", dtype, (n_steps, *shape))
        for name, (dtype, shape) in row_types(fields).items()
    }
    for name, kind in _EPISODE_ARRAYS.items():
        length = n_episodes + (name == "episode_offsets")
        arrays[name] = np.array(map_npy(folder / f"{name}.npy", np.dtype(kind), (length,)))
    try:
        check_offsets(arrays["episode_offsets"], n_steps)
    except DatasetError as error:
        raise DatasetError(f"{folder / 'episode_offsets.npy'}: {error}") from error
    return {**arrays, **fields}


def _read_fields(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    try:
        observation_space = space_from_json(_expect(path, header, "observation_space", dict))
        action_space = check_action_space(
            space_from_json(_expect(path, header, "action_space", dict))
        )
        if not isinstance(observation_space, spaces.Box):
            raise SpaceError(f"the observation space is {observation_space} and must be a Box")
        frame_stack = check_frame_stack(header.get("frame_stack"), observation_space)
    except (SpaceError, DatasetError) as error:
        raise DatasetError(f"{path}: {error}") from error
    return {
        "observation_space": observation_space,
        "action_space": action_space,
        "env_id": _expect(path, header, "env_id", str, type(None)),
        "env_kwargs": _expect(path, header, "env_kwargs", dict),
        "source": _expect(path, header, "source", str),
        "frame_stack": frame_stack,
    }


def _expect(path: Path, header: Mapping[str, Any], name: str, *kinds: type[Any]) -> Any:
    if name not in header or not isinstance(header[name], kinds):
        kind = " or ".join(kind.__name__ for kind in kinds)
        raise DatasetError(
            f"{path} has {name}={header.get(name)!r}, and {kind} was expected: it was "
            f"changed; save the data anew"
        )
    return header[name]


def _count(path: Path, header: Mapping[str, Any], name: str) -> int:
    count: int = _expect(path, header, name, int)
    if isinstance(count, bool) or count < 1:
        raise DatasetError(f"{path} has {name}={count!r}, and a positive number was expected")
    return count


def check_place(folder: Path, overwrite: bool) -> None:
    """Check that a store may be put there.

    Raises:
        DatasetError: There is something else, or a store that may not be replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file: give a folder's name for the store")
    contents = {path.name for path in folder.iterdir()}
    if contents and HEADER_NAME not in contents:
        raise DatasetError(f"{folder} holds something else than a store: name another")
    if contents and not overwrite:
        raise DatasetError(
            f"{folder} holds a store already: name another folder, or pass overwrite=True "
            f"(--overwrite)"
        )


def move_into_place(temporary: Path, folder: Path) -> None:
    """Rename a finished store; one that is there already goes away once the new one is whole."""
    # mkdtemp's folders are private; a store has the permissions any new folder has.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not folder.exists():
        temporary.replace(folder)
        return
    old = Path(tempfile.mkdtemp(suffix=".old", prefix=".", dir=folder.parent))
    folder.replace(old / "store")
    try:
        temporary.replace(folder)
    except OSError:
        (old / "store").replace(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


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


def save_store(
    trajectories: Trajectories, folder: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """See :meth:`Trajectories.save`."""
    fields = {
        field.name: getattr(trajectories, field.name)
        for field in dataclasses.fields(trajectories)
        if field.name not in ARRAYS
    }
    with TrajectoriesWriter(folder, overwrite=overwrite, **fields) as writer:
        writer.append_all(trajectories)
        writer.finish()


def load_store(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
    """See :meth:`Trajectories.open`."""
    path = Path(folder).expanduser()
    fields = read_store(path)
    if not verify:
        return assemble(Trajectories, fields)
    try:
        return Trajectories(**fields)
    except DatasetError as error:
        raise DatasetError(f"the store {path} holds what was never written: {error}") from error


IN_MEMORY_BYTES = 1 << 30
"""Observations above this size go to a temporary file as they are loaded."""

Describe = Callable[[int], str]
"""From the number of steps to where they came from, for people."""


def gather_pieces(pieces: Iterable[Trajectories], source: Describe | None = None) -> Trajectories:
    """Join pieces in memory while they are small, and beyond that in a temporary file.

    Args:
        pieces: Of one dataset, in their order; at least one.
        source: Says where the data came from; None is what the first piece says.

    Raises:
        DatasetError: There is no piece, or no room for the temporary file.
    """
    stream = iter(pieces)
    held: list[Trajectories] = []
    size = 0
    for piece in stream:
        held.append(piece)
        size += piece.observations.nbytes
        if size > IN_MEMORY_BYTES:
            return spill_pieces(chain(_drain(held), stream), source)
    return join_pieces(held, source)


def join_pieces(pieces: list[Trajectories], source: Describe | None = None) -> Trajectories:
    """Join pieces in memory, letting go of each one once it is copied: the list is empty then.

    Raises:
        DatasetError: There is no piece.
    """
    if not pieces:
        raise _no_episode()
    first = pieces[0]
    n_steps = sum(piece.n_steps for piece in pieces)
    arrays = {
        name: np.empty((n_steps, *getattr(first, name).shape[1:]), getattr(first, name).dtype)
        for name in ("observations", "actions", "rewards")
    }
    terminated, truncated, offsets, start = [], [], [np.zeros(1, np.int64)], 0
    for piece in _drain(pieces):
        for name, array in arrays.items():
            array[start : start + piece.n_steps] = getattr(piece, name)
        terminated.append(piece.terminated)
        truncated.append(piece.truncated)
        offsets.append(piece.episode_offsets[1:] + start)
        start += piece.n_steps
    return replace(
        first,
        **arrays,
        terminated=np.concatenate(terminated),
        truncated=np.concatenate(truncated),
        episode_offsets=np.concatenate(offsets),
        source=first.source if source is None else source(n_steps),
    )


def write_pieces(
    pieces: Iterable[Trajectories],
    folder: Path,
    *,
    overwrite: bool = False,
    source: Describe | None = None,
    bar: Bar | None = None,
) -> Trajectories:
    """Write pieces of one dataset, in their order, to one store.

    Args:
        pieces: With the same spaces and environment; at least one.
        folder: The store's.
        overwrite: Whether a store that is there already is replaced.
        source: Says where the data came from; None is what the first piece says.
        bar: Is told of every step that was written.

    Returns:
        The store, opened.

    Raises:
        DatasetError: There is no piece, or the store cannot be put there.
        OSError: The disk is full.
    """
    stream = iter(pieces)
    first = next(stream, None)
    if first is None:
        raise _no_episode()
    with TrajectoriesWriter(folder, overwrite=overwrite, **_describe(first)) as writer:
        for piece in chain([first], stream):
            writer.append_all(piece)
            if bar is not None:
                bar.advance(piece.n_steps)
        return writer.finish(source=None if source is None else source(writer.n_steps))


def spill_pieces(pieces: Iterable[Trajectories], source: Describe | None = None) -> Trajectories:
    """Put pieces into a temporary file, which goes away with the process.

    Raises:
        DatasetError: There is no piece, or no room for them.
    """
    place = _folder_on_disk()
    try:
        with tempfile.TemporaryDirectory(
            prefix="sb3_dmamba-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            return write_pieces(pieces, Path(folder) / "store", source=source)
    except OSError as error:
        raise DatasetError(
            f"the dataset does not fit into memory, and not into {place} either ({error}): set "
            f"TMPDIR to a folder on a larger disk, or convert it to a store there with "
            f"'dmamba data convert'"
        ) from error


def cut_into_pieces(data: Trajectories) -> Iterator[Trajectories]:
    """Yield a dataset in pieces of whole episodes, views of its arrays."""
    rows = (data.observations, data.actions)
    size = max(1, sum(array[:1].nbytes for array in rows))
    offsets = data.episode_offsets
    first = 0
    while first < len(data):
        last = int(np.searchsorted(offsets, offsets[first] + CHUNK_BYTES // size, side="right")) - 1
        last = max(last, first + 1)
        yield data[first:last]
        first = last


def _describe(piece: Trajectories) -> dict[str, Any]:
    names = ("observation_space", "action_space", "env_id", "env_kwargs", "source", "frame_stack")
    return {name: getattr(piece, name) for name in names}


def _drain(held: list[Trajectories]) -> Iterator[Trajectories]:
    held.reverse()
    while held:
        yield held.pop()


def _folder_on_disk() -> Path:
    """Return where large temporary files go: /tmp is memory on many machines."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    lasting = Path("/var/tmp")
    if not named and lasting.is_dir() and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def _no_episode() -> DatasetError:
    return DatasetError("there is no episode: the dataset needs at least one step")


_SHARED = ("observation_space", "action_space", "frame_stack", "env_id", "env_kwargs")


def join_trajectories(parts: Iterable[Trajectories], source: str | None = None) -> Trajectories:
    """Return the episodes of several datasets, one dataset's after the other's.

    Args:
        parts: Datasets with the same spaces, frame stack and environment; at least one. They are
            copied: into memory, or into a temporary file where they are large.
        source: What the whole is called in summaries and reports; None lists the parts' sources.

    Raises:
        DatasetError: There is no dataset, two of them do not fit together, or there is no room for
            the temporary file.
    """
    datasets = list(parts)
    if not datasets:
        raise DatasetError("join_trajectories([]): give at least one dataset")
    first = datasets[0]
    for number, other in enumerate(datasets):
        for name in _SHARED:
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise DatasetError(
                    f"dataset {number} has {name}={theirs}, and the first has {ours}: "
                    f"join datasets of one environment"
                )
    named = " and ".join(dict.fromkeys(part.source for part in datasets if part.source))
    return gather_pieces(datasets, lambda _: named if source is None else source)
