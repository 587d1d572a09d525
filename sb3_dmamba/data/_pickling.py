"""What of a dataset is pickled: where a store's arrays lie, not what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sb3_dmamba.data._mapped import MappedReference, is_mapped, read_rows, refer_to

if TYPE_CHECKING:
    from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["read_state", "write_state"]


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
