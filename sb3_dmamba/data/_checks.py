"""Checks of raw arrays, in bounded memory, each naming the first bad index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Int64
from numpy import ndarray

from sb3_dmamba.errors import DatasetError

CHUNK_BYTES = 1 << 22
"""How much of a (perhaps memory-mapped) array is looked at together."""

_TOLERANT: ContextVar[bool] = ContextVar("tolerant", default=False)

_ACTION_TOLERANCE = 1e-5  # of a bound: what a trip through float32 may cost


def rows_per_chunk(array: ndarray) -> int:
    """Return how many rows of ``array`` make up :data:`CHUNK_BYTES` as float64."""
    return max(1, CHUNK_BYTES // max(1, 8 * int(np.prod(array.shape[1:], dtype=np.int64))))


@contextlib.contextmanager
def tolerate_non_finite() -> Iterator[None]:
    """Let NaN and infinities pass :func:`check_finite`, so that all of them can be described."""
    token = _TOLERANT.set(True)
    try:
        yield
    finally:
        _TOLERANT.reset(token)


def check_finite(
    name: str, array: ndarray, offsets: Int64[ndarray, "E+1"] | None = None, first: int = 0
) -> None:
    """Raise DatasetError if an entry is NaN or infinite, naming its index.

    Args:
        name: What the array is.
        array: Rows of it.
        offsets: Where its episodes begin.
        first: Index of the first row.
    """
    if array.dtype.kind not in "fc" or _TOLERANT.get():
        return
    step = rows_per_chunk(array)
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step])
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            value = array[(start + index[0], *index[1:])]
            index = (first + start + index[0], *index[1:])
            raise DatasetError(
                f"{name}{_subscript(index)} is {value}{describe_step(index[0], offsets)}: "
                f"every value must be finite; leave out that episode or repair it",
                episode=_find_episode(index[0], offsets),
                index=index[0],
                setting=name,
                value=value,
            )


def check_offsets(offsets: ndarray, n_steps: int) -> None:
    """Raise DatasetError unless the offsets cut ``n_steps`` steps into non-empty episodes."""
    offsets = np.asarray(offsets)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise DatasetError(
            f"episode_offsets have shape {offsets.shape} and dtype {offsets.dtype}: give the "
            f"first step of each of at least one episode and then the number of steps, as integers"
        )
    if offsets[0] != 0:
        raise DatasetError(f"episode_offsets[0] is {offsets[0]}: the first episode starts at 0")
    empty = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if len(empty):
        episode = int(empty[0])
        raise DatasetError(
            f"episode {episode} goes from step {offsets[episode]} to {offsets[episode + 1]}: "
            f"every episode needs at least one step; leave out empty ones",
            episode=episode,
            setting="episode_offsets",
        )
    if offsets[-1] != n_steps:
        raise DatasetError(
            f"episode_offsets end at {offsets[-1]} and there are {n_steps} steps: "
            f"the last offset is the number of steps"
        )


def check_box_actions(
    actions: ndarray, space: spaces.Box, offsets: Int64[ndarray, "E+1"] | None = None
) -> None:
    """Raise DatasetError if an action lies outside the space by more than rounding."""
    low = _loosen(space.low.astype(np.float64), -1)
    high = _loosen(space.high.astype(np.float64), 1)
    step = rows_per_chunk(actions)
    for start in range(0, len(actions), step):
        chunk = actions[start : start + step]
        inside = (chunk >= low) & (chunk <= high)
        if _TOLERANT.get():
            inside |= ~np.isfinite(chunk)
        if not inside.all():
            row, column = (int(i) for i in np.argwhere(~inside)[0])
            raise DatasetError(
                f"actions[{start + row}, {column}] is {chunk[row, column]:g}"
                f"{describe_step(start + row, offsets)}, outside the action space's "
                f"[{space.low[column]:g}, {space.high[column]:g}]: clip the recorded actions to "
                f"the space, or describe them with a wider Box",
                episode=_find_episode(start + row, offsets),
                index=start + row,
                setting="actions",
                value=chunk[row, column],
            )


def check_discrete_actions(
    actions: ndarray, space: spaces.Discrete, offsets: Int64[ndarray, "E+1"] | None = None
) -> None:
    """Raise DatasetError if an action is none of the space's."""
    first, end = int(space.start), int(space.start) + int(space.n)
    rows = rows_per_chunk(actions)
    for start in range(0, len(actions), rows):
        chunk = actions[start : start + rows]
        bad = np.flatnonzero((chunk < first) | (chunk >= end))
        if len(bad):
            step = start + int(bad[0])
            raise DatasetError(
                f"actions[{step}] is {actions[step]}{describe_step(step, offsets)}: "
                f"{space} allows {first} to {end - 1}",
                episode=_find_episode(step, offsets),
                index=step,
                setting="actions",
                value=actions[step],
            )


def describe_step(step: int, offsets: Any) -> str:
    """Say which step of which episode a flat index is, if the offsets are known."""
    episode = _find_episode(step, offsets)
    if episode is None:
        return ""
    return f" (episode {episode}, step {step - int(offsets[episode])})"


def _find_episode(step: int, offsets: Any) -> int | None:
    return None if offsets is None else int(np.searchsorted(offsets, step, side="right")) - 1


def _loosen(bound: ndarray, sign: int) -> ndarray:
    loosened: ndarray = bound + sign * _ACTION_TOLERANCE * np.maximum(np.abs(bound), 1.0)
    return loosened


def _subscript(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"
