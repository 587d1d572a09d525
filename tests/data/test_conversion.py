"""From any source to a store, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.joining import (
    cut_into_pieces,
    gather_pieces,
    join_pieces,
    spill_pieces,
    write_pieces,
)
from sb3_dmamba.data.sources import convert_trajectories, d4rl
from sb3_dmamba.errors import DatasetError

Make = Callable[..., Trajectories]
ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")


def same(ours: Trajectories, theirs: Trajectories) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("observation_space", "action_space", "env_id", "env_kwargs", "source"):
        assert getattr(ours, name) == getattr(theirs, name)


def write_hdf5(path: Path, n_episodes: int = 20) -> Path:
    generator = np.random.default_rng(0)
    n_steps = 5 * n_episodes
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = generator.normal(size=(n_steps, 11)).astype(np.float32)
        file["actions"] = generator.uniform(-1, 1, (n_steps, 3)).astype(np.float32)
        file["rewards"] = generator.normal(size=n_steps).astype(np.float32)
        file["terminals"] = np.arange(n_steps) % 10 == 9
        file["timeouts"] = np.arange(n_steps) % 10 == 4
    return path


def test_a_streamed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "CHUNK_BYTES", 1)
    path = write_hdf5(tmp_path / "hopper_medium-v2.hdf5")
    whole = load_trajectories(path)
    monkeypatch.setattr("sb3_dmamba.data.sources.load_trajectories", None)  # it is never loaded
    written = convert_trajectories(path, tmp_path / "store")
    same(written, whole)
    assert written.env_id == "Hopper-v4"
    assert isinstance(written.observations, np.memmap)
    same(load_trajectories(tmp_path / "store"), whole)


def test_a_source_that_writes_stores_itself(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "dqn-replay" / "Breakout" / "1"
    written = convert_trajectories(source, tmp_path / "store", checkpoints=[0])
    assert written.frame_stack == 4
    assert written.observations.shape[1:] == (84, 84)
    assert written.env_kwargs["game"] == "Breakout"


def test_trajectories_and_arrays(make_trajectories: Make, tmp_path: Path) -> None:
    data = make_trajectories([3, 1, 4], source="mine", env_id="Pendulum-v1", env_kwargs={"g": 9.8})
    same(convert_trajectories(data, tmp_path / "a"), data)
    arrays = {
        "observations": np.arange(6.0)[:, None],
        "actions": np.arange(6) % 2,
        "rewards": np.arange(6.0),
        "terminals": np.arange(6) % 3 == 2,
    }
    same(convert_trajectories(arrays, tmp_path / "b"), load_trajectories(arrays))
    same(convert_trajectories(tmp_path / "a", tmp_path / "c"), data)


def test_options_of_every_dataset(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5")
    options: dict[str, Any] = {"top_fraction": 0.25, "reward_mode": "delayed"}
    written = convert_trajectories(path, tmp_path / "store", **options)
    same(written, load_trajectories(path, **options))
    assert len(written) == 5


def test_what_is_there_stays(make_trajectories: Make, tmp_path: Path) -> None:
    data, other = make_trajectories([3]), make_trajectories([4])
    convert_trajectories(data, tmp_path / "store")
    with pytest.raises(DatasetError, match="holds a store already"):
        convert_trajectories(other, tmp_path / "store")
    with pytest.raises(DatasetError, match="holds a store already"):
        convert_trajectories("nothing that exists", tmp_path / "store")  # the place comes first
    same(load_trajectories(tmp_path / "store"), data)
    same(convert_trajectories(other, tmp_path / "store", overwrite=True), other)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "CHUNK_BYTES", 1)
    path = write_hdf5(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["observations"][-1, 0] = np.nan
    with pytest.raises(DatasetError) as caught:
        convert_trajectories(path, tmp_path / "store")
    assert (caught.value.path, caught.value.index) == (str(path), 99)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "a.hdf5")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("nothing", {}, "source"),
        ("a.hdf5", {"env": 1}, "env"),
        ("hopper-medium-v2", {"medium": 1}, "medium"),
        ({"rewards": [0.0]}, {}, "observations"),
        # said twice
        (tmp_path / "a.hdf5", {"store": "elsewhere"}, "store"),
        (tmp_path / "a.hdf5", {"source": "elsewhere"}, "source"),
    ]
    for source, options, setting in cases:
        with pytest.raises(DatasetError) as caught:
            convert_trajectories(source, "store", **options)
        assert caught.value.setting == setting
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_hdf5(tmp_path / "a.hdf5")
    convert_trajectories(path, tmp_path / "store", progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100/100 steps" in captured.err
    convert_trajectories(path, tmp_path / "quiet")
    assert capsys.readouterr().err == ""


def test_large_files_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hdf5(tmp_path / "a.hdf5")
    whole = load_trajectories(path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(d4rl, "IN_MEMORY_BYTES", 1000)
    mapped = load_trajectories(path)
    assert isinstance(mapped.observations, np.memmap)
    same(mapped, whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_pieces(make_trajectories: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_trajectories([3, 1, 4, 2])
    monkeypatch.setattr("sb3_dmamba.data.joining.CHUNK_BYTES", 5 * 20)  # 20 bytes a step
    pieces = list(cut_into_pieces(data))
    assert [piece.lengths.tolist() for piece in pieces] == [[3, 1], [4], [2]]
    same(write_pieces(pieces, tmp_path / "store"), data)
    named = write_pieces(pieces, tmp_path / "named", source=lambda n: f"mine, {n}")
    assert named.source == "mine, 10"
    same(gather_pieces(iter(pieces)), data)
    monkeypatch.setattr("sb3_dmamba.data.joining.IN_MEMORY_BYTES", 5 * 12)
    large = gather_pieces(iter(pieces), lambda n: f"mine, {n}")
    assert isinstance(large.observations, np.memmap)
    assert large.source == "mine, 10"
    same(spill_pieces(pieces), data)
    same(join_pieces(pieces), data)
    assert not pieces
    for gather in (join_pieces, gather_pieces, spill_pieces):
        with pytest.raises(DatasetError, match="there is no episode"):
            gather([])
    with pytest.raises(DatasetError, match="there is no episode"):
        write_pieces([], tmp_path / "empty")


def test_an_option_called_folder(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "cache" / "hopper_medium-v2.hdf5")
    options: dict[str, Any] = {"folder": str(tmp_path / "cache"), "download": False}
    written = convert_trajectories("hopper-medium-v2", tmp_path / "store", **options)
    same(written, load_trajectories("hopper-medium-v2", **options))
