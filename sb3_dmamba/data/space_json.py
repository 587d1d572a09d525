"""Box and Discrete spaces in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.errors import SpaceError

__all__ = ["space_from_json", "space_to_json"]

_MOST_ELEMENTS = 1 << 24  # of an observation; a file that says more was made to fill memory


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box or Discrete space in what JSON can hold.

    Raises:
        SpaceError: The space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if not isinstance(space, spaces.Box):
        raise SpaceError(f"space {space} cannot be saved: only Box and Discrete can")
    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": _bound_to_json(space.low),
        "high": _bound_to_json(space.high),
    }


def space_from_json(description: Mapping[str, Any]) -> spaces.Box | spaces.Discrete:
    """Build the space that :func:`space_to_json` described.

    Raises:
        SpaceError: The description is of no such space.
    """
    try:
        if description["type"] == "Discrete":
            return spaces.Discrete(description["n"], start=description["start"])
        if description["type"] == "Box":
            shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
            if math.prod(shape) <= _MOST_ELEMENTS and dtype.kind in "biuf":
                low, high = (
                    np.broadcast_to(np.array(description[key], np.float64), shape).astype(dtype)
                    for key in ("low", "high")
                )
                return spaces.Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, MemoryError) as error:
        raise SpaceError(f"{description!r} describes no space ({error!r})") from error
    raise SpaceError(f"{description!r} describes neither a Box nor a Discrete space")


def _bound_to_json(bound: ndarray) -> Any:
    """Write numbers as strings, since JSON has no infinity; one where all are alike."""
    if np.unique(bound).size == 1:
        return str(bound.reshape(-1)[0])
    return bound.astype(str).tolist()
