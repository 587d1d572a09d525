"""Datasets of one environment, as one."""

from __future__ import annotations

from collections.abc import Iterable

from sb3_dmamba.data.store.gathering import gather_pieces
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["join_trajectories"]

_SHARED = ("observation_space", "action_space", "frame_stack", "env_id", "env_kwargs")


def join_trajectories(parts: Iterable[Trajectories], source: str | None = None) -> Trajectories:
    """Return the episodes of several datasets, one dataset's after the other's.

    Args:
        parts: Datasets with the same spaces, frame stack and environment; at least one. They are
            copied: into memory, or into a temporary file where they are large.
        source: What the whole is called in summaries and reports; None lists the parts' sources.

    Raises:
        DatasetError: There is no dataset, two of them do not fit together, or there is no room for
            the temporary file.
    """
    datasets = list(parts)
    if not datasets:
        raise DatasetError("join_trajectories([]): give at least one dataset")
    first = datasets[0]
    for number, other in enumerate(datasets):
        for name in _SHARED:
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise DatasetError(
                    f"dataset {number} has {name}={theirs}, and the first has {ours}: "
                    f"join datasets of one environment"
                )
    named = " and ".join(dict.fromkeys(part.source for part in datasets if part.source))
    return gather_pieces(datasets, lambda _: named if source is None else source)
