"""What of a dataset is pickled: where a store's arrays lie, not what they hold."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from sb3_dmamba.data.mapping.mapped import file_behind, is_mapped, map_file, read_rows
from sb3_dmamba.errors import DatasetError

if TYPE_CHECKING:
    from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["MappedReference", "read_state", "refer_to", "write_state"]


def write_state(trajectories: Trajectories) -> dict[str, Any]:
    """Return the fields; of arrays of a store, where they lie. What was derived is left out."""
    names = [field.name for field in dataclasses.fields(trajectories)]
    state = {name: getattr(trajectories, name) for name in names}
    for name in ("observations", "actions", "rewards"):
        array = state[name]
        if is_mapped(array):
            # a temporary file has no name by which another process could find it
            state[name] = refer_to(array) or read_rows(array, 0, len(array))
    return state


def read_state(trajectories: Trajectories, state: Mapping[str, Any]) -> None:
    """Set the fields; arrays of a store are mapped again.

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
            status = os.fstat(handle.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
                raise DatasetError(
                    f"{self.path} was written anew since the dataset was pickled: open the store "
                    f"again with Trajectories.open"
                )
            return map_file(handle, np.dtype(self.dtype), self.shape, self.offset, self.path)


def refer_to(array: ndarray) -> MappedReference | None:
    """Return where an array lies; None where it has no file of a name that this package mapped."""
    file = file_behind(array)
    if file is None or file.path is None:
        return None
    status = os.fstat(file.descriptor)
    try:
        if not os.path.samestat(status, file.path.stat()):
            return None  # replaced by another store; this one lives on without a name
    except OSError:
        return None
    offset = array.__array_interface__["data"][0] - file.address
    return MappedReference(
        file.path, array.dtype.str, array.shape, offset, status.st_size, status.st_mtime_ns
    )
