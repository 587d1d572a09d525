"""Memory-mapped arrays and frame stacks, read in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from gymnasium import spaces
from jaxtyping import Int64, Shaped, UInt8
from numpy import ndarray
from numpy.lib import format as npy

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import DatasetError, SpaceError

if TYPE_CHECKING:
    from sb3_dmamba.data.trajectories import Trajectories


SCRATCH_BYTES = 1 << 23
"""Above this size, what is made of a mapped array becomes a mapped temporary file."""

_CHUNK_BYTES = 1 << 22
_LONGEST = 10**18  # rows that the header of a stream leaves room for
_BUFFER_BYTES = 1 << 20
# What NumPy raises at a damaged header, which it parses as Python.
_DAMAGE = (ValueError, TypeError, LookupError, EOFError, OSError, SyntaxError, TokenError)

# Of what this package mapped: the file, or the folder of a temporary file, which has no name.
_FILES: WeakKeyDictionary[mmap.mmap, MappedReference | Path] = WeakKeyDictionary()


def is_mapped(array: ndarray) -> bool:
    """Say whether an array lies in a file, and may therefore be larger than memory."""
    return isinstance(array, np.memmap) and _mapping(array) is not None


def as_array(values: Any) -> ndarray:
    """Return ``np.asarray(values)``, but a memory map as it is."""
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
    """Concatenate pieces that were made of an array, in memory or on disk.

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
        array = np.memmap(handle, dtype, "r", 0, shape)
    _FILES[_mapping(array)] = folder
    return array


def _folder_beside(array: ndarray) -> Path:
    """Return where there is room for data of a mapped array's size."""
    file = _FILES.get(_mapping(array))
    name = getattr(array, "filename", None)
    folder = file if isinstance(file, Path) else Path(name).parent if name else None
    if folder is None or not os.access(folder, os.W_OK):
        return Path(tempfile.gettempdir())
    return folder


def _mapping(array: ndarray) -> Any:
    return getattr(array, "_mmap", None)


