"""Memory-mapped arrays: converted and joined in bounded memory, pickled as their place on disk."""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from sb3_dmamba.errors import DatasetError

SCRATCH_BYTES = 1 << 23
"""Above this size, what is made of a mapped array becomes a mapped temporary file."""

_CHUNK_BYTES = 1 << 22

# Of what this package mapped: the file, or the folder of a temporary file, which has no name.
_FILES: WeakKeyDictionary[mmap.mmap, MappedReference | Path] = WeakKeyDictionary()


def is_mapped(array: Any) -> bool:
    """Whether an array lies in a file, and may therefore be larger than memory."""
    return isinstance(array, np.memmap) and _mapping(array) is not None


def _mapping(array: ndarray) -> Any:
    return getattr(array, "_mmap", None)


def as_array(values: Any, name: str = "the array") -> ndarray:
    """Return ``np.asarray(values)``, but a memory map as it is; a masked value is refused."""
    parts = values if isinstance(values, (list, tuple)) else (values,)
    for part in parts:
        if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
            count = int(np.ma.getmaskarray(part).sum())
            problem = f"{name}: {count} values are masked: fill them in, or leave out those steps"
            raise DatasetError(problem, setting=name, value=np.ma.MaskedArray)
    return values if isinstance(values, np.memmap) else np.asarray(values)


def iterate_rows(array: Shaped[ndarray, "N *rest"]) -> Iterator[ndarray]:
    """Yield all rows, in order, as many at once as take little memory."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    return (array[first : first + step] for first in range(0, len(array), step))


def convert_rows(array: Shaped[ndarray, "N *rest"], dtype: np.dtype[Any]) -> ndarray:
    """Return ``array.astype(dtype, copy=False)``, mapped where a large map must be converted."""
    if array.dtype == dtype or not is_mapped(array):
        return array.astype(dtype, copy=False)
    chunks = (rows.astype(dtype) for rows in iterate_rows(array))
    return join_rows(chunks, dtype, array.shape, array)


def join_rows(
    pieces: Iterable[ndarray], dtype: np.dtype[Any], shape: tuple[int, ...], source: ndarray
) -> ndarray:
    """Concatenate rows that were made of an array, in memory or on disk.

    Where the source is mapped and the result is large, the result is mapped too: a temporary file,
    beside the source's if that folder can be written to, which is deleted with the array.
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
        array = np.memmap(handle, dtype, "r", 0, shape)
    _FILES[_mapping(array)] = folder
    return array


def _folder_beside(array: ndarray) -> Path:
    """Return a folder with room for data of a mapped array's size."""
    file = _FILES.get(_mapping(array))
    name = getattr(array, "filename", None)
    folder = file if isinstance(file, Path) else Path(name).parent if name else None
    if folder is None or not os.access(folder, os.W_OK):
        return Path(tempfile.gettempdir())
    return folder


def map_file(
    handle: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, path: Path
) -> np.memmap[Any, Any]:
    """Map a file read-only, so that the array is pickled as its place."""
    array = np.memmap(handle, dtype, "r", offset, shape)
    status = os.fstat(handle.fileno())
    _FILES[_mapping(array)] = MappedReference(
        path.absolute(), dtype.str, shape, offset, status.st_size, status.st_mtime_ns
    )
    return array


def to_pickled(value: Any) -> Any:
    """Return what to pickle for a value: of an array of a store, its place on disk."""
    if not is_mapped(value):
        return value
    # another process cannot find a temporary file, which has no name
    return _refer_to(value) or np.array(value)


def from_pickled(value: Any) -> Any:
    """Return the value that :func:`to_pickled` took; arrays of a store are mapped again."""
    return value.open() if isinstance(value, MappedReference) else value


@dataclass(frozen=True)
class MappedReference:
    """The place of a mapped array, for another process to map it too."""

    path: Path
    dtype: str  # as NumPy writes it
    shape: tuple[int, ...]
    offset: int  # bytes before the array
    size: int  # of the file, in bytes
    modified: int  # when the file was written, in nanoseconds

    def open(self) -> np.memmap[Any, Any]:
        """Map the array."""
        problem = "was written anew since the dataset was pickled: open it with Trajectories.open"
        try:
            handle = self.path.open("rb")
        except OSError as error:
            problem = f"cannot be opened ({error.strerror}): a pickled store must stay there"
            raise DatasetError(f"{self.path} {problem}", path=self.path) from error
        with handle:
            if not self.describes(os.fstat(handle.fileno())):
                raise DatasetError(f"{self.path} {problem}", path=self.path)
            return map_file(handle, np.dtype(self.dtype), self.shape, self.offset, self.path)

    def describes(self, status: os.stat_result) -> bool:
        """Whether a file with this status is the one that was mapped."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def _refer_to(array: ndarray) -> MappedReference | None:
    """Return an array's place; None unless :func:`map_file` mapped it from a file still there."""
    file = _FILES.get(_mapping(array))
    if not isinstance(file, MappedReference) or not array.flags.c_contiguous:
        return None
    try:
        if not file.describes(file.path.stat()):
            return None  # replaced by another store; this one lives on without a name
    except OSError:
        return None
    mapped = np.frombuffer(_mapping(array), np.uint8)
    first = file.offset - file.offset % mmap.ALLOCATIONGRANULARITY  # byte where the map begins
    addresses = (each.__array_interface__["data"][0] for each in (array, mapped))
    offset = first + next(addresses) - next(addresses)
    return dataclasses.replace(file, dtype=array.dtype.str, shape=array.shape, offset=offset)
