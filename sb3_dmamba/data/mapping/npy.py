"""Files in NumPy's ``.npy`` format: written before their length is known, mapped when read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from numpy.lib import format as npy

from sb3_dmamba.data.mapping.mapped import map_file
from sb3_dmamba.errors import DatasetError

__all__ = ["NpyStream", "map_npy"]

_LONGEST = 10**18  # rows that the header leaves room for
_BUFFER_BYTES = 1 << 20
# What NumPy raises at a damaged header, which it parses as Python.
_DAMAGE = (ValueError, TypeError, LookupError, EOFError, OSError, SyntaxError, TokenError)


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
        return map_file(file, dtype, shape, start, path)
