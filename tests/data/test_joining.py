"""Datasets joined, cut into pieces, and converted piece by piece to stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_dmamba.data import join_trajectories, load_trajectories
from sb3_dmamba.data.joining import (
    cut_into_pieces,
    gather_pieces,
    join_pieces,
    spill_pieces,
    write_pieces,
)
from sb3_dmamba.data.sources import convert_trajectories, d4rl
from sb3_dmamba.errors import DatasetError
from tests.data.builders import assert_same, flat_arrays, make_trajectories, write_hdf5
from tests.toys import random_trajectories


def test_a_streamed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "CHUNK_BYTES", 1)
    path = write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays())
    whole = load_trajectories(path)
    monkeypatch.setattr("sb3_dmamba.data.sources.load_trajectories", None)  # it is never loaded
    written = convert_trajectories(path, tmp_path / "store")
    assert_same(written, whole)
    assert written.env_id == "Hopper-v4"
    assert isinstance(written.observations, np.memmap)
    assert_same(load_trajectories(tmp_path / "store"), whole)


def test_trajectories_and_arrays(tmp_path: Path) -> None:
    data = make_trajectories([3, 1, 4], source="mine", env_id="Pendulum-v1", env_kwargs={"g": 9.8})
    assert_same(convert_trajectories(data, tmp_path / "a"), data)
    arrays = flat_arrays()
    assert_same(convert_trajectories(arrays, tmp_path / "b"), load_trajectories(arrays))
    assert_same(convert_trajectories(tmp_path / "a", tmp_path / "c"), data)


def test_what_is_there_stays(tmp_path: Path) -> None:
    data = make_trajectories([3])
    convert_trajectories(data, tmp_path / "store")
    for source in (make_trajectories([4]), "nothing that exists"):  # the place comes first
        with pytest.raises(DatasetError, match="holds a store already"):
            convert_trajectories(source, tmp_path / "store")
    assert_same(load_trajectories(tmp_path / "store"), data)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "CHUNK_BYTES", 1)
    path = write_hdf5(tmp_path / "a.hdf5", flat_arrays())
    with h5py.File(path, "a") as file:
        file["observations"][-1, 0] = np.nan
    with pytest.raises(DatasetError) as caught:
        convert_trajectories(path, tmp_path / "store")
    assert (caught.value.path, caught.value.index) == (str(path), 8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "a.hdf5", flat_arrays())
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


def test_large_files_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", flat_arrays())
    whole = load_trajectories(path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(d4rl, "IN_MEMORY_BYTES", 100)
    mapped = load_trajectories(path)
    assert isinstance(mapped.observations, np.memmap)
    assert_same(mapped, whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_trajectories([3, 1, 4, 2])
    monkeypatch.setattr("sb3_dmamba.data.joining.CHUNK_BYTES", 5 * 20)  # 20 bytes a step
    pieces = list(cut_into_pieces(data))
    assert [piece.lengths.tolist() for piece in pieces] == [[3, 1], [4], [2]]
    assert_same(write_pieces(pieces, tmp_path / "store"), data)
    named = write_pieces(pieces, tmp_path / "named", source=lambda n: f"mine, {n}").source
    assert named == "mine, 10"
    assert_same(gather_pieces(iter(pieces)), data)
    monkeypatch.setattr("sb3_dmamba.data.joining.IN_MEMORY_BYTES", 5 * 12)
    large = gather_pieces(iter(pieces), lambda n: f"mine, {n}")
    assert (type(large.observations), large.source) == (np.memmap, "mine, 10")
    assert_same(spill_pieces(pieces), data)

    def full() -> Any:
        yield pieces[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(DatasetError, match="No space left"):
        spill_pieces(full())
    assert_same(join_pieces(pieces), data)
    assert not pieces
    write_empty: Any = lambda pieces: write_pieces(pieces, tmp_path / "empty")  # noqa: E731
    for gather in (join_pieces, gather_pieces, spill_pieces, write_empty):
        with pytest.raises(DatasetError, match="there is no episode"):
            gather([])


def test_an_option_called_folder(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "cache" / "hopper_medium-v2.hdf5", flat_arrays())
    options: dict[str, Any] = {"folder": str(tmp_path / "cache"), "download": False}
    written = convert_trajectories("hopper-medium-v2", tmp_path / "store", **options)
    assert_same(written, load_trajectories("hopper-medium-v2", **options))


def test_episodes_follow_each_other() -> None:
    first, second = random_trajectories((4, 2), seed=1), random_trajectories((3,), seed=2)
    joined = join_trajectories([first, second])
    assert joined.lengths.tolist() == [4, 2, 3]
    assert joined.source == first.source
    assert join_trajectories([first, second], "two parts").source == "two parts"
    for episode, expected in zip(joined, [*first, *second], strict=True):
        for name in ("observations", "actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(expected, name), name)


def test_other_spaces_are_refused() -> None:
    wrong: Any = [random_trajectories((2,), (3,)), random_trajectories((2,), (4,))], []
    for parts, name in zip(wrong, ("observation_space", "parts"), strict=True):
        with pytest.raises(DatasetError) as caught:
            join_trajectories(parts)
        assert caught.value.setting == name
