"""Several datasets as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data import join_trajectories
from sb3_dmamba.data import joining as gathering
from sb3_dmamba.errors import DatasetError
from tests.toys import random_trajectories


def test_episodes_follow_each_other() -> None:
    first, second = random_trajectories((4, 2), seed=1), random_trajectories((3,), seed=2)
    joined = join_trajectories([first, second])
    assert joined.lengths.tolist() == [4, 2, 3]
    for episode, expected in zip(joined, [*first, *second], strict=True):
        np.testing.assert_array_equal(episode.observations, expected.observations)
        np.testing.assert_array_equal(episode.actions, expected.actions)
        np.testing.assert_array_equal(episode.rewards, expected.rewards)
        assert (episode.terminated, episode.truncated) == (expected.terminated, expected.truncated)
    assert len(first) == 2  # what was joined is left as it was


def test_the_source_names_the_parts() -> None:
    parts = [random_trajectories((2,), seed=seed) for seed in range(2)]
    assert join_trajectories(parts, "two halves").source == "two halves"
    assert join_trajectories(parts).source == parts[0].source


def test_large_ones_go_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IN_MEMORY_BYTES", 10)
    parts = [random_trajectories((5, 3), seed=seed) for seed in range(2)]
    joined = join_trajectories(parts)
    assert isinstance(joined.observations, np.memmap)
    np.testing.assert_array_equal(joined[2].observations, parts[1][0].observations)


def test_other_spaces_are_refused() -> None:
    wrong: Any = [random_trajectories((2,), (3,)), random_trajectories((2,), (4,))], []
    for parts, name in zip(wrong, ("observation_space", "parts"), strict=True):
        with pytest.raises(DatasetError) as caught:
            join_trajectories(parts)
        assert caught.value.setting == name
