"""What data is, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dmamba.data import Trajectories

__all__ = ["compute_fingerprint"]

_ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
_CHUNK_BYTES = 1 << 24
_LENGTH = 24


def compute_fingerprint(trajectories: Trajectories) -> str:
    """Return a hash of a dataset's values, spaces and environment.

    Read in chunks: memory-mapped data is never held at once.

    Args:
        trajectories: The data.
    """
    digest = hashlib.sha256()
    for name in _ARRAYS:
        array = getattr(trajectories, name)
        digest.update(f"{name} {np.dtype(array.dtype).str} {tuple(array.shape)}\n".encode())
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).data)
    for space in (trajectories.observation_space, trajectories.action_space):
        digest.update(_describe(space))
    described = {
        "env_id": trajectories.env_id,
        "env_kwargs": dict(trajectories.env_kwargs),
        "frame_stack": trajectories.frame_stack,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:_LENGTH]


def _describe(space: spaces.Space[Any]) -> bytes:
    if isinstance(space, spaces.Box):
        bounds = (
            np.ascontiguousarray(space.low).tobytes() + np.ascontiguousarray(space.high).tobytes()
        )
        return f"Box {space.shape} {space.dtype}".encode() + bounds
    return repr(space).encode()
