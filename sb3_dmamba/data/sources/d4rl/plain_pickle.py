"""Pickles of arrays, read without running anything that they ask for.

Pickle's opcodes can call whatever a file names. Here the only names that exist are those numpy's
arrays are written with, and each stands for a checked function of this module: a file can bring
numbers in lists, tuples, sets and dicts, and nothing else. The reader is Python's own in its
pure form: the compiled one allocates whatever index a file names in its table of objects.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from sb3_dmamba.errors import DatasetError

__all__ = ["PickledArray", "load_plain_pickle", "to_array"]

_NUMBER = re.compile(r"[biufV?]\d*|bool|u?int\d+|float\d+")
_SB3_BUFFER = re.compile(r"(stable_baselines3|sb3_contrib)\..*ReplayBuffer$")
_LEAD = "only pickles of numpy arrays, numbers, texts, lists, tuples and dicts are read"


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain containers and numpy arrays.

    Args:
        path: The file; any protocol.

    Returns:
        The containers, with a :class:`PickledArray` for each array.

    Raises:
        DatasetError: The file is missing, cut or no pickle, or asks for anything else (names it).
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(_Reader(file, path)).load()
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except Exception as error:
        raise DatasetError(
            f"{path} is damaged or no pickle ({type(error).__name__}: {error}): get it again"
        ) from error


def to_array(value: Any) -> ndarray:
    """Return a pickled array, or a list of numbers or of arrays of one shape, as numpy's.

    Raises:
        DatasetError: It holds something else than numbers, or does not fit together.
    """
    if isinstance(value, PickledArray):
        return value.array
    if isinstance(value, (list, tuple)):
        parts = [part.array if isinstance(part, PickledArray) else part for part in value]
        try:
            array = np.array(parts)
        except (ValueError, TypeError, MemoryError, RecursionError) as error:
            raise DatasetError(f"its parts make up no array ({error})") from error
        if array.dtype.kind in "biuf":
            return array
    raise DatasetError(f"it is a {type(value).__name__} without numbers: give an array of numbers")


class PickledArray:
    """An array as a pickle describes it, checked."""

    __slots__ = ("_array", "_problem")

    def __init__(self) -> None:
        self._array: ndarray | None = None
        self._problem = "it has no contents"

    @property
    def array(self) -> ndarray:
        """The array, read-only.

        Raises:
            DatasetError: It holds something else than numbers.
        """
        if self._array is None:
            raise DatasetError(f"{self._problem}: give an array of numbers")
        return self._array

    def fill(self, dtype: Any, shape: Any, raw: Any, fortran: bool) -> None:
        """Take in the contents.

        Raises:
            ValueError: The parts do not fit together.
        """
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise ValueError("an array's dtype or shape is of a wrong kind")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array has the shape {shape}")
        if dtype.value is None:
            self._problem = f"it holds {dtype.name!r}"
            return
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2's bytes
        if not isinstance(raw, (bytes, bytearray)):
            raise ValueError(f"an array's contents are a {type(raw).__name__}")
        if len(raw) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError(
                f"an array of {dtype.name} and shape {shape} has {len(raw)} bytes of contents"
            )
        array: ndarray = np.frombuffer(raw, dtype.value).reshape(
            shape, order="F" if fortran else "C"
        )
        array.flags.writeable = False
        self._array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(dtype, shape, raw, bool(fortran))


class _Dtype:
    """A type of numbers as a pickle describes it; ``value`` is None where it is another type."""

    __slots__ = ("name", "value")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = np.dtype(name) if _NUMBER.fullmatch(name) else None
        if self.value is not None and self.value.kind not in "biuf":
            self.value = None

    def __setstate__(self, state: Any) -> None:
        order, *parts = state[1:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts):
            self.value = None
        elif self.value is not None and order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Function:
    """What a pickle may call; cannot be changed by it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle tries to change a function")


def _reconstruct(_class: Any, _shape: Any, _code: Any) -> PickledArray:
    return PickledArray()


def _make_dtype(name: Any, _align: Any = False, _copy: Any = True) -> _Dtype:
    if not isinstance(name, str):
        raise ValueError("a dtype has no name")
    return _Dtype(name)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, _axes: Any = None) -> PickledArray:
    array = PickledArray()
    array.fill(dtype, shape, raw, order == "F")
    return array


def _scalar(dtype: Any, raw: Any = b"") -> bool | int | float | None:
    array = PickledArray()
    array.fill(dtype, (), raw, False)
    number: bool | int | float | None = None if array._array is None else array.array.item()
    return number


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


def _make_set(items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"a set is made of a {type(items).__name__}")
    return set(items)


def _refuse(*_arguments: Any) -> Any:
    raise ValueError("numpy.ndarray is called directly")


_KNOWN: dict[str, Callable[..., Any]] = {
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.ndarray": _refuse,  # named as an argument, never called
    "numpy.dtype": _make_dtype,
    "_codecs.encode": _encode,  # bytes, before protocol 3
    "builtins.set": _make_set,  # before protocol 4
    "builtins.frozenset": _make_set,
}

_NEW_NAMES = {"numpy.core.": "numpy._core.", "__builtin__.": "builtins."}
_OLD_NAMES = re.compile(r"^(numpy\.core|__builtin__)\.")


class _Reader:
    """A file that says so where it ends before what it announces."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.path = path
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        left = self._size - self._file.tell()
        if not 0 <= size <= left:
            raise EOFError(f"{size:,} bytes are announced where {max(left, 0):,} are left")
        data: bytes = self._file.read(size)
        return data


class _Unpickler(pickle._Unpickler):
    def __init__(self, file: _Reader) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's texts hold the contents of arrays
        self._path = file.path

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        asked = _OLD_NAMES.sub(lambda match: _NEW_NAMES[match[0]], asked)
        known = _KNOWN.get(asked)
        if known is None and _SB3_BUFFER.match(asked):
            raise DatasetError(
                f"{self._path} is a replay buffer that Stable-Baselines3 saved (it asks for "
                f"{asked!r}, which could run code): if you trust the file, let SB3 read it, "
                f"model.load_replay_buffer(path), and use load_trajectories(model.replay_buffer), "
                f"whose save(folder) writes a store for the command line"
            )
        if known is None:
            raise DatasetError(
                f"{self._path} asks for {asked!r}, which could run code: {_LEAD}; if you trust "
                f"the file, load it yourself and pass the arrays"
            )
        return _Function(known)

    def persistent_load(self, pid: Any) -> Any:
        raise DatasetError(f"{self._path} refers to objects outside of it ({pid!r:.80}): {_LEAD}")
