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

from sb3_dmamba.data import Episode, Trajectories
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.errors import DatasetError, SpaceError

Make = Callable[..., Trajectories]
LENGTHS = [3, 1, 4, 2]


def test_counts_and_types(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    assert (len(data), data.n_steps, data.lengths.tolist()) == (4, 10, LENGTHS)
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    assert data.episode_offsets.dtype == np.int64
    assert data.terminated.dtype == data.truncated.dtype == np.bool_
    assert data.cut.tolist() == [False, False, True, False]


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
    assert episode.return_ == data.returns[2]
    assert data[-1].return_ == data.returns[3]
    assert "4 steps" in repr(episode)


def test_iteration_visits_every_episode(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    assert [len(episode) for episode in data] == LENGTHS


@pytest.mark.parametrize("index", [4, -5])
def test_no_such_episode(make_trajectories: Make, index: int) -> None:
    with pytest.raises(IndexError, match="there are 4"):
        make_trajectories(LENGTHS)[index]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([2, 0, 2], [2, 0, 2]),
        (np.array([True, False, False, True]), [0, 3]),
        ([-1], [3]),
    ],
)
def test_selection(make_trajectories: Make, index: Any, expected: list[int]) -> None:
    data = make_trajectories(LENGTHS, env_id="Hopper-v5", env_kwargs={"a": 1}, source="here")
    chosen = data[index]
    assert isinstance(chosen, Trajectories)
    assert (chosen.env_id, chosen.env_kwargs, chosen.source) == ("Hopper-v5", {"a": 1}, "here")
    assert len(chosen) == len(expected)
    for episode, original in zip(chosen, (data[i] for i in expected), strict=True):
        np.testing.assert_array_equal(episode.observations, original.observations)
        np.testing.assert_array_equal(episode.actions, original.actions)
        np.testing.assert_array_equal(episode.rewards, original.rewards)
        assert episode.terminated == original.terminated
        assert episode.truncated == original.truncated


def test_a_run_of_episodes_is_views(make_trajectories: Make) -> None:
    data = make_trajectories(LENGTHS)
    assert np.shares_memory(data[1:3].observations, data.observations)


@pytest.mark.parametrize("index", [slice(2, 2), [], np.zeros(4, dtype=bool)])
def test_empty_selection(make_trajectories: Make, index: Any) -> None:
    with pytest.raises(DatasetError, match="selects none of the 4 episodes"):
        make_trajectories(LENGTHS)[index]


@pytest.mark.parametrize("index", [[[0]], [0.5], "0"])
def test_selection_of_a_wrong_type(make_trajectories: Make, index: Any) -> None:
    with pytest.raises(DatasetError, match="give an integer, a slice"):
        make_trajectories(LENGTHS)[index]


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


def test_is_frozen(make_trajectories: Make) -> None:
    with pytest.raises(AttributeError):
        make_trajectories(LENGTHS).rewards = np.zeros(1)  # type: ignore[misc]


