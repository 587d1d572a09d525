"""Which steps make up a selection of episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from sb3_dmamba.errors import DatasetError

__all__ = ["check_steps", "select_episodes"]


def check_steps(
    steps: Int64[ndarray, "M"], n_steps: int, name: str = "steps"
) -> Int64[ndarray, "M"]:
    """Return flat indices of steps as int64.

    Raises:
        DatasetError: There is none, or one is not a step of the data; names the first.
    """
    array = np.atleast_1d(np.asarray(steps))
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise DatasetError(f"{name}={steps!r}: give at least one integer")
    bad = np.flatnonzero((array < 0) | (array >= n_steps))
    if len(bad):
        raise DatasetError(f"{name}[{bad[0]}] is {array[bad[0]]}: steps go from 0 to {n_steps - 1}")
    return array.astype(np.int64, copy=False)


def select_episodes(
    index: slice | Sequence[int] | Shaped[ndarray, "n"], n_episodes: int
) -> Int64[ndarray, "n"]:
    """Return the numbers of the episodes that an index selects, in its order.

    Raises:
        DatasetError: The selection is empty or of a wrong type.
    """
    if not isinstance(index, slice):
        index = np.asarray(index)
        if index.ndim != 1 or (len(index) and index.dtype.kind not in "biu"):
            raise DatasetError(
                f"episodes cannot be selected with {index!r}: give an integer, a slice, or a "
                f"one-dimensional array of integers or booleans"
            )
        index = index if len(index) else index.astype(np.int64)
    episodes: Int64[ndarray, "n"] = np.arange(n_episodes)[index]
    if not len(episodes):
        raise DatasetError(f"{index!r} selects none of the {n_episodes} episodes")
    return episodes
