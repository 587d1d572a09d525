"""Dataset metadata that a model keeps: returns, environment, observation statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dmamba.data.returns import iterate_groups
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import rows_per_chunk
from sb3_dmamba.envs import is_atari

_CONSTANT = 1e-6  # of the mean: a spread that float32 can hardly tell from none


@dataclass(frozen=True, eq=False)
class ObservationStatistics:
    """What observations are standardised with.

    Args:
        mean: Mean of each dimension, (*obs), float32.
        std: Standard deviation of each, (*obs), float32; 1 where the dimension is constant.
    """

    mean: Float32[ndarray, "*obs"]
    std: Float32[ndarray, "*obs"]


def compute_observation_statistics(trajectories: Trajectories) -> ObservationStatistics | None:
    """Compute the mean and standard deviation of each dimension over all steps.

    Where single frames are stored and stacked when drawn, every frame of a stack gets those of
    the frames: the zeros before an episode's start are left out.

    Accumulated in float64, a chunk at a time: memory-mapped observations are never held at once.

    Args:
        trajectories: The data.

    Returns:
        The statistics, or None for images, which are divided by 255 instead.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.
    """
    if is_image_space(trajectories.observation_space):
        return None
    observations = trajectories.observations
    count = 0
    mean = np.zeros(observations.shape[1:], dtype=np.float64)
    squares = np.zeros_like(mean)  # sum of squared differences from the mean
    step = rows_per_chunk(observations)
    for start in range(0, len(observations), step):
        chunk = observations[start : start + step].astype(np.float64)
        chunk_mean = chunk.mean(axis=0)
        chunk -= chunk_mean
        difference = chunk_mean - mean
        total = count + len(chunk)
        squares += np.square(chunk).sum(axis=0)
        squares += np.square(difference) * (count * len(chunk) / total)
        mean += difference * (len(chunk) / total)
        count = total
    std = np.sqrt(squares / count)
    constant = std <= _CONSTANT * np.maximum(np.abs(mean), _CONSTANT)
    std = np.where(constant, 1.0, std)
    shape = trajectories.observation_space.shape  # of stacks, where single frames are stored
    return ObservationStatistics(
        np.broadcast_to(mean, shape).astype(np.float32),
        np.broadcast_to(std, shape).astype(np.float32),
    )


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
