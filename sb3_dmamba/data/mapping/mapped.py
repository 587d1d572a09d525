"""Memory-mapped arrays: reading them without keeping their pages, and making new ones of them.

Pages of a mapping that were touched count as the process's memory until the kernel wants them
back. What reads much of an array goes through here: files that this package mapped are read with
``pread`` into private memory, so none of their pages is ever mapped in; pages of anybody else's
read-only map are handed back after each read. Arrays in memory cost nothing more than before.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from sb3_dmamba.errors import DatasetError

__all__ = [
    "as_array",
    "convert_rows",
    "file_behind",
    "is_mapped",
    "iterate_rows",
    "join_rows",
    "map_file",
    "read_rows",
    "take_rows",
]

SCRATCH_BYTES = 1 << 23
"""Above this size, what is made of a mapped array becomes a mapped temporary file."""

_CHUNK_BYTES = 1 << 22

_HAS_PREAD = hasattr(os, "preadv")  # not on Windows, where plain mapped reads do


@dataclass(frozen=True)
class MappedFile:
    """The file behind a mapping.

    Args:
        descriptor: Of the open file; closed when the mapping goes.
        address: Where in memory the file's first byte would be.
        name: For messages.
        folder: Where there is room for more data of its size.
        path: The file, where it has a name.
    """

    descriptor: int
    address: int
    name: str
    folder: Path
    path: Path | None


_FILES: WeakKeyDictionary[mmap.mmap, MappedFile] = WeakKeyDictionary()


def map_file(
    handle: IO[bytes],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    place: Path,
) -> np.memmap[Any, Any]:
    """Map an open file read-only, and remember it so that rows can be read without the map.

    Args:
        handle: The open file, which the caller may close afterwards.
        dtype: Of the array.
        shape: Of the array.
        offset: Bytes before the array.
        place: The file; a folder where it has no name. There :func:`join_rows` may put what is
            made of the array.

    Returns:
        The array.
    """
    array = np.memmap(handle, dtype, "r", offset, shape)
    mapping = array._mmap  # type: ignore[attr-defined]
    descriptor = os.dup(handle.fileno())
    finalize(mapping, os.close, descriptor).atexit = False
    address = array.ctypes.data - offset
    if place.is_dir():
        name = f"a temporary file in {place}"
        _FILES[mapping] = MappedFile(descriptor, address, name, place, None)
    else:
        _FILES[mapping] = MappedFile(
            descriptor, address, str(place), place.parent, place.absolute()
        )
    return array


def is_mapped(array: ndarray) -> bool:
    """Say whether an array lies in a file, and may therefore be larger than memory."""
    return isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None


def as_array(values: Any) -> ndarray:
    """Return ``np.asarray(values)``, but a memory map as it is."""
    return values if isinstance(values, np.memmap) else np.asarray(values)


def read_rows(array: Shaped[ndarray, "N *rest"], start: int, stop: int) -> ndarray:
    """Return consecutive rows: a view of an array in memory, a private copy of a mapped one's."""
    file = file_behind(array)
    if file is not None:
        stop = min(stop, len(array))
        rows = np.empty((max(stop - start, 0), *array.shape[1:]), array.dtype)
        _read_into(file, array, start, rows)
        return rows
    rows = array[start:stop]
    if _is_read_only_map(array):
        rows = np.array(rows)
        _release(array)
    return rows


