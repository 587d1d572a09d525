"""Join pieces of a dataset in memory, in a temporary file or in a store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from sb3_dmamba.console import Bar
from sb3_dmamba.data.trajectories import Trajectories, TrajectoriesWriter, metadata_of, replace
from sb3_dmamba.data.validation import CHUNK_BYTES, STEP_ARRAYS, group_episodes
from sb3_dmamba.errors import DatasetError

IN_MEMORY_BYTES = 1 << 30
"""Observations above this size go to a temporary file as they are loaded."""

Describe = Callable[[int], str]
"""From the number of steps to where they came from, for people."""


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
        raise DatasetError("join_trajectories([]): give at least one dataset", setting="parts")
    expected = metadata_of(datasets[0])
    for number, other in enumerate(datasets):
        for name, theirs in metadata_of(other).items():
            if name != "source" and theirs != expected[name]:
                problem = f"dataset {number} has {name}={theirs}, the first {expected[name]}"
                raise DatasetError(problem, setting=name, value=theirs)
    named = " and ".join(dict.fromkeys(part.source for part in datasets if part.source))
    return gather_pieces(datasets, lambda _: named if source is None else source)


def gather_pieces(pieces: Iterable[Trajectories], source: Describe | None = None) -> Trajectories:
    """Join pieces of one dataset in memory while they are small, else in a temporary file."""
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
    """Join pieces in memory, letting go of each one once it is copied: the list is empty then."""
    if not pieces:
        raise _no_episode()
    first = pieces[0]
    n_steps = sum(piece.n_steps for piece in pieces)
    arrays = {
        name: np.empty((n_steps, *getattr(first, name).shape[1:]), getattr(first, name).dtype)
        for name in STEP_ARRAYS
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


def _drain(held: list[Trajectories]) -> Iterator[Trajectories]:
    held.reverse()
    while held:
        yield held.pop()


def spill_pieces(pieces: Iterable[Trajectories], source: Describe | None = None) -> Trajectories:
    """Join pieces in a temporary file, which goes away with the process."""
    place = _folder_on_disk()
    try:
        with tempfile.TemporaryDirectory(
            prefix="sb3_dmamba-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            return write_pieces(pieces, Path(folder) / "store", source=source)
    except OSError as error:
        problem = (
            f"the dataset fits neither into memory nor into {place} ({error}): set TMPDIR to a "
            "folder on a larger disk, or convert it there with 'dmamba data convert'"
        )
        raise DatasetError(problem, path=place) from error


def _folder_on_disk() -> Path:
    """Return where large temporary files go: /tmp is memory on many machines."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    lasting = Path("/var/tmp")
    if not named and lasting.is_dir() and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def write_pieces(
    pieces: Iterable[Trajectories],
    folder: Path,
    *,
    overwrite: bool = False,
    source: Describe | None = None,
    bar: Bar | None = None,
) -> Trajectories:
    """Write pieces of one dataset to a store, and open it; ``source`` as :func:`gather_pieces`."""
    stream = iter(pieces)
    first = next(stream, None)
    if first is None:
        raise _no_episode()
    with TrajectoriesWriter(folder, overwrite=overwrite, **metadata_of(first)) as writer:
        for piece in chain([first], stream):
            writer.append_all(piece)
            if bar is not None:
                bar.advance(piece.n_steps)
        return writer.finish(source=None if source is None else source(writer.n_steps))


def _no_episode() -> DatasetError:
    return DatasetError("there is no episode: the dataset needs at least one step")


def cut_into_pieces(data: Trajectories) -> Iterator[Trajectories]:
    """Yield a dataset in pieces of whole episodes, views of its arrays."""
    size = max(1, data.observations[:1].nbytes + data.actions[:1].nbytes)
    for first, last in group_episodes(data.episode_offsets, CHUNK_BYTES // size):
        yield data[first:last]
