"""Which episodes of a DQN replay the Decision Transformer's experiments take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sb3_dmamba.data.sources.dqn_replay.episodes import RecordedEpisode
from sb3_dmamba.errors import DatasetError

__all__ = ["follow_recipe"]


def follow_recipe(
    episodes: Mapping[int, Iterator[RecordedEpisode]],
    trajectories_per_buffer: int,
    n_steps: int,
    seed: int,
) -> Iterator[RecordedEpisode]:
    """Visit checkpoints at random until there are enough steps.

    A visit takes the next episodes of its checkpoint, from where the visit before left off, and
    whole ones only. Steps are counted after each visit, so there are a few more in the end.

    Args:
        episodes: What each checkpoint holds, in its order.
        trajectories_per_buffer: Episodes in a visit.
        n_steps: How many steps are enough.
        seed: Of the visits' order.

    Raises:
        DatasetError: All checkpoints together have fewer steps.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 4.1, and the order that their code's
    ``np.random.choice`` draws checkpoints in after ``np.random.seed(seed)``; theirs takes one
    episode more in each visit, and keeps the all-zero rows.
    """
    generator = np.random.RandomState(seed)  # whose draws are theirs
    numbers = np.array(sorted(episodes))
    exhausted: set[int] = set()
    taken = 0
    while taken < n_steps:
        if len(exhausted) == len(numbers):
            raise DatasetError(
                f"the {len(numbers)} checkpoints have {taken:,} steps in whole episodes and "
                f"n_steps={n_steps:,} were asked for: ask for fewer, or for all with n_steps=None"
            )
        number = int(generator.choice(numbers, 1)[0])
        visited = 0
        while visited < trajectories_per_buffer and number not in exhausted:
            episode = next(episodes[number], None)
            if episode is None:
                exhausted.add(number)
            elif episode.terminated:
                taken += len(episode.actions)
                visited += 1
                yield episode
