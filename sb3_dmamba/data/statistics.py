"""Mean and standard deviation of observations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dmamba.data._checks import rows_per_chunk
from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["ObservationStatistics", "compute_observation_statistics"]

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
