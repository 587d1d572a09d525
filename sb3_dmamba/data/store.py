"""Files of a dataset store: a JSON header and one ``.npy`` file an array, mapped when read."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Mapping
from gzip import GzipFile
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from filelock import FileLock
from gymnasium import spaces
from jaxtyping import Shaped
from numpy import ndarray
from numpy.lib import format as npy

from sb3_dmamba.data.mapping import iterate_rows, map_file
from sb3_dmamba.data.validation import (
    ARRAYS,
    check_flat,
    check_frame_stack,
    check_offsets,
    frame_shape,
    within,
)
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, observation_dtype, space_from_json, space_to_json

FORMAT_VERSION = 1
HEADER_NAME = "trajectories.json"
_FORMAT = "sb3_dmamba.Trajectories"
_EPISODE_ARRAYS = {"terminated": np.bool_, "truncated": np.bool_, "episode_offsets": np.int64}
_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "observation_space": (dict,),
    "action_space": (dict,),
    "env_id": (str, type(None)),
    "env_kwargs": (dict,),
    "source": (str,),
    "n_episodes": (int,),
    "n_steps": (int,),
}
_LONGEST = 10**18  # rows that the header of a stream leaves room for
_BUFFER_BYTES = 1 << 20
_PARTIAL, _LOCK = ".partial", ".lock"
_NO_LOCK = (OSError, NotImplementedError)  # held by another, or none on this file system
_HERE, _RENAME_EXCHANGE = -100, 2  # of Linux: AT_FDCWD, and a flag of renameat2
_MOST_DIMENSIONS = 32
_LONGEST_HEADER = 10_000  # bytes, as NumPy has it; one of an array has some hundred
# What NumPy raises at a damaged header, which it parses as Python.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, SyntaxError, TokenError, MemoryError, RecursionError),
    OverflowError,
)


def read_store(folder: Path) -> dict[str, Any]:
    """Return the fields of a store's :class:`Trajectories`; steps are mapped, not read."""
    path = folder / HEADER_NAME
    header = _read_header(path)
    fields = _read_fields(path, header)
    n_episodes, n_steps = header["n_episodes"], header["n_steps"]
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
        file = folder / "episode_offsets.npy"
        raise within(error, f"{file}", path=file) from error
    return {**arrays, **fields}


def check_checksums(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Compare the arrays of a store with the checksums in its header, which old ones lack."""
    checksums = _read_header(folder / HEADER_NAME).get("crc32", {})
    for name in ARRAYS if checksums != {} else ():
        found = 0
        for rows in iterate_rows(arrays[name]):
            found = zlib.crc32(np.ascontiguousarray(rows).data.cast("B"), found)
        if not isinstance(checksums, dict) or checksums.get(name) != found:
            problem = "holds other values than were written (its checksum differs): copy it again"
            raise _damaged(folder / f"{name}.npy", problem, name)


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _damaged(path, "is missing: give a folder that Trajectories.save wrote")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path, f"is not readable JSON ({error}): save the data anew") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _damaged(path, f"is not the header of a store: it has no format {_FORMAT!r}")
    version = header.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        problem = (
            f"has format version {version!r}, expected 1 to {FORMAT_VERSION}: pip install -U "
            "sb3-dmamba"
        )
        raise _damaged(path, problem, "format_version", version)
    for name, kinds in _HEADER_TYPES.items():
        value = header.get(name)
        is_right = name in header and isinstance(value, kinds)
        expected = " or ".join(kind.__name__ for kind in kinds)
        if kinds == (int,):
            is_right, expected = type(value) is int and value > 0, "a positive integer"
        if not is_right:
            problem = f"has {name}={value!r}, and {expected} was expected: it was changed; "
            raise _damaged(path, problem + "save the data anew", name, value)
    if header["n_episodes"] > header["n_steps"]:
        problem = "has more episodes than steps: it was changed; save the data anew"
        raise _damaged(path, problem)
    return header


def _read_fields(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: header[name] for name in ("env_id", "env_kwargs", "source")}
    try:
        space = check_flat(space_from_json(header["observation_space"]))
        fields["observation_space"] = space
        fields["action_space"] = check_action_space(space_from_json(header["action_space"]))
        fields["frame_stack"] = check_frame_stack(header.get("frame_stack"), space)
    except (SpaceError, DatasetError) as error:
        raise DatasetError(f"{path}: {error}", path=path, setting=error.setting) from error
    return fields


def map_npy(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.memmap[Any, np.dtype[Any]]:
    """Map an ``.npy`` file of this dtype and shape read-only; none of its rows is read."""
    if not path.is_file():
        raise _damaged(path, "is missing from the store: copy the whole folder again")
    with path.open("rb") as file:
        try:
            found_shape, fortran_order, found_dtype = read_npy_header(file)
        except (ValueError, OSError) as error:
            problem = f"has no readable .npy header ({error}): copy the whole store again"
            raise _damaged(path, problem) from error
        if (found_shape, found_dtype) != (shape, dtype) or fortran_order:
            order = ", column by column" if fortran_order else ""
            found = f"{found_dtype} of shape {found_shape}{order}"
            problem = f"holds {found}, and the store's header says {dtype} of shape {shape}"
            raise _damaged(path, problem)
        start = file.tell()
        expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            problem = f"is {size} bytes long and should be {expected}: copy it again"
            raise _damaged(path, problem)
        return map_file(file, dtype, shape, start, path)


def read_npy_header(file: IO[bytes] | GzipFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and dtype of an ``.npy`` file; ValueError if damaged.

    NumPy reads a header as long as it says it is, up to 4 GB.
    """
    try:
        width, read = {
            (1, 0): (2, npy.read_array_header_1_0),
            (2, 0): (4, npy.read_array_header_2_0),
        }[npy.read_magic(file)]
        length = file.read(width)
        if int.from_bytes(length, "little") > _LONGEST_HEADER:
            raise ValueError("its header is too long")
        header = file.read(int.from_bytes(length, "little"))
        shape, fortran_order, dtype = read(io.BytesIO(length + header))
    except _DAMAGE as error:
        raise ValueError(f"it is not an array as np.save writes it ({error!r})") from error
    if min(shape, default=0) < 0 or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"it is not an array as np.save writes it (of shape {shape})")
    return shape, fortran_order, dtype


