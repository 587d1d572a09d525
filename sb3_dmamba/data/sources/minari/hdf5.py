"""Minari's HDF5 file: one group an episode, read straight into flat arrays.

Minari's own reader also decodes ``infos``, and its ids go through a folder that it creates where
it is missing; reading the file directly avoids both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from sb3_dmamba.data.spaces import flatten_observation, observation_dtype
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["read_episodes"]


def read_episodes(
    file: Path,
    episodes: Sequence[int],
    observation_space: spaces.Space[Any],
    flat: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    """Read episodes into flat arrays.

    Args:
        file: ``main_data.hdf5``; only read.
        episodes: Ids of the episodes to read, in this order.
        observation_space: The environment's.
        flat: Its flat view.
        action_space: The environment's.

    Returns:
        ``observations``, ``actions``, ``rewards``, ``terminated``, ``truncated`` and
        ``episode_offsets`` of :class:`~sb3_dmamba.data.Trajectories`.

    Raises:
        DatasetError: The file is missing, damaged or inconsistent; names the member.
    """
    try:
        with h5py.File(file, "r") as storage:
            return _read(storage, episodes, observation_space, flat, action_space)
    except FileNotFoundError:
        raise DatasetError(f"{file} does not exist: download the dataset again") from None
    except OSError as error:
        raise DatasetError(
            f"{file} is damaged or no HDF5 file ({error}): download the dataset again"
        ) from error


def _read(
    storage: h5py.File,
    episodes: Sequence[int],
    observation_space: spaces.Space[Any],
    flat: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    groups = [_member(storage, f"episode_{episode}", h5py.Group) for episode in episodes]
    lengths = [len(_member(group, "rewards", h5py.Dataset)) for group in groups]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n_steps = int(offsets[-1])
    is_box = isinstance(action_space, spaces.Box)
    arrays = {
        "observations": np.empty((n_steps, *flat.shape), dtype=observation_dtype(flat)),
        "actions": np.empty(
            (n_steps, *(action_space.shape or ())), dtype=np.float32 if is_box else np.int64
        ),
        "rewards": np.empty(n_steps, dtype=np.float32),
        "terminated": np.empty(len(groups), dtype=np.bool_),
        "truncated": np.empty(len(groups), dtype=np.bool_),
        "episode_offsets": offsets,
    }
    for index, group in enumerate(groups):
        steps = slice(offsets[index], offsets[index + 1])
        length = lengths[index]
        if not length:
            raise DatasetError(f"{storage.filename}, {group.name}: the episode has no steps")
        observations = _decode(
            _member(group, "observations"), observation_space, length, _where(group)
        )
        try:
            arrays["observations"][steps] = flatten_observation(
                observation_space, observations, batch=True
            )
        except SpaceError as error:
            raise DatasetError(f"{_where(group)}: {error}") from error
        arrays["actions"][steps] = _read_steps(group, "actions", length, action_space.shape or ())
        arrays["rewards"][steps] = _read_steps(group, "rewards", length, ())
        for name, key in (("terminated", "terminations"), ("truncated", "truncations")):
            arrays[name][index] = _read_flag(group, key, length)
    return arrays


def _decode(node: Any, space: spaces.Space[Any], length: int, where: str) -> Any:
    """Read a space's values as a vector environment would return them, without the last one."""
    if isinstance(space, spaces.Dict):
        return {
            key: _decode(_member(node, key), child, length, where)
            for key, child in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(
            _decode(_member(node, f"_index_{index}"), child, length, where)
            for index, child in enumerate(space.spaces)
        )
    if not isinstance(node, h5py.Dataset) or len(node) not in (length, length + 1):
        raise DatasetError(
            f"{where}: {node.name} does not hold one observation for each of the {length} steps "
            f"(and one after the last): leave out that episode"
        )
    if isinstance(space, spaces.Box) and node.ndim != 1 + len(space.shape):
        return _decode_jpeg(node[:length], space, where)
    return node[()][:length]


def _decode_jpeg(frames: ndarray, space: spaces.Box, where: str) -> UInt8[ndarray, "T *frame"]:
    """Decode frames that Minari stored as JPEG files."""
    images = np.empty((len(frames), *space.shape), dtype=np.uint8)
    for index, frame in enumerate(frames):
        try:
            image = np.asarray(Image.open(io.BytesIO(frame.tobytes())))
        except (OSError, AttributeError) as error:
            raise DatasetError(f"{where}: frame {index} is not an image ({error})") from error
        if image.shape != space.shape and image.size != images[index].size:
            raise DatasetError(
                f"{where}: frame {index} has shape {image.shape} where {space.shape} is needed"
            )
        images[index] = image.reshape(space.shape)
    return images


def _read_steps(group: h5py.Group, key: str, length: int, shape: tuple[int, ...]) -> ndarray:
    values: ndarray = _member(group, key, h5py.Dataset)[()]
    if values.shape != (length, *shape):
        raise DatasetError(
            f"{_where(group)}: {key} have shape {values.shape} where {(length, *shape)} is needed"
        )
    return values


def _read_flag(group: h5py.Group, key: str, length: int) -> bool:
    values = _read_steps(group, key, length, ()).astype(bool)
    early = np.flatnonzero(values[:-1])
    if len(early):
        raise DatasetError(
            f"{_where(group)}: {key}[{early[0]}] is set before the last step, {length - 1}: an "
            f"episode must end there; write the dataset again with that episode split"
        )
    return bool(values[-1])


def _member(
    group: Any, key: str, kind: type | tuple[type, ...] = (h5py.Group, h5py.Dataset)
) -> Any:
    node = group.get(key) if isinstance(group, h5py.Group) else None
    if not isinstance(node, kind):
        raise DatasetError(f"{_where(group)} has no {key!r}: download the dataset again")
    return node


def _where(node: Any) -> str:
    return f"{node.file.filename}, {node.name}"