def take_rows(
    array: Shaped[ndarray, "N *rest"], steps: Int64[ndarray, "*where"], out: ndarray
) -> None:
    """Gather rows, as ``array.take(steps, axis=0, out=out, mode="clip")`` does.

    Runs of consecutive steps of a mapped array, such as windows are made of, are read at once.

    Args:
        array: Where from.
        steps: Row numbers; those outside the array give its first or last row.
        out: Where to, (*where, *rest), contiguous, of the array's dtype.

    Raises:
        DatasetError: The file behind the array has become shorter.
    """
    file = file_behind(array)
    if file is None:
        # "raise" instead of "clip" would copy once more.
        array.take(steps, axis=0, out=out, mode="clip")
        if _is_read_only_map(array):
            _release(array)
        return
    flat = np.clip(steps.reshape(-1), 0, len(array) - 1)
    firsts = [0, *(np.flatnonzero(np.diff(flat) != 1) + 1).tolist()]  # of runs
    rows = out.reshape(len(flat), *array.shape[1:])
    for first, end in zip(firsts, [*firsts[1:], len(flat)], strict=True):
        _read_into(file, array, int(flat[first]), rows[first:end])


def join_rows(
    pieces: Iterable[ndarray], dtype: np.dtype[Any], shape: tuple[int, ...], source: ndarray
) -> ndarray:
    """Join pieces that were made of an array, one after the other.

    Args:
        pieces: Rows, which are asked for one piece at a time.
        dtype: Of the result.
        shape: Of the result.
        source: What the pieces were made of. Where it is mapped and the result is large, so is
            the result: it becomes a file without a name, on the same disk if that can be written
            to, that goes when the array goes.

    Raises:
        OSError: The disk is full.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not is_mapped(source) or size <= SCRATCH_BYTES:
        joined = np.empty(shape, dtype)
        start = 0
        for piece in pieces:
            joined[start : start + len(piece)] = piece
            start += len(piece)
        return joined
    folder = _folder_beside(source)
    with tempfile.TemporaryFile(dir=folder) as handle:
        for piece in pieces:
            handle.write(np.ascontiguousarray(piece, dtype).data.cast("B"))
        handle.flush()
        return map_file(handle, dtype, shape, 0, folder)


def convert_rows(array: Shaped[ndarray, "N *rest"], dtype: np.dtype[Any]) -> ndarray:
    """Return ``array.astype(dtype, copy=False)``, mapped where a large map must be converted."""
    if array.dtype == dtype or not is_mapped(array):
        return array.astype(dtype, copy=False)
    chunks = (rows.astype(dtype) for rows in iterate_rows(array))
    return join_rows(chunks, dtype, array.shape, array)


def iterate_rows(array: Shaped[ndarray, "N *rest"]) -> Iterator[ndarray]:
    """Yield all rows, in order, as many at once as take little memory."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    return (read_rows(array, first, first + step) for first in range(0, len(array), step))


def _folder_beside(array: ndarray) -> Path:
    """Return where there is room for data of a mapped array's size."""
    file = file_behind(array)
    name = getattr(array, "filename", None)
    folder = file.folder if file is not None else Path(name).parent if name else None
    if folder is None or not os.access(folder, os.W_OK):
        return Path(tempfile.gettempdir())
    return folder


def file_behind(array: ndarray) -> MappedFile | None:
    """Return the file that an array is read from; None where this package did not map it."""
    if not _HAS_PREAD or not isinstance(array, np.memmap) or not array.flags.c_contiguous:
        return None
    mapping = getattr(array, "_mmap", None)
    return None if mapping is None else _FILES.get(mapping)


def _is_read_only_map(array: ndarray) -> bool:
    return isinstance(array, np.memmap) and array.mode == "r"


def _release(array: ndarray) -> None:
    """Hand back the pages of a read-only map; what is read again comes from the page cache."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _read_into(file: MappedFile, array: ndarray, first: int, rows: ndarray) -> None:
    """Fill ``rows``, which are contiguous, with the array's from ``first`` on."""
    if not rows.size:
        return
    start = array.__array_interface__["data"][0] - file.address
    position = start + first * array.strides[0]
    view = rows.data.cast("B")
    while view:
        count = os.preadv(file.descriptor, [view], position)
        if count == 0:
            raise DatasetError(
                f"{file.name} ends at byte {position}, and was longer when it was opened: it was "
                f"changed since; do not write to a store that is in use"
            )
        view, position = view[count:], position + count