def _damaged(
    path: Path, problem: str, setting: str | None = None, value: Any = None
) -> DatasetError:
    return DatasetError(f"{path} {problem}", path=path, setting=setting, value=value)


def row_types(fields: Mapping[str, Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of one step in each array that has a row a step."""
    space, action_space = fields["observation_space"], fields["action_space"]
    discrete = isinstance(action_space, spaces.Discrete)
    seen = np.dtype(observation_dtype(space)), frame_shape(space, fields["frame_stack"])
    return {
        "observations": seen,
        "actions": (np.dtype(np.int64 if discrete else np.float32), action_space.shape or ()),
        "rewards": (np.dtype(np.float32), ()),
    }


def write_header(folder: Path, fields: Mapping[str, Any], **described: Any) -> None:
    """Write the JSON of a store of these fields: ``n_episodes``, ``n_steps`` and ``crc32``."""
    header = {"format": _FORMAT, "format_version": FORMAT_VERSION, **described, **fields}
    for name in ("observation_space", "action_space"):
        header[name] = space_to_json(fields[name])
    with (folder / HEADER_NAME).open("w", encoding="utf-8") as file:
        json.dump(header, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


class NpyStream:
    """Writes rows to a new ``.npy`` file; the header, which has their number, comes last."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._dtype, self._row_shape = dtype, row_shape
        self._n_rows = 0
        self.crc32 = 0  # of the rows
        self._header_size = len(_npy_header(dtype, (_LONGEST, *row_shape), 0))
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        self._file.write(b"\0" * self._header_size)

    def write(self, rows: Shaped[ndarray, "T *row"]) -> None:
        """Append rows, which have the stream's dtype and shape."""
        assert rows.dtype == self._dtype, (rows.dtype, self._dtype)
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        content = np.ascontiguousarray(rows).data.cast("B")
        self.crc32 = zlib.crc32(content, self.crc32)
        self._file.write(content)
        self._n_rows += len(rows)

    def finish(self) -> None:
        """Write the header, flush to the disk and close the file."""
        shape = (self._n_rows, *self._row_shape)
        self._file.seek(0)
        self._file.write(_npy_header(self._dtype, shape, self._header_size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # of a full disk; the file is about to be removed
            self._file.close()


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> bytes:
    """Return a header of version 1.0 (numpy.lib.format) of ``size`` bytes or more, in 64s."""
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    text = repr(described).encode("latin1")
    start = len(npy.magic(1, 0)) + 2
    size = max(size, -(-(start + len(text) + 1) // 64) * 64)
    text = text.ljust(size - start - 1) + b"\n"
    return bytes(npy.magic(1, 0)) + len(text).to_bytes(2, "little") + text


def check_place(folder: Path, overwrite: bool) -> None:
    """Check that a store may be written to a folder."""
    if not folder.exists():
        return
    contents = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    problem = ""
    if not folder.is_dir():
        problem = "is a file: give a folder's name for the store"
    elif contents and HEADER_NAME not in contents:
        problem = "holds something else than a store: name another"
    elif contents and not overwrite:
        problem = "holds a store already: name another folder, or pass overwrite=True (--overwrite)"
    if problem:
        raise DatasetError(f"{folder} {problem}", path=folder)


def make_temporary(folder: Path) -> tuple[Path, FileLock]:
    """Make a hidden folder beside the one given, which it will become, and hold its lock.

    Those that killed processes left behind, whose locks nobody holds, are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{_PARTIAL}"):
        with contextlib.suppress(*_NO_LOCK), FileLock(left / _LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    temporary = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PARTIAL, dir=folder.parent)
    lock = FileLock(Path(temporary) / _LOCK)
    with contextlib.suppress(*_NO_LOCK):
        lock.acquire(timeout=0)
    return Path(temporary), lock


def move_into_place(temporary: Path, folder: Path) -> None:
    """Rename a finished store; an older one is removed after the new one is in place."""
    (temporary / _LOCK).unlink(missing_ok=True)
    # mkdtemp's folders are private; a store has the permissions any new folder has.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not folder.exists():
        temporary.replace(folder)
        return
    if _exchange(temporary, folder):
        shutil.rmtree(temporary, ignore_errors=True)
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders' names in one step, so that a kill leaves both; only Linux can."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    names = os.fsencode(one), os.fsencode(other)
    return swap is not None and swap(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0
