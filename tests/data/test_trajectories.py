"""The container: counts, selections, checks, changed data, summary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray
from rich.console import Console

from sb3_dmamba.data import (
    Episode,
    Trajectories,
    WindowSampler,
    compute_observation_statistics,
    load_trajectories,
    mapping,
)
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.errors import ConfigError, DatasetError, SpaceError
from tests.data.builders import assert_same, make_trajectories

LENGTHS = [3, 1, 4, 2]


def test_counts_and_types() -> None:
    data = make_trajectories(LENGTHS)
    assert (len(data), data.n_steps, data.lengths.tolist()) == (4, 10, LENGTHS)
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    assert data.episode_offsets.dtype == np.int64
    assert data.terminated.dtype == data.truncated.dtype == np.bool_
    assert data.cut.tolist() == [False, False, True, False]
    assert "4 episodes, 10 steps" in repr(data)
    assert data.returns.dtype == np.float64
    assert data.returns_to_go is data.returns_to_go
    firsts = data.returns_to_go[data.episode_offsets[:-1]]
    np.testing.assert_allclose(firsts, data.returns, rtol=1e-6)


def test_an_episode_is_views() -> None:
    data = make_trajectories(LENGTHS)
    episode = data[2]
    assert isinstance(episode, Episode)
    assert len(episode) == 4
    assert np.shares_memory(episode.observations, data.observations)
    np.testing.assert_array_equal(episode.rewards, data.rewards[4:8])
    assert (episode.terminated, episode.truncated) == (False, False)
    assert [len(episode) for episode in data] == LENGTHS
    assert episode.return_ == data.returns[2]
    assert data[-1].return_ == data.returns[3]
    assert "4 steps" in repr(episode)


def test_what_cannot_be_selected() -> None:
    data = make_trajectories(LENGTHS, env_id="Hopper-v5", env_kwargs={"a": 1}, source="here")
    for number in (4, -5):
        with pytest.raises(IndexError, match="there are 4"):
            data[number]
    wrong: list[Any] = [slice(2, 2), [], np.zeros(4, dtype=bool), [[0]], [0.5], "0"]
    for index in wrong:
        with pytest.raises(DatasetError) as caught:
            data[index]
        assert caught.value.setting == "index"
    chosen = data[1:3]
    assert (chosen.env_id, chosen.env_kwargs, chosen.source) == ("Hopper-v5", {"a": 1}, "here")
    assert np.shares_memory(chosen.observations, data.observations)


def test_cut_episodes_can_be_dropped() -> None:
    data = make_trajectories(LENGTHS)
    kept = data.drop_cut_episodes()
    assert kept.lengths.tolist() == [3, 1, 2]
    assert kept.drop_cut_episodes() is kept
    with pytest.raises(DatasetError, match="selects none"):
        make_trajectories([2], terminated=[False], truncated=[False]).drop_cut_episodes()


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
PAIR, ONE = spaces.Discrete(2), spaces.Discrete(2, start=1)
# what is wrong: part of the message, the array, the index that is named
BAD: list[tuple[dict[str, Any], str, str | None, int | None]] = [
    ({"observations": ((5, 1), np.nan)}, "[5, 1] is nan (episode 2, step 1)", "observations", 5),
    ({"rewards": (9, np.inf)}, "rewards[9] is inf (episode 3, step 1)", "rewards", 9),
    ({"actions": ((3, 0), np.nan)}, "[3, 0] is nan (episode 1, step 0)", "actions", 3),
    ({"actions": ((4, 1), 1.01)}, "[4, 1] is 1.01 (episode 2, step 0), outside", "actions", 4),
    ({"actions": ((9, 0), -1.01)}, "outside", "actions", 9),
    ({"observations": np.full((10, 3), 1e300)}, "[0, 0] is inf", "observations", 0),
    ({"observations": np.zeros((9, 3))}, "(9, 3) where (10, 3)", "observations", None),
    ({"observations": np.zeros((10, 4))}, "(10, 4) where (10, 3)", "observations", None),
    ({"observations": np.full((10, 3), "a")}, "give numbers", "observations", None),
    ({"actions": np.zeros(10)}, "(10,) where (10, 2)", "actions", None),
    ({"rewards": np.zeros((10, 1))}, "(10, 1) where (10,)", "rewards", None),
    ({"rewards": np.zeros(0)}, "is empty", None, None),
    ({"terminated": np.zeros(3, dtype=bool)}, "(3,) where (4,)", "terminated", None),
    ({"truncated": np.zeros(10, dtype=bool)}, "(10,) where (4,)", "truncated", None),
    ({"episode_offsets": np.array([0, 3, 4, 8, 9])}, "end at 9", "episode_offsets", None),
    ({"episode_offsets": np.array([1, 3, 4, 8, 10])}, "[0] is 1", "episode_offsets", None),
    ({"episode_offsets": np.array([0, 3, 3, 8, 10])}, "step 3 to 3", "episode_offsets", None),
    ({"episode_offsets": np.array([0.0, 3, 4, 8, 10])}, "float64", "episode_offsets", None),
    ({"actions": np.zeros(10), "action_space": PAIR}, "are float64", "actions", None),
    ({"actions": [0] * 7 + [2, 0, 0], "action_space": PAIR}, "allows 0 to 1", "actions", 7),
    ({"actions": [1] * 9 + [0], "action_space": ONE}, "Discrete(2, start=1) allows", "actions", 9),
    ({"env_kwargs": {"f": object()}}, "cannot be written as JSON", "env_kwargs", None),
]


@pytest.mark.parametrize("chunk_bytes", [1, _checks.CHUNK_BYTES])
def test_bad_data(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    whole = make_trajectories(LENGTHS)
    for wrong, message, name, index in BAD:
        changes = dict(wrong)
        for key, change in wrong.items():
            if isinstance(change, tuple):  # one entry: where, and what it becomes
                changes[key] = np.array(getattr(whole, key))
                changes[key][change[0]] = change[1]
        with pytest.raises(DatasetError) as caught:
            make_trajectories(LENGTHS, **changes)
        assert message in str(caught.value)
        assert (caught.value.setting, caught.value.index) == (name, index), message


def test_actions_at_and_without_bounds() -> None:
    actions = np.full((10, 2), 1.0 + 2e-6)  # rounding
    assert (make_trajectories(LENGTHS, actions=actions).actions > 1.0).all()
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    actions = np.full((10, 2), 1e6)
    assert make_trajectories(LENGTHS, actions=actions, action_space=space).actions.max() == 1e6


def test_bad_spaces() -> None:
    for name, space in (
        ("action_space", spaces.MultiBinary(2)),
        ("action_space", spaces.Box(-1, 1, (2, 1))),
        ("action_space", spaces.Box(0, 9, (2,), np.int32)),
        ("observation_space", spaces.Discrete(3)),
    ):
        with pytest.raises(SpaceError) as caught:
            make_trajectories(LENGTHS, 0, 3, **{name: space})
        assert (caught.value.setting, caught.value.value) == (name, space)


def test_from_episodes_joins() -> None:
    data = make_trajectories(LENGTHS)
    episodes = list(data)
    joined = Trajectories.from_episodes(
        [episode.observations for episode in episodes],
        [episode.actions for episode in episodes],
        [episode.rewards for episode in episodes],
        data.terminated,
        data.truncated,
        observation_space=data.observation_space,
        action_space=BOX,
        env_id="Hopper-v5",
        source="episodes",
    )
    again = dataclasses.replace(data, action_space=BOX, env_id="Hopper-v5", source="episodes")
    assert_same(joined, again)


def test_from_episodes_that_do_not_fit() -> None:
    actions = [np.zeros((2, 2))]
    wrong: list[tuple[list[Any], list[Any], list[Any], str]] = [
        ([np.zeros((3, 1))], actions, [np.zeros(2)], "episode 0 has 3 observations, 2 actions"),
        ([], actions, [], "0 episodes of observations and 1 of terminated"),
        ([np.zeros((2, 1))], actions, [], "0 episodes of rewards"),
        ([], [], [], "the dataset is empty"),
    ]
    for observations, taken, rewards, message in wrong:
        ends = [True] * len(taken)
        with pytest.raises(DatasetError, match=message):
            Trajectories.from_episodes(
                *(observations, taken, rewards, ends, ends),
                observation_space=spaces.Box(-1, 1, (1,)),
                action_space=BOX,
            )


def test_summary_prints_and_is_json() -> None:
    data = make_trajectories([1] * 5, rewards=np.array([1.0, 2.0, 3.0, 4.0, 10.0]), source="here")
    summary = data.summary()
    found = summary.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (summary.episodes, summary.steps) == (5, 5)
    assert (summary.terminated, summary.truncated, summary.cut) == (2, 2, 1)
    names = ("mean", "std", "min", "quartile_1", "median", "quartile_3", "max")
    expected = dict(zip(names, (4.0, np.sqrt(10.0), 1.0, 2.0, 3.0, 4.0, 10.0), strict=True))
    assert found["returns"] == pytest.approx(expected)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary)
    for text in (str(summary), capture.get()):
        for part in ("4.0 ± 3.2", "1.0 to 10.0", "2.0 | 3.0 | 4.0", "here"):
            assert part in text


SHORT = [2, 1, 3, 2]
REWARDS = np.array([1, 1, 5, 0, 0, 3, 4, 1], np.float32)  # returns 2, 5, 3, 5


@pytest.fixture(params=["in memory", "mapped", "large and mapped"])
def data(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trajectories:
    made = make_trajectories(SHORT, rewards=REWARDS, source="toy", env_id="Toy-v0")
    if request.param == "in memory":
        return made
    if request.param == "large and mapped":
        monkeypatch.setattr(mapping, "SCRATCH_BYTES", 0)
    made.save(tmp_path / "store")
    return Trajectories.open(tmp_path / "store")


def test_delayed_rewards(data: Trajectories) -> None:
    delayed = data.with_delayed_rewards()
    assert delayed.rewards.tolist() == [0, 2, 5, 0, 0, 3, 0, 5]
    assert delayed.rewards.dtype == np.float32
    assert delayed.returns_to_go.tolist() == [2, 2, 5, 3, 3, 3, 5, 5]
    np.testing.assert_array_equal(delayed.returns, data.returns)
    np.testing.assert_array_equal(delayed.observations, data.observations)
    assert (delayed.source, delayed.env_id) == ("toy (delayed rewards)", "Toy-v0")
    assert data.rewards.tolist() == REWARDS.tolist()
    assert data.returns_to_go[0] == 2


def test_a_return_beyond_float32() -> None:
    data = make_trajectories([1, 2], rewards=np.array([0, 3e38, 3e38], np.float32))
    with pytest.raises(DatasetError, match=r"returns\[1\] is inf"):
        data.with_delayed_rewards()


def assert_episodes(found: Trajectories, data: Trajectories, episodes: Any) -> None:
    for ours, theirs in zip(found, (data[int(number)] for number in episodes), strict=True):
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "return_"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def test_the_best_episodes(data: Trajectories) -> None:
    # never none; of 1 and 3, which are alike, the earlier
    every = [0, 1, 2, 3]
    expected: dict[Any, list[int]] = {0.01: [1], 0.49: [1], 0.5: [1, 3], 0.75: [1, 2, 3], 1: every}
    for fraction, episodes in expected.items():
        assert_episodes(data.take_top(fraction), data, episodes)


def test_a_fraction_is_what_people_mean() -> None:
    data = make_trajectories([1] * 100)
    for percent in range(1, 101):
        assert len(data.take_top(percent / 100)) == percent  # 0.29 * 100 is below 29
    assert data.take_top(1) is data
    assert data.take_top(0.25).source == "the best 25% of episodes"


def test_options_of_every_source(data: Trajectories, tmp_path: Path) -> None:
    expected = data.take_top(0.5).with_delayed_rewards()
    flat = {
        "observations": data.observations,
        "actions": data.actions,
        "rewards": data.rewards,
        "terminals": np.isin(np.arange(8), data.episode_offsets[1:] - 1),
    }
    data.save(tmp_path / "another")
    for source in (data, flat, tmp_path / "another"):
        found = load_trajectories(source, reward_mode="delayed", top_fraction=0.5)
        assert found.rewards.tolist() == [5, 0, 5]
        np.testing.assert_array_equal(found.observations, expected.observations)
    assert load_trajectories(data, reward_mode="dense", top_fraction=None) is data


def test_bad_options() -> None:
    wrong: list[Any] = [0, -0.1, 1.1, np.nan, True, "0.1", None]
    for fraction in wrong:
        with pytest.raises(ConfigError) as caught:
            make_trajectories([1]).take_top(fraction)
        assert caught.value.setting == "fraction"
    options: dict[str, Any] = {"reward_mode": "sparse", "top_fraction": 10}
    for name, value in options.items():
        with pytest.raises(ConfigError) as caught:
            load_trajectories("no/such/file.hdf5", **{name: value})  # checked before loading
        assert (caught.value.setting, caught.value.value) == (name, value)


def test_selections(data: Trajectories) -> None:
    every = slice(None, None, -1)
    indices: list[Any] = [
        [3, 0],
        [0, 0, 2],
        [-1, 1],
        every,
        slice(1, 3),
        [True, False, False, True],
    ]
    for index in indices:
        episodes = np.arange(4)[index]
        selected = data[index]
        assert_episodes(selected, data, episodes)
        assert selected.lengths.tolist() == [SHORT[episode] for episode in episodes]
        assert selected.source == data.source


def stacked(
    lengths: list[int], frame: tuple[int, ...] = (3, 2), stack: int = 4, **changes: Any
) -> Trajectories:
    n_steps = sum(lengths)
    frames = np.random.default_rng(1).integers(1, 256, (n_steps, *frame), dtype=np.uint8)
    fields = {
        "observations": frames,
        "observation_space": spaces.Box(0, 255, (stack, *frame), np.uint8),
        "actions": np.arange(n_steps) % 4,
        "action_space": spaces.Discrete(4),
        "frame_stack": stack,
    }
    return make_trajectories(lengths, **{**fields, **changes})


def _slowly(data: Trajectories, step: int) -> ndarray:
    """What the policy sees at a step, one frame at a time."""
    episode = int(np.searchsorted(data.episode_offsets, step, side="right")) - 1
    first = int(data.episode_offsets[episode])
    stack = np.zeros(data.observation_space.shape, np.uint8)
    for back in range(data.frame_stack):
        if step - back >= first:
            stack[data.frame_stack - 1 - back] = data.observations[step - back]
    return stack


def test_worked_by_hand() -> None:
    frames = np.arange(1, 6, dtype=np.uint8)[:, None]
    data = stacked([3, 2], (1,), 3, observations=frames)
    stacks = data.stack_frames(np.arange(5))
    assert stacks.dtype == np.uint8
    assert stacks[..., 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 4], [0, 4, 5]]
    assert data[1].observations.tolist() == [[4], [5]]  # frames, as they are stored


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    stack=st.integers(2, 6),
    context_length=st.integers(1, 12),
    mapped=st.booleans(),
)
def test_windows_are_what_stacking_step_by_step_gives(
    tmp_path: Path, lengths: list[int], stack: int, context_length: int, mapped: bool
) -> None:
    data = stacked(lengths, stack=stack)
    if mapped:
        data.save(tmp_path / "store", overwrite=True)
        data = Trajectories.open(tmp_path / "store")
        assert isinstance(data.observations, np.memmap)
        assert data.frame_stack == stack
    steps = np.random.default_rng(0).permutation(data.n_steps)
    expected = np.stack([_slowly(data, int(step)) for step in range(data.n_steps)])
    np.testing.assert_array_equal(data.stack_frames(steps), expected[steps])
    parts = np.split(expected, data.episode_offsets[1:-1])[::-1]
    chosen = data[::-1].stack_frames(np.arange(data.n_steps))
    np.testing.assert_array_equal(chosen, np.concatenate(parts))

    batch = WindowSampler(data, context_length, 4).window_at(steps)
    assert (batch.observations.dtype, batch.actions.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(batch.actions[:, 0], data.actions[steps])
    assert batch.observations.is_contiguous()
    for row, step in enumerate(steps):
        real = batch.padding_mask[row].numpy()
        seen = batch.observations[row].numpy()
        np.testing.assert_array_equal(seen[real], expected[step : step + real.sum()])
        assert not seen[~real].any()
    drawn = list(WindowSampler(data, context_length, 3).iterate_all())
    every = torch.cat([each.observations[each.padding_mask] for each in drawn])
    np.testing.assert_array_equal(every.numpy(), expected)


def test_what_does_not_fit() -> None:
    floats = spaces.Box(0.0, 1.0, (4, 3, 2), np.float32)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        *(({"frame_stack": n}, DatasetError, "frame_stack") for n in (0, True, 2.0, None, "4")),
        ({"frame_stack": 3}, SpaceError, "frame_stack"),
        ({"observation_space": floats}, SpaceError, "frame_stack"),
        ({"observations": np.ones((10, 4, 3, 2), np.uint8)}, DatasetError, "observations"),
        ({"observations": np.ones((10, 3, 2))}, DatasetError, "observations"),
    ]
    for changes, kind, name in wrong:
        with pytest.raises((DatasetError, SpaceError)) as caught:
            stacked([6, 4], **changes)
        assert (type(caught.value), caught.value.setting) == (kind, name)
    data = stacked([6, 4], frame_stack=np.int64(4))
    assert type(data.frame_stack) is int
    steps: list[Any] = [[-1], [0, 10], [], [0.5], [[0]]]
    for each in steps:
        with pytest.raises(DatasetError) as refused:
            data.stack_frames(np.array(each))
        assert refused.value.setting == "steps"


def test_statistics_of_other_frames_are_repeated_over_the_stack() -> None:
    data = stacked([40, 60], (5,))
    statistics = compute_observation_statistics(data)
    assert compute_observation_statistics(stacked([5], (84, 84))) is None  # images
    assert statistics is not None
    assert statistics.mean.shape == statistics.std.shape == (4, 5)
    for row in range(4):
        np.testing.assert_allclose(statistics.mean[row], data.observations.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics.std[row], data.observations.std(axis=0), rtol=1e-6)