class NpyStream:
    """Writes rows one after the other; the header, which has their number, comes last.

    Args:
        path: The file, which must not exist.
        dtype: Of the array.
        row_shape: Shape of one row.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._dtype, self._row_shape = dtype, row_shape
        self._n_rows = 0
        self._header_size = len(_header(dtype, (_LONGEST, *row_shape), 0))
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        self._file.write(b"\0" * self._header_size)

    def write(self, rows: Shaped[ndarray, "T *row"]) -> None:
        """Append rows, which have the stream's dtype and shape."""
        assert rows.dtype == self._dtype, (rows.dtype, self._dtype)
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        self._file.write(np.ascontiguousarray(rows).data.cast("B"))
        self._n_rows += len(rows)

    def finish(self) -> None:
        """Write the header and close the file, once it is on the disk."""
        self._file.seek(0)
        self._file.write(_header(self._dtype, (self._n_rows, *self._row_shape), self._header_size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # of a full disk; the file is about to be removed
            self._file.close()


def _header(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> bytes:
    """Return a header of version 1.0, of a multiple of 64 bytes and at least ``size``.

    Source: numpy.lib.format, "Format Version 1.0".
    """
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    text = repr(described).encode("latin1")
    start = len(npy.magic(1, 0)) + 2
    size = max(size, -(-(start + len(text) + 1) // 64) * 64)
    text = text.ljust(size - start - 1) + b"\n"
    return bytes(npy.magic(1, 0)) + len(text).to_bytes(2, "little") + text


def map_npy(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.memmap[Any, np.dtype[Any]]:
    """Map a file read-only, once it is what it should be; none of its rows is read.

    Args:
        path: The file.
        dtype: What it must hold.
        shape: What it must hold.

    Raises:
        DatasetError: It is missing, no ``.npy`` file, cut off or holds something else; names it.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing from the store: copy the whole folder again")
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            found_shape, fortran_order, found_dtype = read_header[version](file)
        except _DAMAGE as error:
            raise DatasetError(
                f"{path} has no readable .npy header ({error}): copy the whole store again"
            ) from error
        if (found_shape, found_dtype) != (shape, dtype) or fortran_order:
            order = ", column by column" if fortran_order else ""
            raise DatasetError(
                f"{path} holds {found_dtype} of shape {found_shape}{order}, and the store's "
                f"header says {dtype} of shape {shape}: they do not belong together"
            )
        start = file.tell()
        expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise DatasetError(
                f"{path} is {size} bytes long and should be {expected}: it was cut off or "
                f"changed; copy it again"
            )
        return _map_file(file, dtype, shape, start, path)


def _map_file(
    handle: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, path: Path
) -> np.memmap[Any, Any]:
    """Map a file read-only, and remember it for pickles of the array."""
    array = np.memmap(handle, dtype, "r", offset, shape)
    status = os.fstat(handle.fileno())
    _FILES[_mapping(array)] = MappedReference(
        path.absolute(), dtype.str, shape, offset, status.st_size, status.st_mtime_ns
    )
    return array


def write_state(trajectories: Trajectories) -> dict[str, Any]:
    """Return the fields of a dataset to pickle: of a store's arrays, their place on disk."""
    names = [field.name for field in dataclasses.fields(trajectories)]
    state = {name: getattr(trajectories, name) for name in names}
    for name in ("observations", "actions", "rewards"):
        array = state[name]
        if is_mapped(array):
            # a temporary file has no name by which another process could find it
            state[name] = _refer_to(array) or np.array(array)
    return state


def read_state(trajectories: Trajectories, state: Mapping[str, Any]) -> None:
    """Set the fields of a dataset from its pickle; arrays of a store are mapped again.

    Raises:
        DatasetError: The store is not there any more, or was written anew; names the file.
    """
    for name, value in state.items():
        array = value.open() if isinstance(value, MappedReference) else value
        object.__setattr__(trajectories, name, array)


@dataclass(frozen=True)
class MappedReference:
    """Where a mapped array lies, so that another process can map it too.

    Args:
        path: The file.
        dtype: Of the array, as NumPy writes it.
        shape: Of the array.
        offset: Bytes before the array.
        size: Of the file, in bytes.
        modified: When the file was written, in nanoseconds.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    modified: int

    def open(self) -> np.memmap[Any, Any]:
        """Map the array.

        Raises:
            DatasetError: The file is not there any more, or is another.
        """
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise DatasetError(
                f"{self.path} cannot be opened ({error.strerror}): the dataset is a store, of "
                f"which a pickle holds the place; keep it there, or pickle a copy in memory"
            ) from error
        with handle:
            if not self.describes(os.fstat(handle.fileno())):
                raise DatasetError(
                    f"{self.path} was written anew since the dataset was pickled: open the store "
                    f"again with Trajectories.open"
                )
            return _map_file(handle, np.dtype(self.dtype), self.shape, self.offset, self.path)

    def describes(self, status: os.stat_result) -> bool:
        """Whether a file with this status is the one that was mapped."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def _refer_to(array: ndarray) -> MappedReference | None:
    """Return where an array lies; None unless this package mapped it from a file still there."""
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
    offset = first + _address(array) - _address(mapped)
    return dataclasses.replace(file, dtype=array.dtype.str, shape=array.shape, offset=offset)


def _address(array: ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def check_frame_stack(frame_stack: Any, space: spaces.Box) -> int:
    """Return the number of frames in an observation, as an int.

    Args:
        frame_stack: At least 1, which means that observations are stored as they are.
        space: What the policy sees: (frame_stack, *frame) uint8 where it is more than 1.

    Raises:
        DatasetError: It is not a positive integer.
        SpaceError: The space does not hold that many frames.
    """
    count = check_integer("frame_stack", frame_stack, 1, error=DatasetError)
    if count > 1 and (space.dtype != np.uint8 or len(space.shape) < 2 or space.shape[0] != count):
        raise SpaceError(
            f"frame_stack={count} and the observation space is {space}: give the Box of what the "
            f"policy sees, of shape ({count}, *frame) and dtype uint8"
        )
    return count


def frame_shape(space: spaces.Box, frame_stack: int) -> tuple[int, ...]:
    """Return the shape of what is stored for one step."""
    return space.shape if frame_stack == 1 else space.shape[1:]


def gather_stacks(
    frames: UInt8[ndarray, "N *frame"],
    steps: Int64[ndarray, "M"],
    first_steps: Int64[ndarray, "M"],
    frame_stack: int,
) -> UInt8[ndarray, "M S *frame"]:
    """Copy the frames up to each step into stacks.

    Args:
        frames: Single frames of all episodes; may be memory-mapped.
        steps: Flat indices of steps.
        first_steps: First step of the episode that each of them belongs to.
        frame_stack: Frames in a stack, S.

    Returns:
        Oldest frame first, zeros where the episode had not begun.
    """
    rows = steps[:, None] + np.arange(1 - frame_stack, 1)  # (M, S)
    before = rows < first_steps[:, None]
    rows[before] = steps[0]  # any that is needed anyway
    stacks = np.empty((*rows.shape, *frames.shape[1:]), dtype=frames.dtype)
    frames.take(rows, axis=0, out=stacks, mode="clip")  # "raise" would copy once more
    if before.any():
        stacks[before] = 0
    return stacks
