"""Windows that follow each other: whole episodes, in order, each step once in a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmamba.data import ConsecutiveSampler, Trajectories, WindowSampler
from sb3_dmamba.errors import ConfigError

Make = Callable[..., Trajectories]


def numbered(make_trajectories: Make, lengths: list[int]) -> Trajectories:
    """Episodes whose observation is the flat step, from 1: zero is padding."""
    return make_trajectories(
        lengths,
        observations=np.arange(1, sum(lengths) + 1)[:, None],
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(lengths=LENGTHS, context_length=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_a_row_goes_through_every_step_once_in_a_pass_in_the_episodes_order(
    make_trajectories: Make, lengths: list[int], context_length: int, seed: int
) -> None:
    data = numbered(make_trajectories, lengths)
    sampler = ConsecutiveSampler(data, context_length, 3, seed)
    batches = [sampler.sample(update) for update in range(3 * sampler.n_windows)]
    for row in range(3):
        seen = [batch.observations[row, batch.padding_mask[row], 0].numpy() for batch in batches]
        starts = [int(batch.timesteps[row, 0]) == 0 for batch in batches]
        first = next(index for index, start in enumerate(starts) if start)
        for index in range(first + 1, len(batches)):
            if starts[index]:  # the one before was its episode's last
                assert int(seen[index - 1][-1]) in data.episode_offsets
            else:
                assert seen[index][0] == seen[index - 1][-1] + 1
        # A pass may begin in the middle of the window of updates, but any pass is complete.
        place = int(sampler._phases[row])
        whole = slice(sampler.n_windows - place, 2 * sampler.n_windows - place)
        steps = np.sort(np.concatenate(seen[whole]))
        np.testing.assert_array_equal(steps, np.arange(1, data.n_steps + 1))


def test_first_steps_say_where_windows_begin(make_trajectories: Make) -> None:
    data = numbered(make_trajectories, [7, 3, 12])
    sampler = ConsecutiveSampler(data, 5, 4, seed=0)
    for update in range(20):
        batch = sampler.sample(update)
        assert batch.first_steps is not None
        assert torch.equal(batch.first_steps + 1, batch.observations[:, 0, 0].long())
        moved = batch.to("cpu")
        assert moved.first_steps is not None
        assert torch.equal(moved.first_steps, batch.first_steps)
    assert WindowSampler(data, 5, 4, seed=0).sample(0).first_steps is None


def test_pure_in_seed_and_update(make_trajectories: Make) -> None:
    data = numbered(make_trajectories, [50, 20, 30])
    sampler = ConsecutiveSampler(data, 5, 8, seed=3)
    far = 7 * sampler.n_windows + 2
    expected = sampler.sample(far).observations
    for update in (0, 3, far + 1, far - 1):
        sampler.sample(update)
    assert torch.equal(sampler.sample(far).observations, expected)
    again = ConsecutiveSampler(data, 5, 8, seed=3)
    assert torch.equal(again.sample(far).observations, expected)
    other = ConsecutiveSampler(data, 5, 8, seed=4)
    assert not torch.equal(other.sample(far).observations, expected)


def test_a_batch_is_mixed_from_the_first_update_on(make_trajectories: Make) -> None:
    """Episodes of one length must not march in step: any window is as likely as any other."""
    data = numbered(make_trajectories, [100] * 10)
    counts = np.zeros(50)
    for seed in range(40):
        batch = ConsecutiveSampler(data, 20, 64, seed).sample(0)
        assert batch.first_steps is not None
        np.add.at(counts, batch.first_steps.numpy() // 20, 1)
    expected = 40 * 64 / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 85.4  # 49 degrees of freedom, one in a thousand


def test_every_pass_of_every_row_has_an_order_of_its_own(make_trajectories: Make) -> None:
    sampler = ConsecutiveSampler(numbered(make_trajectories, [10] * 12), 10, 2, seed=0)
    batches = [sampler.sample(update).first_steps for update in range(36)]
    orders = set()
    for row, phase in enumerate(sampler._phases):
        steps = [int(first_steps[row]) for first_steps in batches if first_steps is not None]
        for start in (12 - phase, 24 - phase):
            order = steps[start : start + 12]
            assert sorted(order) == list(range(0, 120, 10))
            orders.add(tuple(order))
    assert len(orders) == 4
    assert tuple(range(0, 120, 10)) not in orders


@pytest.mark.parametrize("change", [{"context_length": 0}, {"batch_size": 0}, {"seed": -1}])
def test_numbers_out_of_range(make_trajectories: Make, change: dict[str, Any]) -> None:
    arguments = {"context_length": 5, "batch_size": 2, "seed": 0, **change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        ConsecutiveSampler(make_trajectories([5]), **arguments)
    with pytest.raises(ConfigError, match="update"):
        ConsecutiveSampler(make_trajectories([5]), 5, 2).sample(-1)
