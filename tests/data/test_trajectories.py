"""The container: counts, selections, checks, changed data, summary."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from sb3_dmamba.data import Episode, Trajectories, load_trajectories, mapping
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.errors import ConfigError, DatasetError, SpaceError

Make = Callable[..., Trajectories]
LENGTHS = [3, 1, 4, 2]


def test_counts_and_types(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    assert (len(data), data.n_steps, data.lengths.tolist()) == (4, 10, LENGTHS)
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    assert data.episode_offsets.dtype == np.int64
    assert data.terminated.dtype == data.truncated.dtype == np.bool_
    assert data.cut.tolist() == [False, False, True, False]
    assert "4 episodes, 10 steps" in repr(data)


def test_returns_are_cached_and_agree(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    assert data.returns.dtype == np.float64
    assert data.returns_to_go is data.returns_to_go
    firsts = data.returns_to_go[data.episode_offsets[:-1]]
    np.testing.assert_allclose(firsts, data.returns, rtol=1e-6)


def test_an_episode_is_views(make_trajectories: Make) -> None:
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


def test_what_cannot_be_selected(make_trajectories: Make) -> None:
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


def test_cut_episodes_can_be_dropped(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    kept = data.drop_cut_episodes()
    assert kept.lengths.tolist() == [3, 1, 2]
    assert kept.drop_cut_episodes() is kept
    with pytest.raises(DatasetError, match="selects none"):
        make_trajectories([2], terminated=[False], truncated=[False]).drop_cut_episodes()


def test_survives_pickling_and_copying(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    for twin in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        np.testing.assert_array_equal(twin.observations, data.observations)
    with pytest.raises(AttributeError):
        data.rewards = np.zeros(1)  # type: ignore[misc]


def test_frames_stay_bytes(make_trajectories: Make) -> None:
    frames = np.zeros((10, 84, 84), dtype=np.uint8)
    space = spaces.Box(0, 255, (84, 84), np.uint8)
    data = make_trajectories(LENGTHS, observations=frames, observation_space=space)
    assert data.observations is frames
    with pytest.raises(DatasetError, match="give the frames as uint8"):
        make_trajectories(LENGTHS, observations=frames / 255, observation_space=space)


def test_discrete_actions_keep_the_environments_numbers(make_trajectories: Make) -> None:
    space = spaces.Discrete(3, start=2)
    actions = np.array([2, 3, 4, 2, 3, 4, 2, 3, 4, 2], dtype=np.uint8)
    data = make_trajectories(LENGTHS, actions=actions, action_space=space)
    assert data.actions.dtype == np.int64
    assert data.actions.tolist() == actions.tolist()


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
PAIR = spaces.Discrete(2)
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
    (
        {"actions": [1] * 9 + [0], "action_space": spaces.Discrete(2, start=1)},
        "[9] is 0 (episode 3, step 1): Discrete(2, start=1) allows 1 to 2",
        "actions",
        9,
    ),
    ({"env_kwargs": {"f": object()}}, "cannot be written as JSON", "env_kwargs", None),
]


@pytest.mark.parametrize("chunk_bytes", [1, _checks.CHUNK_BYTES])
def test_bad_data(
    make_trajectories: Make, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    whole = make_trajectories(LENGTHS)
    for given, message, name, index in BAD:
        changes = dict(given)
        for key, change in given.items():
            if isinstance(change, tuple):  # one entry: where, and what it becomes
                changes[key] = np.array(getattr(whole, key))
                changes[key][change[0]] = change[1]
        with pytest.raises(DatasetError) as caught:
            make_trajectories(LENGTHS, **changes)
        assert message in str(caught.value)
        assert (caught.value.setting, caught.value.index) == (name, index), message


def test_actions_at_and_without_bounds(make_trajectories: Make) -> None:
    actions = np.full((10, 2), 1.0 + 2e-6)  # rounding
    assert (make_trajectories(LENGTHS, actions=actions).actions > 1.0).all()
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    actions = np.full((10, 2), 1e6)
    assert make_trajectories(LENGTHS, actions=actions, action_space=space).actions.max() == 1e6


def test_bad_spaces(make_trajectories: Make) -> None:
    for name, space in (
        ("action_space", spaces.MultiBinary(2)),
        ("action_space", spaces.Box(-1, 1, (2, 1))),
        ("action_space", spaces.Box(0, 9, (2,), np.int32)),
        ("observation_space", spaces.Discrete(3)),
    ):
        with pytest.raises(SpaceError) as caught:
            make_trajectories(LENGTHS, **{name: space})
        assert (caught.value.setting, caught.value.value) == (name, space)


def test_from_episodes_joins(make_trajectories: Make) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (10, 6, 5), dtype=np.uint8)
    space = spaces.Box(0, 255, (2, 6, 5), np.uint8)
    changes = {"observations": frames, "observation_space": space, "frame_stack": 2}
    data = make_trajectories(LENGTHS, **changes)
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
        frame_stack=2,
    )
    for name in ("observations", "actions", "rewards", "episode_offsets", "truncated"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(data, name))
    assert (joined.env_id, joined.source, joined.frame_stack) == ("Hopper-v5", "episodes", 2)


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


def test_summary_prints_and_is_json(make_trajectories: Make) -> None:
    data = make_trajectories(
        [1] * 5,
        rewards=np.array([1.0, 2.0, 3.0, 4.0, 10.0]),
        terminated=[True, True, False, False, True],
        truncated=[False, True, True, False, False],
        env_id="Hopper-v5",
        source="here",
    )
    summary = data.summary()
    found = summary.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (summary.episodes, summary.steps) == (5, 5)
    assert (summary.terminated, summary.truncated, summary.cut) == (3, 2, 1)
    assert found["returns"] == {
        "mean": 4.0,
        "std": pytest.approx(np.sqrt(10.0)),
        "min": 1.0,
        "quartile_1": 2.0,
        "median": 3.0,
        "quartile_3": 4.0,
        "max": 10.0,
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(summary)
    assert isinstance(console.file, io.StringIO)
    for text in (str(summary), console.file.getvalue()):
        for part in ("4.0 ± 3.2", "1.0 to 10.0", "2.0 | 3.0 | 4.0", "Hopper-v5", "here"):
            assert part in text


# --- Changed data ---------------------------------------------------------------------------------

SHORT = [2, 1, 3, 2]
REWARDS = np.array([1, 1, 5, 0, 0, 3, 4, 1], np.float32)  # returns 2, 5, 3, 5


@pytest.fixture(params=["in memory", "mapped", "large and mapped"])
def data(
    request: pytest.FixtureRequest,
    make_trajectories: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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


def test_delayed_rewards_are_summed_in_float64(make_trajectories: Make) -> None:
    rewards = np.full(3, 2.0**24, np.float32)
    rewards[1:] = 0.75  # float32 would lose each of them
    delayed = make_trajectories([3], rewards=rewards).with_delayed_rewards()
    assert delayed.rewards[-1] == np.float32(2.0**24 + 1.5)


def test_a_return_beyond_float32(make_trajectories: Make) -> None:
    data = make_trajectories([1, 2], rewards=np.array([0, 3e38, 3e38], np.float32))
    with pytest.raises(DatasetError, match=r"returns\[1\] is inf"):
        data.with_delayed_rewards()


def assert_episodes(found: Trajectories, data: Trajectories, episodes: Any) -> None:
    for ours, theirs in zip(found, (data[int(number)] for number in episodes), strict=True):
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "return_"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def test_the_best_episodes(data: Trajectories) -> None:
    # never none; of 1 and 3, which are alike, the earlier
    expected: dict[Any, list[int]] = {
        0.01: [1],
        0.49: [1],
        0.5: [1, 3],
        0.75: [1, 2, 3],
        np.float32(1): [0, 1, 2, 3],
    }
    for fraction, episodes in expected.items():
        assert_episodes(data.take_top(fraction), data, episodes)


def test_a_fraction_is_what_people_mean(make_trajectories: Make) -> None:
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


def test_bad_options(make_trajectories: Make) -> None:
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


def test_large_selections_are_mapped(
    make_trajectories: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trajectories(SHORT).save(tmp_path / "store")
    opened = Trajectories.open(tmp_path / "store")
    small = opened[[0, 2]]
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 16)
    large = opened[[0, 2]]
    for name, array in {n: getattr(large, n) for n in ("observations", "rewards")}.items():
        assert not isinstance(getattr(small, name), np.memmap)
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, getattr(small, name))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert sorted(p.suffix for p in (tmp_path / "store").iterdir()) == [".json", *[".npy"] * 6]
