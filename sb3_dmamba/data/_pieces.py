"""From pieces of a dataset, each small enough for memory, to the whole on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from sb3_dmamba.data._checks import CHUNK_BYTES
from sb3_dmamba.data._collecting import folder_on_disk
from sb3_dmamba.data._progress import Bar
from sb3_dmamba.data.store import TrajectoriesWriter
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["IN_MEMORY_BYTES", "cut_into_pieces", "gather_pieces", "write_pieces"]

IN_MEMORY_BYTES = 1 << 31
"""Observations above this size go to a temporary file as they are loaded."""


def write_pieces(
    pieces: Iterable[Trajectories],
    folder: Path,
    *,
    overwrite: bool = False,
    source: str | None = None,
    bar: Bar | None = None,
) -> Trajectories:
    """Write pieces of one dataset, in their order, to one store.

    Args:
        pieces: With the same spaces and environment; at least one.
        folder: The store's.
        overwrite: Whether a store that is there already is replaced.
        source: Where the data came from, for people; None is what the first piece says.
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
        raise DatasetError("there is no episode: the dataset needs at least one step")
    with TrajectoriesWriter(
        folder,
        observation_space=first.observation_space,
        action_space=first.action_space,
        env_id=first.env_id,
        env_kwargs=first.env_kwargs,
        source=first.source if source is None else source,
        frame_stack=first.frame_stack,
        overwrite=overwrite,
    ) as writer:
        for piece in chain([first], stream):
            writer.append_all(piece)
            if bar is not None:
                bar.advance(piece.n_steps)
        return writer.finish()


def gather_pieces(pieces: Iterable[Trajectories]) -> Trajectories:
    """Put pieces into a temporary file, which goes away with the process.

    Raises:
        DatasetError: There is no room for it.
    """
    place = folder_on_disk()
    try:
        with tempfile.TemporaryDirectory(
            prefix="sb3_dmamba-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            return write_pieces(pieces, Path(folder) / "store")
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
