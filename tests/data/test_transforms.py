from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data import Trajectories, load_trajectories, mapping
from sb3_dmamba.errors import ConfigError, DatasetError

Make = Callable[..., Trajectories]
LENGTHS = [2, 1, 3, 2]
REWARDS = np.array([1, 1, 5, 0, 0, 3, 4, 1], np.float32)  # returns 2, 5, 3, 5


@pytest.fixture(params=["in memory", "mapped", "large and mapped"])
def data(
    request: pytest.FixtureRequest,
    make_trajectories: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Trajectories:
    made = make_trajectories(LENGTHS, rewards=REWARDS, source="toy", env_id="Toy-v0")
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


@pytest.mark.parametrize(
    ("fraction", "episodes"),
    [
        (0.01, [1]),  # never none; of 1 and 3, which are alike, the earlier
        (0.49, [1]),
        (0.5, [1, 3]),
        (0.75, [1, 2, 3]),
        (np.float32(1), [0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
    ],
)
def test_the_best_episodes(data: Trajectories, fraction: float, episodes: list[int]) -> None:
    best = data.take_top(fraction)
    assert len(best) == len(episodes)
    for found, episode in zip(best, episodes, strict=True):
        np.testing.assert_array_equal(found.observations, data[episode].observations)
        np.testing.assert_array_equal(found.actions, data[episode].actions)
        np.testing.assert_array_equal(found.rewards, data[episode].rewards)
        assert (found.terminated, found.truncated) == (
            data[episode].terminated,
            data[episode].truncated,
        )


def test_a_fraction_is_what_people_mean(make_trajectories: Make) -> None:
    data = make_trajectories([1] * 100)
    for percent in range(1, 101):
        assert len(data.take_top(percent / 100)) == percent  # 0.29 * 100 is below 29


def test_the_source_says_what_was_kept(make_trajectories: Make) -> None:
    data = make_trajectories([1] * 10)
    assert data.take_top(1) is data
    assert data.take_top(0.25).source == "the best 25% of episodes"


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, np.nan, True, "0.1", None])
def test_no_fraction(make_trajectories: Make, fraction: Any) -> None:
    with pytest.raises(ConfigError, match=r"fraction=.*give a finite number above 0 and up to 1"):
        make_trajectories([1]).take_top(fraction)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_mode": "sparse"}, "reward_mode='sparse': choose 'dense' or 'delayed'"),
        ({"top_fraction": 10}, "top_fraction=10: give a finite number above 0"),
    ],
)
def test_options_are_checked_before_loading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_trajectories("no/such/file.hdf5", **options)


@pytest.mark.parametrize(
    "index",
    [[3, 0], [0, 0, 2], [-1, 1], slice(None, None, -1), slice(1, 3), [True, False, False, True]],
    ids=str,
)
def test_selections(data: Trajectories, make_trajectories: Make, index: Any) -> None:
    episodes = np.arange(4)[index]
    selected = data[index]
    assert selected.lengths.tolist() == [LENGTHS[episode] for episode in episodes]
    for found, episode in zip(selected, episodes, strict=True):
        np.testing.assert_array_equal(found.observations, data[int(episode)].observations)
        np.testing.assert_array_equal(found.rewards, data[int(episode)].rewards)
    assert selected.returns.tolist() == data.returns[episodes].tolist()  # none of the old ones
    assert selected.source == data.source


def test_large_selections_are_mapped(
    make_trajectories: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trajectories(LENGTHS).save(tmp_path / "store")
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
