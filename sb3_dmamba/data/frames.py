"""Frames that are stored once and stacked when they are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Int64, UInt8
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import DatasetError, SpaceError

__all__ = ["check_frame_stack", "frame_shape", "gather_stacks"]


def check_frame_stack(frame_stack: Any, space: spaces.Box) -> int:
    """Return the number of frames in an observation, as an int.

    Args:
        frame_stack: At least 1, which means that observations are stored as they are.
        space: What the policy sees: (frame_stack, *frame) uint8 where it is more than 1.

    Raises:
        DatasetError: It is not a positive integer.
        SpaceError: The space does not hold that many frames.
    """
    count = check_integer("frame_stack", frame_stack, 1, error=DatasetError)
    if count > 1 and (space.dtype != np.uint8 or len(space.shape) < 2 or space.shape[0] != count):
        raise SpaceError(
            f"frame_stack={count} and the observation space is {space}: give the Box of what the "
            f"policy sees, of shape ({count}, *frame) and dtype uint8"
        )
    return count


def frame_shape(space: spaces.Box, frame_stack: int) -> tuple[int, ...]:
    """Return the shape of what is stored for one step."""
    return space.shape if frame_stack == 1 else space.shape[1:]


def gather_stacks(
    frames: UInt8[ndarray, "N *frame"],
    steps: Int64[ndarray, "M"],
    first_steps: Int64[ndarray, "M"],
    frame_stack: int,
) -> UInt8[ndarray, "M S *frame"]:
    """Copy the frames up to each step into stacks.

    Args:
        frames: Single frames of all episodes; may be memory-mapped.
        steps: Flat indices of steps.
        first_steps: First step of the episode that each of them belongs to.
        frame_stack: Frames in a stack, S.

    Returns:
        Oldest frame first, zeros where the episode had not begun.
    """
    rows = steps[:, None] + np.arange(1 - frame_stack, 1)  # (M, S)
    before = rows < first_steps[:, None]
    rows[before] = steps[0]  # any that is needed anyway
    stacks = np.empty((*rows.shape, *frames.shape[1:]), dtype=frames.dtype)
    frames.take(rows, axis=0, out=stacks, mode="clip")  # "raise" would copy once more
    if before.any():
        stacks[before] = 0
    return stacks
