"""Returns and returns-to-go, accumulated in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int64, Num
from numpy import ndarray

from sb3_dmamba.data._checks import check_finite, check_offsets
from sb3_dmamba.errors import DatasetError

__all__ = ["compute_returns", "compute_returns_to_go"]


def compute_returns_to_go(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"] | None = None
) -> Float32[ndarray, "N"]:
    """Sum the rewards still to come in the episode, the current step's included.

    Every episode is summed on its own, so that neither the length of the dataset nor the rewards
    of another episode cost any precision.

    Args:
        rewards: Rewards, in the environment's units: of one whole episode, or of many one after
            the other.
        episode_offsets: Where each episode starts, and at the end the number of steps; None is one
            episode.

    Returns:
        Entry t is ``sum(rewards[t:end of its episode])``, accumulated in float64 from the end.

    Raises:
        DatasetError: ``rewards`` is empty, not one-dimensional or not finite (names the first bad
            index), or the offsets do not cover it.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 3.
    """
    rewards = np.asarray(rewards)
    if rewards.ndim != 1 or len(rewards) == 0:
        raise DatasetError(
            f"rewards have shape {rewards.shape}: give a one-dimensional array of at least one step"
        )
    check_finite("rewards", rewards)
    if episode_offsets is None:
        episode_offsets = np.array([0, len(rewards)])
    check_offsets(episode_offsets, len(rewards))

    totals = np.empty(len(rewards), dtype=np.float32)
    lengths = np.diff(episode_offsets)
    if len(lengths) <= lengths.max():  # the shorter of the two loops
        for start, end in pairwise(episode_offsets):
            totals[start:end] = np.cumsum(rewards[start:end][::-1], dtype=np.float64)[::-1]
    else:
        _sum_all_episodes_backwards(rewards, np.asarray(episode_offsets), lengths, totals)
    return totals


def _sum_all_episodes_backwards(
    rewards: Num[ndarray, "N"],
    offsets: Int64[ndarray, "E+1"],
    lengths: Int64[ndarray, "E"],
    totals: Float32[ndarray, "N"],
) -> None:
    """Fill ``totals`` one step of every episode at a time, from their last steps backwards."""
    longest_first = np.argsort(-lengths, kind="stable")
    last_steps = offsets[1:][longest_first] - 1
    ascending_lengths = lengths[longest_first][::-1]
    sums = np.zeros(len(lengths), dtype=np.float64)
    for back in range(int(lengths.max())):
        active = len(lengths) - np.searchsorted(ascending_lengths, back, side="right")
        steps = last_steps[:active] - back
        sums[:active] += rewards[steps]
        totals[steps] = sums[:active]


def compute_returns(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"]
) -> Float64[ndarray, "E"]:
    """Sum the rewards of each episode in float64.

    Args:
        rewards: Rewards of all episodes one after the other, in the environment's units.
        episode_offsets: Where each episode starts, and at the end the number of steps.

    Returns:
        One return per episode.

    Raises:
        DatasetError: The offsets do not cover ``rewards``.
    """
    check_offsets(episode_offsets, len(rewards))
    returns: Float64[ndarray, "E"] = np.add.reduceat(
        rewards, episode_offsets[:-1], dtype=np.float64
    )
    return returns
