"""Arrays in a .npz file, which are read a piece at a time and never unpickled."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy import ndarray

from sb3_dmamba.data.sources.hdf5 import describe_excess
from sb3_dmamba.data.store import read_npy_header

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy.savez writes
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Archive(Mapping[str, "NpyArray"]):
    """The arrays of a .npz file by name; a context that closes it.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no zip file, or an array in it is damaged.
    """

    def __init__(self, path: Path) -> None:
        with _as_value_errors():
            self._zip = zipfile.ZipFile(path)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._zip)
        self._members = {
            each.filename.removesuffix(".npy"): each
            for each in self._zip.infolist()
            if each.filename.endswith(".npy")
        }
        self._opened: dict[str, NpyArray] = {}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> NpyArray:
        if name not in self._opened:
            member = self._members[name]
            if member.compress_type not in _METHODS:
                raise ValueError(f"it is compressed by method {member.compress_type}, not deflate")
            with _as_value_errors():
                file = self._stack.enter_context(self._zip.open(member))
                self._opened[name] = NpyArray(file, member)
        return self._opened[name]


class NpyArray:
    """An array that lies in a .npz file: its shape and dtype, and its rows on demand."""

    def __init__(self, file: IO[bytes], member: zipfile.ZipInfo) -> None:
        self.shape, self._is_fortran, self.dtype = read_npy_header(file)
        self._file, self._first_byte = file, file.tell()
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        is_whole = self._first_byte + self.nbytes == member.file_size
        if not (is_whole or self.dtype.hasobject):
            found = f"{member.file_size - self._first_byte:,} bytes"
            raise ValueError(f"{found} for an array of {self.dtype} and shape {self.shape}")
        if problem := describe_excess(self.nbytes, member.compress_size):
            raise ValueError(problem)
        self._whole: ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def read_direct(self, target: ndarray, source_rows: slice, target_rows: slice) -> None:
        """Copy rows, as ``h5py.Dataset.read_direct`` does; in Fortran's order all are held."""
        shape, count = self.shape[1:], source_rows.stop - source_rows.start
        if self._is_fortran and self._whole is None:
            flat = self._read(0, self.nbytes)
            self._whole = flat.reshape(self.shape, order="F")
        if self._whole is not None:
            target[target_rows] = self._whole[source_rows]
            return
        row = math.prod(shape) * self.dtype.itemsize
        values = self._read(source_rows.start * row, count * row)
        target[target_rows] = values.reshape(count, *shape)

    def _read(self, start: int, n_bytes: int) -> ndarray:
        with _as_value_errors():
            self._file.seek(self._first_byte + start)
            data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise ValueError(f"the file ends after {len(data):,} of {n_bytes:,} bytes")
        return np.frombuffer(data, self.dtype)


@contextlib.contextmanager
def _as_value_errors() -> Iterator[Any]:
    """Raise what a damaged zip file causes as ValueError."""
    try:
        yield
    except _DAMAGES as error:
        raise ValueError(str(error) or type(error).__name__) from error
