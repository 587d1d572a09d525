"""Returns and returns-to-go, accumulated in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int64, Num
from numpy import ndarray

from sb3_dmamba.data.mapping import as_array, join_rows
from sb3_dmamba.data.validation import check_finite, check_offsets, rows_per_chunk
from sb3_dmamba.errors import DatasetError


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
    rewards = as_array(rewards)
    if rewards.ndim != 1 or len(rewards) == 0:
        raise DatasetError(
            f"rewards have shape {rewards.shape}: give a one-dimensional array of at least one step"
        )
    check_finite("rewards", rewards)
    if episode_offsets is None:
        episode_offsets = np.array([0, len(rewards)])
    check_offsets(episode_offsets, len(rewards))
    pieces = (_sum_backwards(*group) for group in iterate_groups(rewards, episode_offsets))
    return join_rows(pieces, np.dtype(np.float32), rewards.shape, rewards)


def iterate_groups(
    rewards: Num[ndarray, "N"], episode_offsets: Int64[ndarray, "E+1"]
) -> Iterator[tuple[Num[ndarray, "n"], Int64[ndarray, "m+1"]]]:
    """Yield the rewards of as many whole episodes as bounded memory holds, and their offsets."""
    episode_offsets = np.asarray(episode_offsets)
    most = rows_per_chunk(rewards)
    first = 0
    while first < len(episode_offsets) - 1:
        start = episode_offsets[first]
        end = int(np.searchsorted(episode_offsets, start + most, side="right")) - 1
        end = max(end, first + 1)  # an episode is never cut
        offsets = episode_offsets[first : end + 1]
        yield rewards[start : offsets[-1]], offsets - start
        first = end


def _sum_backwards(
    rewards: Num[ndarray, "n"], offsets: Int64[ndarray, "m+1"]
) -> Float32[ndarray, "n"]:
    totals = np.empty(len(rewards), dtype=np.float32)
    lengths = np.diff(offsets)
    if len(lengths) <= lengths.max():  # the shorter of the two loops
        for start, end in pairwise(offsets):
            totals[start:end] = np.cumsum(rewards[start:end][::-1], dtype=np.float64)[::-1]
    else:
        _sum_all_episodes_backwards(rewards, offsets, lengths, totals)
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
    return np.concatenate(
        [
            np.add.reduceat(group, offsets[:-1], dtype=np.float64)
            for group, offsets in iterate_groups(rewards, episode_offsets)
        ]
    )
