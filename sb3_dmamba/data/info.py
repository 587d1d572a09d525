"""What a model remembers of the dataset it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_dmamba.atari import is_atari
from sb3_dmamba.data.returns import iterate_groups
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
        clip_rewards: Whether its rewards were clipped to [-1, 1], so that acting should count
            them so: True for an Atari game without a larger one, False where any is larger, None
            where nothing says.
        delayed_rewards: Whether episodes were paid at their last steps alone, so that the
            return-to-go stayed as it was until then, and should stay so in acting. Where the
            environment pays so too it does in any case.
    """

    source: str = ""
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    clip_rewards: bool | None = None
    delayed_rewards: bool = False

    @classmethod
    def of(cls, trajectories: Trajectories) -> DatasetInfo:
        """Note what is worth remembering of a dataset."""
        largest, paid_early, paid_last = 0.0, False, False
        for rewards, offsets in iterate_groups(trajectories.rewards, trajectories.episode_offsets):
            largest = max(largest, float(np.abs(rewards).max()))
            is_last = np.zeros(len(rewards), dtype=bool)
            is_last[offsets[1:] - 1] = True
            paid_early |= bool(rewards[~is_last].any())
            paid_last |= bool(rewards[is_last].any())
        is_game = is_atari(trajectories.env_id)
        return cls(
            trajectories.source,
            trajectories.env_id,
            dict(trajectories.env_kwargs),
            np.asarray(trajectories.returns, dtype=np.float64),
            False if largest > 1.0 else True if is_game else None,
            paid_last and not paid_early and int(trajectories.lengths.max()) > 1,
        )
