"""Unpickle NumPy arrays, numbers and plain containers without running code."""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy import ndarray

from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import describe_missing_path

_NUMBER = re.compile(r"[biuf]\d*|\?|bool|u?int\d+|float\d+")
_SB3_BUFFER = re.compile(r"(stable_baselines3|sb3_contrib)\..*ReplayBuffer$")
_DEEPEST_TUPLE = 100
_NUMBER_BYTES = 8
_MOST_SHARING = 100  # times its size that a pickle may unfold to, by references to the same parts
_ALWAYS_FITS = 1 << 26  # bytes
_ALLOWED_TYPES = "only pickles of numpy arrays, numbers, texts, lists, tuples and dicts are read"


def load_plain_pickle(path: Path) -> Any:
    """Unpickle plain containers, numbers and numeric NumPy arrays without running code."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_opcodes(cast("IO[bytes]", data))
            data.seek(0)
            contents = _Unpickler(data, path).load()
            if _measure(contents, {}) > max(_MOST_SHARING * len(data), _ALWAYS_FITS):
                raise ValueError("parts that it refers to repeatedly make up more than its size")
            return contents
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(describe_missing_path(path), path=path) from None
    except Exception as error:
        problem = f"{path} is damaged or no pickle ({type(error).__name__}: {error}): get it again"
        raise DatasetError(problem, path=path) from error


def to_array(value: Any) -> ndarray:
    """Return a pickled array, or a list of numbers or of arrays of one shape, as NumPy's."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, (list, tuple)):
        is_number = (bool, int, float)  # NumPy would make an array of texts of any size
        parts = [part if isinstance(part, is_number) else to_array(part) for part in value]
        try:
            array = np.array(parts)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise DatasetError(f"its parts make up no array ({error})") from error
        if array.dtype.kind in "biuf":
            return array
    raise DatasetError(f"it is a {type(value).__name__} without numbers: give an array of numbers")


def check_opcodes(data: IO[bytes]) -> None:
    """Raise an exception at what crashes the C unpickler, which trusts a pickle.

    It makes a table of as many entries as the highest memo index, and the hash of a tuple of
    tuples, as a dictionary's key has it, recurses without a limit.
    """
    depths: list[int] = []  # of each object on the unpickler's stack: of tuples in tuples
    marks: list[int] = []
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name, before = opcode.name, opcode.stack_before
        if name.startswith("EXT"):
            raise ValueError(f"extension {argument}")
        if "PUT" in name or name == "MEMOIZE":
            index = len(memo) if argument is None else int(argument)
            if not 0 <= index <= count:
                raise ValueError(f"memo index {argument} after {count} opcodes")
            memo[index] = depths[-1]
            continue
        if name == "MARK":
            marks.append(len(depths))
            continue
        if name == "POP" and marks and marks[-1] == len(depths):
            marks.pop()
            continue
        has_mark = pickletools.markobject in before
        start = marks.pop() - before.index(pickletools.markobject) if has_mark else None
        start = len(depths) - len(before) if start is None else start
        taken = depths[start:]
        del depths[start:]
        depth = 0
        if "TUPLE" in name:
            depth = 1 + max(taken, default=0)
        elif "GET" in name:
            depth = memo.get(int(argument or 0), 0)
        elif name == "DUP":
            depth = taken[0]
        if depth > _DEEPEST_TUPLE:
            raise ValueError(f"tuples are nested {depth} deep")
        depths += [depth] * len(opcode.stack_after)


def _measure(value: Any, sizes: dict[int, float]) -> float:
    """Return the bytes of all numbers in a value, those of a part as often as it occurs.

    It is infinite where a part contains itself.
    """
    if isinstance(value, _Array):
        return value.n_bytes
    if not isinstance(value, (list, tuple, dict)):
        return _NUMBER_BYTES
    if id(value) not in sizes:
        sizes[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = sum(_measure(part, sizes) for part in parts)
    return sizes[id(value)]


# Stand-ins for NumPy's own classes, whose __setstate__ trusts what it is given: an array of
# objects would take bytes of the file for pointers.


class _Dtype:
    """A dtype; its value is None unless it is one of numbers."""

    def __init__(self, name: str, *_flags: Any) -> None:
        self.name = name
        self.value = np.dtype(name) if _NUMBER.fullmatch(name) else None

    def __setstate__(self, state: Any) -> None:
        if self.value is not None:  # what follows the byte order describes other dtypes
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array, or the reason why there is none; pickles make it first and fill it afterwards."""

    def __init__(self, *_reconstruct_arguments: Any) -> None:
        self._value: ndarray | str = "nothing"

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self._value = _decode(raw, dtype, shape, "F" if is_fortran else "C")

    @classmethod
    def from_buffer(cls, *arguments: Any) -> _Array:
        array = cls()
        array._value = _decode(*arguments)
        return array

    @property
    def n_bytes(self) -> int:
        """Bytes of its numbers."""
        return self._value.nbytes if isinstance(self._value, ndarray) else 0

    @property
    def value(self) -> ndarray:
        """The array, read-only; raises DatasetError if it is not of numbers."""
        if isinstance(self._value, str):
            raise DatasetError(f"it holds {self._value}: give an array of numbers")
        return self._value


def _decode(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> ndarray | str:
    """Return an array, read-only, or the name of a dtype that is not of numbers."""
    if not isinstance(dtype, _Dtype) or not all(type(size) is int for size in shape):
        raise ValueError("an array's dtype or shape is of a wrong kind")
    if dtype.value is None:
        return repr(dtype.name)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2's bytes
    if not isinstance(raw, (bytes, bytearray)):
        raise ValueError(f"an array's contents are a {type(raw).__name__}")
    if min(shape, default=0) < 0 or len(raw) != math.prod(shape) * dtype.value.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of {dtype.name} and shape {shape}")
    flat = np.frombuffer(bytes(raw), dtype.value)
    array = flat.reshape(shape, order="F" if order == "F" else "C")  # "K" goes with axes
    return array if axes is None else array.transpose(axes)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    value = _decode(raw, dtype, (), "C")
    return None if isinstance(value, str) else value.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


class _Call:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle tries to change a function")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _Array.from_buffer,
    "_codecs.encode": _encode,  # bytes, before protocol 3
    "builtins.set": set,  # before protocol 4
    "builtins.frozenset": frozenset,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: mmap.mmap, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's texts hold the contents of arrays
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\b", "numpy._core", module)  # before NumPy 2
        asked = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if asked in _ALLOWED:
            return _Call(_ALLOWED[asked])
        if _SB3_BUFFER.match(asked):
            message = (
                f"{self._path} is a replay buffer that Stable-Baselines3 saved (it asks for "
                f"{asked!r}, which could run code): if you trust the file, let SB3 read it, "
                f"model.load_replay_buffer(path), and use load_trajectories(model.replay_buffer), "
                f"whose save(folder) writes a store for the command line"
            )
        else:
            message = (
                f"{self._path} asks for {asked!r}, which could run code: {_ALLOWED_TYPES}; if you "
                f"trust the file, load it yourself and pass the arrays"
            )
        raise DatasetError(message, path=self._path, value=asked, choices=_ALLOWED)

    def persistent_load(self, pid: Any) -> Any:
        problem = f"{self._path} refers to objects outside of it ({pid!r:.80}): {_ALLOWED_TYPES}"
        raise DatasetError(problem, path=self._path)
