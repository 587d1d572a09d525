"""D4RL's HDF5 file: flat arrays of steps, read in bounded pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from sb3_dmamba.data._checks import rows_per_chunk
from sb3_dmamba.errors import DatasetError

__all__ = ["FlatFile", "open_flat_file"]

_TERMINATED = ("terminals", "terminations", "terminated")
_TRUNCATED = ("timeouts", "truncations", "truncated")
_MOST_COMPRESSED = 1100  # deflate's limit is 1032 to 1; more was never written


@contextlib.contextmanager
def open_flat_file(path: Path) -> Iterator[FlatFile]:
    """Open a file of flat arrays; what it announces is checked, its large arrays are not read.

    Raises:
        DatasetError: It is missing, damaged or no HDF5, or a member is missing, of a wrong dtype
            or length, or lies outside of the file. Names the member.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except OSError as error:
        raise DatasetError(
            f"{path} is damaged or no HDF5 file ({error}): delete it and get it again"
        ) from error
    with file:
        yield FlatFile(file, path)


class FlatFile:
    """An open file: the arrays with a number a step are read, the others are read on demand.

    Args:
        file: The open file.
        path: Its path, for messages.

    Attributes:
        rewards: (N,) float32.
        terminated: Per step, (N,).
        truncated: Per step, (N,); None where the file does not say (as D4RL's oldest).
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path
        self._file = file
        self._check_kind()
        rewards = self._member("rewards")
        n_steps = rewards.size
        if not n_steps or rewards.shape not in ((n_steps,), (n_steps, 1)):
            raise self._error("rewards", f"the shape is {rewards.shape}: there is one a step")
        self.n_steps = int(n_steps)
        self._arrays = {"rewards": rewards}
        for key in ("observations", "actions"):
            self._arrays[key] = self._member(key, self.n_steps)
        self.rewards: Float32[ndarray, "N"] = self.read("rewards").reshape(-1).astype(np.float32)
        terminated = self._flags(_TERMINATED)
        self.truncated: Bool[ndarray, "N"] | None = self._flags(_TRUNCATED)
        if terminated is None and self.truncated is None:
            raise DatasetError(
                f"{path} has neither 'terminals' nor 'timeouts' (it has {self._keys()}): where "
                f"episodes end is unknown"
            )
        none = np.zeros(self.n_steps, dtype=bool)
        self.terminated: Bool[ndarray, "N"] = none if terminated is None else terminated

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one step's observation or action; () is a number."""
        shape: tuple[int, ...] = self._arrays[key].shape[1:]
        is_index = self._arrays[key].dtype.kind in "iu" and shape == (1,)
        return () if is_index and key == "actions" else shape

    def dtype(self, key: str) -> np.dtype[Any]:
        """Return what :meth:`read` returns: floats become float32, all else stays."""
        dtype: np.dtype[Any] = self._arrays[key].dtype
        return np.dtype(np.float32) if dtype.kind == "f" else dtype

    def read(self, key: str, start: int = 0, stop: int | None = None) -> ndarray:
        """Read steps of an array, a piece at a time.

        Raises:
            DatasetError: The file is damaged there; names the member and the steps.
        """
        source = self._arrays[key]
        stop = self.n_steps if stop is None else stop
        values = np.empty((stop - start, *source.shape[1:]), dtype=self.dtype(key))
        step = rows_per_chunk(source)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            try:
                source.read_direct(values, np.s_[first:last], np.s_[first - start : last - start])
            except (OSError, RuntimeError, ValueError) as error:
                raise self._error(
                    key, f"steps {first} to {last - 1} are damaged ({error}): get the file again"
                ) from error
        return values.reshape(stop - start, *self.shape(key)) if key != "rewards" else values

    def iterate(self, key: str) -> Iterator[ndarray]:
        """Yield all steps of an array, in pieces that fit into little memory."""
        step = rows_per_chunk(self._arrays[key])
        for first in range(0, self.n_steps, step):
            yield self.read(key, first, min(first + step, self.n_steps))

    def _flags(self, names: tuple[str, ...]) -> Bool[ndarray, "N"] | None:
        given = [name for name in names if name in self._file]
        if not given:
            return None
        if len(given) > 1:
            raise DatasetError(f"{self.path} has {' and '.join(given)}: keep one of them")
        name = given[0]
        self._arrays[name] = self._member(name, self.n_steps)
        if self._arrays[name].size != self.n_steps:
            raise self._error(name, f"the shape is {self._arrays[name].shape}: there is one a step")
        flags = self.read(name).reshape(-1)
        if not np.isin(flags, (0, 1)).all():
            index = int(np.flatnonzero(~np.isin(flags, (0, 1)))[0])
            raise self._error(name, f"step {index} has {flags[index]}: only 0 and 1 are flags")
        return flags.astype(bool)

    def _member(self, key: str, n_steps: int | None = None) -> h5py.Dataset:
        """Return a member whose contents lie in this file and can be numbers."""
        link = self._file.get(key, getlink=True)
        node = None if isinstance(link, h5py.ExternalLink) else self._open(key)
        if isinstance(link, h5py.ExternalLink) or (
            isinstance(node, h5py.Dataset)
            and (node.external or node.is_virtual or node.file.filename != self._file.filename)
        ):
            raise self._error(key, "its contents lie in another file, which is not followed")
        if node is None:
            raise DatasetError(f"{self.path} has no {key!r}: it has {self._keys()}")
        if not isinstance(node, h5py.Dataset):
            raise self._error(key, "it is a group: one array is needed")
        if node.dtype.kind not in "biuf" or not node.ndim:
            raise self._error(key, f"it holds {node.dtype}, shape {node.shape}: give numbers")
        if n_steps is not None and len(node) != n_steps:
            raise self._error(key, f"it has {len(node)} steps, and there are {n_steps} rewards")
        if node.nbytes > _MOST_COMPRESSED * node.id.get_storage_size() + 2**20:
            raise self._error(
                key, f"{node.nbytes:,} bytes are announced and next to none stored: get it again"
            )
        return node

    def _open(self, key: str) -> Any:
        try:
            return self._file.get(key)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise self._error(key, f"it is damaged ({error}): get the file again") from error

    def _check_kind(self) -> None:
        """Recognise files of other kinds that have the same ending."""
        if "episode_0" in self._file:
            raise DatasetError(
                f"{self.path} is a file of Minari's: pass the folder it lies in, "
                f"{str(self.path.resolve().parent)!r}"
            )
        if "observations_0" in self._file:
            raise DatasetError(
                f"{self.path} is a file of d3rlpy's: load it with d3rlpy.dataset.ReplayBuffer.load "
                f"and pass what that returns"
            )

    def _keys(self) -> str:
        return ", ".join(map(repr, list(self._file)[:20])) or "nothing"

    def _error(self, key: str, problem: str) -> DatasetError:
        return DatasetError(f"{self.path}, {key}: {problem}")