def test_a_memory_map_stays_one(make_trajectories: Make, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    np.save(tmp_path / "observations.npy", values)
    mapped = np.load(tmp_path / "observations.npy", mmap_mode="r")
    data = make_trajectories(LENGTHS, observations=mapped)
    assert isinstance(data.observations, np.memmap)
    np.testing.assert_array_equal(data[3].observations, values[8:])


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
BAD: list[tuple[dict[str, Any], str]] = [
    ({"observations": ((5, 1), np.nan)}, r"observations\[5, 1\] is nan \(episode 2, step 1\)"),
    ({"rewards": (9, np.inf)}, r"rewards\[9\] is inf \(episode 3, step 1\)"),
    ({"actions": ((3, 0), np.nan)}, r"actions\[3, 0\] is nan \(episode 1, step 0\)"),
    ({"actions": ((4, 1), 1.01)}, r"actions\[4, 1\] is 1.01.* \(episode 2, step 0\), outside"),
    ({"actions": ((9, 0), -1.01)}, r"actions\[9, 0\] is -1.01 \(episode 3, step 1\), outside"),
    ({"observations": np.full((10, 3), 1e300)}, r"observations\[0, 0\] is inf"),
    ({"observations": np.zeros((9, 3))}, r"observations have shape \(9, 3\) where \(10, 3\)"),
    ({"observations": np.zeros((10, 4))}, r"observations have shape \(10, 4\) where \(10, 3\)"),
    ({"observations": np.full((10, 3), "a")}, "observations are <U1: give numbers"),
    ({"actions": np.zeros((11, 2))}, r"actions have shape \(11, 2\)"),
    ({"actions": np.zeros(10)}, r"actions have shape \(10,\) where \(10, 2\)"),
    ({"rewards": np.zeros((10, 1))}, r"rewards have shape \(10, 1\) where \(10,\)"),
    ({"rewards": np.zeros(0)}, "the dataset is empty"),
    ({"terminated": np.zeros(3, dtype=bool)}, r"terminated have shape \(3,\) where \(4,\)"),
    ({"truncated": np.zeros(10, dtype=bool)}, r"truncated have shape \(10,\) where \(4,\)"),
    ({"episode_offsets": np.array([0, 3, 4, 8, 9])}, "end at 9 and there are 10 steps"),
    ({"episode_offsets": np.array([1, 3, 4, 8, 10])}, r"episode_offsets\[0\] is 1"),
    ({"episode_offsets": np.array([0, 3, 3, 8, 10])}, "episode 1 goes from step 3 to 3"),
    ({"episode_offsets": np.array([0.0, 3, 4, 8, 10])}, "dtype float64"),
    ({"actions": np.zeros(10), "action_space": spaces.Discrete(2)}, "actions are float64"),
    (
        {"actions": np.array([0] * 7 + [2, 0, 0]), "action_space": spaces.Discrete(2)},
        r"actions\[7\] is 2 \(episode 2, step 3\): Discrete\(2\) allows 0 to 1",
    ),
    (
        {"actions": np.array([1] * 9 + [0]), "action_space": spaces.Discrete(2, start=1)},
        r"actions\[9\] is 0 .* allows 1 to 2",
    ),
    ({"env_kwargs": {"f": object()}}, "cannot be written as JSON"),
]


@pytest.mark.parametrize("chunk_bytes", [1, _checks.CHUNK_BYTES])
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_data(
    make_trajectories: Make,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
    chunk_bytes: int,
) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    for name, change in changes.items():
        if isinstance(change, tuple):  # spoil one entry: where, and what with
            array = np.array(getattr(make_trajectories(LENGTHS), name))
            array[change[0]] = change[1]
            changes = {name: array}
    with pytest.raises(DatasetError, match=message):
        make_trajectories(LENGTHS, **changes)


def test_rounding_outside_the_action_space_is_kept(make_trajectories: Make) -> None:
    actions = np.full((10, 2), 1.0 + 2e-6)
    assert (make_trajectories(LENGTHS, actions=actions).actions > 1.0).all()


def test_unbounded_actions_are_free(make_trajectories: Make) -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    actions = np.full((10, 2), 1e6)
    assert make_trajectories(LENGTHS, actions=actions, action_space=space).actions.max() == 1e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_space": spaces.MultiDiscrete([2, 2])}, "not supported.*enumerate"),
        ({"action_space": spaces.MultiBinary(2)}, "not supported.*enumerate"),
        ({"action_space": spaces.Box(-1, 1, (2, 1))}, "wrap the environment"),
        ({"action_space": spaces.Box(0, 9, (2,), np.int32)}, "only Boxes of floats"),
        ({"observation_space": spaces.Discrete(3)}, "give the flat view"),
    ],
)
def test_bad_spaces(make_trajectories: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        make_trajectories(LENGTHS, **changes)


def test_from_episodes_joins(make_trajectories: Make) -> None:
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
    for name in ("observations", "actions", "rewards", "episode_offsets", "truncated"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(data, name))
    assert (joined.env_id, joined.source) == ("Hopper-v5", "episodes")


@pytest.mark.parametrize(
    ("observations", "rewards", "message"),
    [
        ([np.zeros((3, 1))], [np.zeros(2)], "episode 0 has 3 observations, 2 actions and 2"),
        ([], [], "0 episodes of observations and 1 of terminated"),
        ([np.zeros((2, 1))], [], "0 episodes of rewards"),
    ],
)
def test_from_episodes_that_do_not_fit(
    observations: list[Any], rewards: list[Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        Trajectories.from_episodes(
            observations,
            [np.zeros((2, 2))],
            rewards,
            [True],
            [False],
            observation_space=spaces.Box(-1, 1, (1,)),
            action_space=BOX,
        )


def test_from_no_episodes() -> None:
    with pytest.raises(DatasetError, match="the dataset is empty"):
        Trajectories.from_episodes(
            [], [], [], [], [], observation_space=spaces.Box(-1, 1, (1,)), action_space=BOX
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
