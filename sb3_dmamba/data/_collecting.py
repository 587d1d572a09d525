"""From a stream of episodes to :class:`~sb3_dmamba.data.Trajectories`, never out of memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Num
from numpy import ndarray

from sb3_dmamba.data.store import TrajectoriesWriter
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["IN_MEMORY_BYTES", "gather_episodes"]

IN_MEMORY_BYTES = 1 << 29
"""Observations above this size go to a file."""


class StreamedEpisode(Protocol):
    """What :meth:`TrajectoriesWriter.append` takes; one that was not terminated was cut."""

    @property
    def observations(self) -> Num[ndarray, "T *obs"]: ...

    @property
    def actions(self) -> Num[ndarray, "T *action"]: ...

    @property
    def rewards(self) -> Num[ndarray, "T"]: ...

    @property
    def terminated(self) -> bool: ...


def gather_episodes(
    episodes: Iterable[StreamedEpisode],
    *,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    source: Callable[[int], str],
    **fields: Any,
) -> Trajectories:
    """Put episodes into one place.

    Args:
        episodes: One after the other.
        store: Folder to write a store to, or None: in memory while they are small, and beyond
            that in a temporary file that goes away with the process.
        overwrite: Whether a store that is there already is replaced.
        source: Says where the data came from, for people, once the number of steps is known.
        fields: The rest of what :class:`TrajectoriesWriter` takes.

    Raises:
        DatasetError: There is no episode, or no room for the temporary file.
        OSError: The store cannot be written.
    """
    if store is not None:
        return _write(episodes, Path(store), source, overwrite=overwrite, **fields)
    stream = iter(episodes)
    held: list[StreamedEpisode] = []
    size = 0
    for episode in stream:
        held.append(episode)
        size += episode.observations.nbytes
        if size > IN_MEMORY_BYTES:
            return _spill(chain(_drain(held), stream), source, fields)
    return _join(held, source, fields)


def _write(
    episodes: Iterable[StreamedEpisode],
    folder: Path,
    source: Callable[[int], str],
    **fields: Any,
) -> Trajectories:
    with TrajectoriesWriter(folder, **fields) as writer:
        for episode in episodes:
            writer.append(
                episode.observations,
                episode.actions,
                episode.rewards,
                terminated=episode.terminated,
                truncated=False,
            )
        return writer.finish(source=source(writer.n_steps))


def _spill(
    episodes: Iterable[StreamedEpisode], source: Callable[[int], str], fields: dict[str, Any]
) -> Trajectories:
    """Write a store whose files lose their names as soon as they are open."""
    place = folder_on_disk()
    try:
        with tempfile.TemporaryDirectory(
            prefix="sb3_dmamba-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            return _write(episodes, Path(folder) / "store", source, **fields)
    except OSError as error:
        raise DatasetError(
            f"the episodes do not fit into memory and not into {place} either ({error}): pass "
            f"store='a/folder' on a larger disk, or ask for fewer steps"
        ) from error


def folder_on_disk() -> Path:
    """Return where large temporary files go: /tmp is memory on many machines."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    lasting = Path("/var/tmp")
    if not named and lasting.is_dir() and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def _drain(held: list[StreamedEpisode]) -> Iterator[StreamedEpisode]:
    held.reverse()
    while held:
        yield held.pop()


def _join(
    held: list[StreamedEpisode], source: Callable[[int], str], fields: dict[str, Any]
) -> Trajectories:
    """Join episodes in memory, letting go of each one once it is copied."""
    if not held:
        raise DatasetError("there is no episode: the dataset needs at least one step")
    lengths = [len(episode.rewards) for episode in held]
    terminated = np.array([episode.terminated for episode in held])
    actions = np.concatenate([episode.actions for episode in held])
    rewards = np.concatenate([episode.rewards for episode in held])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first = held[0].observations
    observations = np.empty((sum(lengths), *first.shape[1:]), first.dtype)
    for start, episode in zip(offsets, _drain(held), strict=False):
        observations[start : start + len(episode.rewards)] = episode.observations
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=np.zeros_like(terminated),
        episode_offsets=offsets,
        source=source(sum(lengths)),
        **fields,
    )
