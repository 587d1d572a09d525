"""Minari's datasets, written; d3rlpy's buffers are in test_d3rlpy_source.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.dataset.minari_storage import MinariStorage

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.data.recording import collect
from sb3_dmamba.errors import DatasetError
from tests.data.builders import make_trajectories


def test_what_minari_itself_reads(minari_root: Path) -> None:
    data = make_trajectories([3, 1, 4])
    described = {"author": "A", "description": "Walks.", "requirements": ["numpy"]}
    written = data.to_minari("mine/deep/walk-v2", **described)
    assert list(minari.list_local_datasets()) == ["mine/deep/walk-v2"]
    metadata = written.storage.metadata
    assert (metadata["author"], metadata["requirements"]) == ({"A"}, ["numpy"])
    assert metadata["description"].startswith("Walks. The observation after each episode's last")
    for ours, theirs in zip(data, written.iterate_episodes(), strict=True):
        seen = np.concatenate([ours.observations, ours.observations[-1:]])
        np.testing.assert_array_equal(theirs.observations, seen)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)
        assert theirs.terminations.tolist() == [*[False] * (len(ours) - 1), ours.terminated]


def test_the_environment_is_named(minari_root: Path) -> None:
    env_id, env_kwargs = "CartPole-v1", {"max_episode_steps": 7, "sutton_barto_reward": True}
    data = collect("random", env_id, 30, seed=0, env_kwargs=env_kwargs)
    env = data.to_minari("mine/cart-v0").recover_environment()
    assert (env.spec.id, env.spec.max_episode_steps) == (env_id, 7)
    assert (gym.spec(env_id).kwargs, gym.spec(env_id).max_episode_steps) == ({}, 500)  # as before
    again = load_trajectories("mine/cart-v0")
    assert again.env_id == env_id
    assert {**again.env_kwargs, **env_kwargs} == dict(again.env_kwargs)
    assert again.source == "minari:mine/cart-v0"


def test_an_environment_that_is_not_here(minari_root: Path) -> None:
    for number, env_id in enumerate(("Nowhere-v3", "no_such_package:Nowhere-v3")):
        data = make_trajectories([3], env_id=env_id)
        with pytest.warns(UserWarning, match=f"will not name its environment, {env_id}") as caught:
            data.to_minari(f"mine/walk-v{number}")
        assert caught[0].filename == __file__
        assert load_trajectories(f"mine/walk-v{number}").env_id is None


def test_a_name_that_is_taken(minari_root: Path) -> None:
    data = make_trajectories([3])
    data.to_minari("walk-v0")
    with pytest.raises(DatasetError, match=r"'walk-v0' exists in .*minari.delete_dataset"):
        make_trajectories([2]).to_minari("walk-v0")
    assert load_trajectories("walk-v0").n_steps == 3


def test_names_that_are_none(minari_root: Path) -> None:
    (minari_root.parent / "walk-v0").mkdir()
    before = sorted(minari_root.parent.rglob("*"))
    wrong: list[Any] = ["", "walk", "no id-v0", "a//b-v0", "walk-v0/", "../w-v0", "/t/w-v0", None]
    for dataset_id in wrong:
        with pytest.raises(DatasetError) as caught:
            make_trajectories([3]).to_minari(dataset_id)
        assert (caught.value.setting, caught.value.value) == ("dataset_id", dataset_id)
    assert sorted(minari_root.parent.rglob("*")) == before


def test_a_failure_leaves_nothing(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, metadata: Any) -> None:
        raise OSError("no space left on device")

    data = make_trajectories([3])
    monkeypatch.setattr(MinariStorage, "update_metadata", fail)
    with pytest.raises(OSError, match="no space left"):
        data.to_minari("walk-v0")
    assert not (minari_root / "walk-v0").exists()
