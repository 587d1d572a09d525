"""What a store's files must say, and reading them without reading the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data._checks import check_offsets
from sb3_dmamba.data.frames import check_frame_stack, frame_shape
from sb3_dmamba.data.mapping import map_npy
from sb3_dmamba.data.space_json import space_from_json, space_to_json
from sb3_dmamba.data.spaces import check_action_space, observation_dtype
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["HEADER_NAME", "STEP_ARRAYS", "header_to_json", "read_store", "row_types"]

FORMAT_VERSION = 1
HEADER_NAME = "trajectories.json"
STEP_ARRAYS = ("observations", "actions", "rewards")
_EPISODE_ARRAYS = {"terminated": np.bool_, "truncated": np.bool_, "episode_offsets": np.int64}
_FORMAT = "sb3_dmamba.Trajectories"

RowTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def row_types(fields: Mapping[str, Any]) -> RowTypes:
    """Return dtype and shape of one step in each of :data:`STEP_ARRAYS`.

    Args:
        fields: ``observation_space``, ``action_space`` and ``frame_stack`` of the data.
    """
    space, action_space = fields["observation_space"], fields["action_space"]
    discrete = isinstance(action_space, spaces.Discrete)
    return {
        "observations": (
            np.dtype(observation_dtype(space)),
            frame_shape(space, fields["frame_stack"]),
        ),
        "actions": (np.dtype(np.int64 if discrete else np.float32), action_space.shape or ()),
        "rewards": (np.dtype(np.float32), ()),
    }


def header_to_json(fields: Mapping[str, Any], n_episodes: int, n_steps: int) -> dict[str, Any]:
    """Return what :data:`HEADER_NAME` says about data of these fields."""
    counts = {"n_episodes": n_episodes, "n_steps": n_steps}
    written = {"format": _FORMAT, "format_version": FORMAT_VERSION, **counts, **fields}
    for name in ("observation_space", "action_space"):
        written[name] = space_to_json(fields[name])
    return written


def read_store(folder: Path) -> dict[str, Any]:
    """Return the fields of a store's :class:`Trajectories`; steps are mapped, not read.

    Raises:
        DatasetError: A file is missing or damaged, names it, or of a newer version.
    """
    path = folder / HEADER_NAME
    if not path.is_file():
        raise DatasetError(f"there is no {path}: give a folder that Trajectories.save wrote")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{path} is not readable JSON ({error}): save the data anew") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise DatasetError(f"{path} is not the header of a store: it has no format {_FORMAT!r}")
    version = header.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise DatasetError(
            f"{path} has format version {version!r}, and this sb3_dmamba reads 1 to "
            f"{FORMAT_VERSION}: upgrade with pip install -U sb3-dmamba"
        )
    fields = _read_fields(path, header)
    n_episodes, n_steps = (_count(path, header, name) for name in ("n_episodes", "n_steps"))
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
        raise DatasetError(f"{folder / 'episode_offsets.npy'}: {error}") from error
    return {**arrays, **fields}


def _read_fields(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    try:
        observation_space = space_from_json(_expect(path, header, "observation_space", dict))
        action_space = check_action_space(
            space_from_json(_expect(path, header, "action_space", dict))
        )
        if not isinstance(observation_space, spaces.Box):
            raise SpaceError(f"the observation space is {observation_space} and must be a Box")
        frame_stack = check_frame_stack(header.get("frame_stack"), observation_space)
    except (SpaceError, DatasetError) as error:
        raise DatasetError(f"{path}: {error}") from error
    return {
        "observation_space": observation_space,
        "action_space": action_space,
        "env_id": _expect(path, header, "env_id", str, type(None)),
        "env_kwargs": _expect(path, header, "env_kwargs", dict),
        "source": _expect(path, header, "source", str),
        "frame_stack": frame_stack,
    }


def _expect(path: Path, header: Mapping[str, Any], name: str, *kinds: type[Any]) -> Any:
    if name not in header or not isinstance(header[name], kinds):
        kind = " or ".join(kind.__name__ for kind in kinds)
        raise DatasetError(
            f"{path} has {name}={header.get(name)!r}, and {kind} was expected: it was "
            f"changed; save the data anew"
        )
    return header[name]


def _count(path: Path, header: Mapping[str, Any], name: str) -> int:
    count: int = _expect(path, header, name, int)
    if isinstance(count, bool) or count < 1:
        raise DatasetError(f"{path} has {name}={count!r}, and a positive number was expected")
    return count
