"""What a model remembers of the dataset it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["DatasetInfo"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a model remembers of the dataset it was fitted to.

    Args:
        source: Where the dataset came from; empty where there was none.
        env_id: Environment it was recorded in, if it says.
        env_kwargs: Keyword arguments of ``gymnasium.make``.
        returns: Undiscounted return of each episode, shape (E,), float64.
    """

    source: str = ""
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, trajectories: Trajectories) -> DatasetInfo:
        """Note what is worth remembering of a dataset."""
        return cls(
            trajectories.source,
            trajectories.env_id,
            dict(trajectories.env_kwargs),
            np.asarray(trajectories.returns, dtype=np.float64),
        )
