"""From pieces of a dataset, each small enough for memory, to the whole: there or on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmamba.data._checks import CHUNK_BYTES
from sb3_dmamba.data._progress import Bar
from sb3_dmamba.data.store.writer import TrajectoriesWriter
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import replace
from sb3_dmamba.errors import DatasetError

__all__ = [
    "IN_MEMORY_BYTES",
    "cut_into_pieces",
    "gather_pieces",
    "join_pieces",
    "spill_pieces",
    "write_pieces",
]

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
