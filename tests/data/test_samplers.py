"""Windows drawn at random, and windows that follow each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmamba.data import ConsecutiveSampler, Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import ConfigError, DatasetError
from tests.data.builders import make_trajectories

FIELDS = ("observations", "actions", "returns_to_go", "timesteps", "padding_mask")


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def numbered(lengths: list[int]) -> Trajectories:
    """Episodes whose observation is the flat step, from 1: zero is padding."""
    return make_trajectories(
        lengths,
        observations=np.arange(1, sum(lengths) + 1)[:, None],
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )


def _assert_equal(left: WindowBatch, right: WindowBatch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(left, name), getattr(right, name)), name


def _assert_is_slice(data: Trajectories, batch: WindowBatch, row: int, first_step: int) -> None:
    """One window against plain slicing of its episode."""
    episode = int(np.searchsorted(data.episode_offsets, first_step, side="right")) - 1
    start = first_step - int(data.episode_offsets[episode])
    steps = slice(start, start + batch.padding_mask.shape[1])
    real = len(data[episode].rewards[steps])
    whole = np.cumsum(data[episode].rewards[::-1].astype(np.float64))[::-1]
    expected = {
        "observations": data[episode].observations[steps],
        "actions": data[episode].actions[steps],
        "returns_to_go": whole[steps].astype(np.float32),
        "timesteps": np.arange(len(data[episode]))[steps],
        "padding_mask": np.ones(real, dtype=bool),
    }
    for name, values in expected.items():
        window = getattr(batch, name)[row].numpy()
        np.testing.assert_array_equal(window[:real], values, err_msg=name)
        assert not window[real:].any(), f"{name} is padded with something"


@given(
    lengths=LENGTHS,
    context_length=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    update=st.integers(0, 2**40),
)
def test_every_window_is_a_slice_of_one_episode(
    lengths: list[int], context_length: int, seed: int, update: int
) -> None:
    n_steps = sum(lengths)
    data = numbered(lengths)
    sampler = WindowSampler(data, context_length, 5, seed)
    batch = sampler.sample(update)
    for row, first in enumerate(batch.observations[:, 0, 0]):
        _assert_is_slice(data, batch, row, int(first) - 1)
    every = sampler.window_at(np.arange(n_steps))
    for step in range(n_steps):
        _assert_is_slice(data, every, step, step)


@given(lengths=LENGTHS, context_length=st.integers(1, 12), batch_size=st.integers(1, 7))
def test_iterate_all_visits_each_step_once_in_order(
    lengths: list[int], context_length: int, batch_size: int
) -> None:
    data = make_trajectories(lengths)
    batches = list(WindowSampler(data, context_length, batch_size, 0).iterate_all())
    seen = torch.cat([batch.observations[batch.padding_mask] for batch in batches])
    np.testing.assert_array_equal(seen.numpy(), data.observations)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batch.padding_mask.any(dim=1).all() for batch in batches)


def test_pure_in_seed_and_update() -> None:
    data = numbered([50, 20, 30])
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    for make in (WindowSampler, ConsecutiveSampler, partial(WindowSampler, balance=0.5)):
        sampler = make(data, 5, 16, seed=3)
        expected = sampler.sample(500)
        for update in (4, 0, 501):  # what was drawn before makes no difference
            sampler.sample(update)
        _assert_equal(sampler.sample(500), expected)
        _assert_equal(make(data, 5, 16, seed=3).sample(500), expected)
        neighbour = make(data, 5, 16, seed=4)
        for other in (sampler.sample(501), neighbour.sample(500), neighbour.sample(499)):
            assert not torch.equal(other.observations, expected.observations)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


def test_every_step_is_equally_likely() -> None:
    n_steps, draws, batch_size = 60, 400, 64
    data = numbered([1, 40, 3, 16])
    sampler = WindowSampler(data, 20, batch_size, seed=5)
    firsts = torch.cat([sampler.sample(update).observations[:, 0, 0] for update in range(draws)])
    counts = np.bincount(firsts.long().numpy() - 1, minlength=n_steps)
    expected = draws * batch_size / n_steps
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 59 degrees of freedom: mean 59, standard deviation 10.9; 99.99 % lie below 107.
    assert 25 < chi_square < 107


def with_returns(lengths: list[int], returns: list[float]) -> Trajectories:
    rewards = np.zeros(sum(lengths), np.float32)
    rewards[np.cumsum(lengths) - 1] = returns
    return make_trajectories(lengths, rewards=rewards)


def test_balanced_windows_have_the_stated_probabilities() -> None:
    lengths, returns = [30, 2, 5, 4, 1, 6], [-10.0, -0.5, 90.0, 30.0, 80.5, 39.5]
    bins, in_bin = [0, 0, 9, 4, 9, 4], {0: 32, 4: 10, 9: 6}  # each 10 wide
    data = with_returns(lengths, returns)
    for balance in (0.5, 1.0):
        by_episode = [(1 - balance) / 48 + balance / 3 / in_bin[each] for each in bins]
        expected = 64 * 400 * np.repeat(by_episode, lengths)
        sampler = WindowSampler(data, 3, 64, seed=5, balance=balance)
        firsts = np.concatenate([sampler.draw_first_steps(update) for update in range(400)])
        counts = np.bincount(firsts, minlength=48)
        # 47 degrees of freedom: 99.99 % lie below 91.
        assert 15 < float(((counts - expected) ** 2 / expected).sum()) < 91


def test_the_uniform_share_is_what_it_was() -> None:
    data = with_returns([30, 2, 5, 4, 1], [-10.0, -5.0, 90.0, 30.0, 85.0])
    uniform = np.random.default_rng((5, 7)).integers(42, size=64)
    assert WindowSampler(data, 3, 64, seed=5).draw_first_steps(7).tolist() == uniform.tolist()
    balanced = WindowSampler(data, 3, 64, seed=5, balance=0.25).draw_first_steps(7)
    assert 0.6 < float((balanced == uniform).mean()) < 0.95
    alike = with_returns([30, 2, 5, 4, 1], [7.0] * 5)
    found = WindowSampler(alike, 3, 64, seed=5, balance=1.0).draw_first_steps(7)
    assert found.tolist() == uniform.tolist()


def test_moving_a_batch() -> None:
    batch = WindowSampler(make_trajectories([30]), 5, 4, burn_in=3).sample(0)
    _assert_equal(batch.to("cpu"), batch)
    moved = batch.to("meta")
    assert moved.before is not None
    for part in (moved.actions, moved.padding_mask, moved.before.observations):
        assert part.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinning_a_batch() -> None:
    batch = WindowSampler(make_trajectories([9]), 4, 6, seed=0).sample(0).pin_memory()
    assert batch.observations.is_pinned()
    assert batch.to("cuda", non_blocking=True).actions.is_cuda


def test_bad_settings() -> None:
    data = make_trajectories([5])
    bad: dict[str, list[Any]] = {
        "context_length": [0, 2.0],
        "batch_size": [0, True],
        "seed": [-1, None],
        "burn_in": [-1],
        "balance": [1.1, True],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ConfigError) as caught:
                WindowSampler(data, **{"context_length": 2, "batch_size": 2, name: value})
            assert (caught.value.setting, caught.value.value) == (name, value)
    with pytest.raises(ConfigError) as caught:
        ConsecutiveSampler(data, 0, 2)
    assert caught.value.setting == "context_length"
    for sampler in (WindowSampler(data, 2, 2), ConsecutiveSampler(data, 2, 2)):
        with pytest.raises(ConfigError) as caught:
            sampler.sample(-1)
        assert caught.value.setting == "update"
    wrong: list[tuple[list[Any], int | None]] = [([0, 5], 1), ([-1], 0), ([0.5], None), ([], None)]
    for steps, index in wrong:
        with pytest.raises(DatasetError) as refused:
            WindowSampler(data, 2, 2).window_at(np.array(steps))
        assert (refused.value.setting, refused.value.index) == ("first_steps", index)


@given(
    lengths=LENGTHS,
    context_length=st.integers(1, 12),
    burn_in=st.integers(1, 12),
    update=st.integers(0, 2**40),
)
def test_the_steps_before_a_window(
    lengths: list[int], context_length: int, burn_in: int, update: int
) -> None:
    data = make_trajectories(lengths)
    plain = WindowSampler(data, context_length, 5, 1)
    batch = WindowSampler(data, context_length, 5, 1, burn_in=burn_in).sample(update)
    before = batch.before
    _assert_equal(batch, plain.sample(update))  # the windows are the same
    assert plain.sample(update).before is None
    ages = batch.timesteps[:, 0].numpy()
    if before is None:
        assert not ages.any()
        return
    assert before.padding_mask.shape[1] == min(burn_in, int(ages.max()))
    generator = np.random.default_rng((1, update))
    for row, first_step in enumerate(generator.integers(data.n_steps, size=5)):
        n_steps = min(burn_in, int(ages[row]))
        assert int(before.padding_mask[row].sum()) == n_steps
        if n_steps:
            window = WindowSampler(data, n_steps, 1).window_at(np.array([first_step - n_steps]))
        for name in FIELDS:
            part = getattr(before, name)[row]
            padded = len(part) - n_steps
            assert not part[:padded].any(), f"{name} is padded with something"
            assert n_steps == 0 or torch.equal(part[padded:], getattr(window, name)[0]), name


def test_stacked_frames_before_a_window() -> None:
    frames = np.random.default_rng(0).integers(1, 256, (9, 4, 5), dtype=np.uint8)
    data = make_trajectories(
        [5, 4],
        observations=frames,
        observation_space=spaces.Box(0, 255, (3, 4, 5), np.uint8),
        frame_stack=3,
    )
    before = WindowSampler(data, 2, 9, burn_in=2).window_at(np.array([1, 3, 5, 8])).before
    assert before is not None
    assert before.padding_mask.tolist() == [[False, True], [True, True], [False] * 2, [True] * 2]
    expected = data.stack_frames(np.array([0, 1, 2, 6, 7]))
    np.testing.assert_array_equal(before.observations[before.padding_mask].numpy(), expected)
    assert not before.observations[~before.padding_mask].any()


@given(lengths=LENGTHS, context_length=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_a_row_goes_through_every_step_once_in_a_pass_in_the_episodes_order(
    lengths: list[int], context_length: int, seed: int
) -> None:
    data = numbered(lengths)
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


def test_first_steps_say_where_windows_begin() -> None:
    data = numbered([7, 3, 12])
    sampler = ConsecutiveSampler(data, 5, 4, seed=0)
    for update in range(20):
        batch = sampler.sample(update)
        assert batch.first_steps is not None
        assert torch.equal(batch.first_steps + 1, batch.observations[:, 0, 0].long())
        assert batch.to("cpu").first_steps is not None
    assert WindowSampler(data, 5, 4, seed=0).sample(0).first_steps is None


def test_a_batch_is_mixed_from_the_first_update_on() -> None:
    """Episodes of one length must not march in step: any window is as likely as any other."""
    data = numbered([100] * 10)
    counts = np.zeros(50)
    for seed in range(40):
        batch = ConsecutiveSampler(data, 20, 64, seed).sample(0)
        assert batch.first_steps is not None
        np.add.at(counts, batch.first_steps.numpy() // 20, 1)
    expected = 40 * 64 / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 85.4  # 49 degrees of freedom, one in a thousand


def test_every_pass_of_every_row_has_an_order_of_its_own() -> None:
    sampler = ConsecutiveSampler(numbered([10] * 12), 10, 2, seed=0)
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
