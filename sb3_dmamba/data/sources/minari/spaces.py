"""The spaces in a Minari dataset's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gymnasium import spaces

from sb3_dmamba.errors import DatasetError

__all__ = ["read_space"]


def read_space(metadata: dict[str, Any], name: str, file: Path) -> spaces.Space[Any]:
    """Read a space, the parts of a Dict in the order in which they were recorded.

    Args:
        metadata: What the file holds.
        name: The entry of the space.
        file: The metadata's file, for error messages.

    Raises:
        DatasetError: The entry is missing, or no space that Minari knows.
    """
    from minari.serialization import deserialize_space

    if name not in metadata:
        raise DatasetError(
            f"{file} has no {name}, and finding it out would need the environment: write the "
            f"dataset again with Minari 0.5 or later"
        )
    try:
        space: spaces.Space[Any] = deserialize_space(metadata[name])
        return _in_recorded_order(space, json.loads(metadata[name]))
    except (AssertionError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            f"{file}: {name} is not a space that Minari knows ({error!r})"
        ) from error


def _in_recorded_order(space: spaces.Space[Any], recorded: Any) -> spaces.Space[Any]:
    """Undo the sorting of a Dict's keys, which the environment's own space need not have.

    Flattened observations would otherwise differ from the environment's in the order of their
    parts, which no check of shapes can see.
    """
    if isinstance(space, spaces.Dict):
        parts = recorded["subspaces"]
        return spaces.Dict([(key, _in_recorded_order(space[key], parts[key])) for key in parts])
    if isinstance(space, spaces.Tuple):
        pairs = zip(space, recorded["subspaces"], strict=True)
        return spaces.Tuple([_in_recorded_order(*pair) for pair in pairs])
    return space
