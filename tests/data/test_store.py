"""The dataset store and mapped arrays: round trips, writing, damage, pickles, memory."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import (
    Trajectories,
    TrajectoriesWriter,
    WindowSampler,
    compute_observation_statistics,
    load_trajectories,
    mapping,
)
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.data.store import NpyStream
from sb3_dmamba.data.trajectories import metadata_of
from sb3_dmamba.errors import DatasetError
from tests.data.builders import assert_same, make_trajectories

LENGTHS = [3, 1, 6, 2, 4]
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
MEMBERS = ("trajectories.json", *(f"{name}.npy" for name in ARRAYS))


def _variants() -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(0)
    low, high = np.array([-1.0, -np.inf, 0.1], "f4"), np.array([2.0, 1e-3, np.inf], "f4")
    return {
        "bounds that differ": {
            "observation_space": spaces.Box(low, high),
            "action_space": spaces.Box(np.array([-1 / 3, -2]), np.ones(2), dtype=np.float64),
            "actions": generator.uniform(-0.3, 1, (sum(LENGTHS), 2)),
            "env_id": "Hopper-v5",
            "env_kwargs": {"reset_noise_scale": 0.1, "nested": [1, None, "é"]},
            "source": "somewhere, ünïcode",
        },
        "stacked frames": {
            "observations": generator.integers(0, 256, (sum(LENGTHS), 5, 4), dtype=np.uint8),
            "observation_space": spaces.Box(0, 255, (3, 5, 4), np.uint8),
            "frame_stack": 3,
        },
    }


@pytest.fixture
def data() -> Trajectories:
    return make_trajectories(LENGTHS)


@pytest.fixture
def folder(data: Trajectories, tmp_path: Path) -> Path:
    data.save(tmp_path / "store")
    return tmp_path / "store"


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("variant", _variants())
def test_what_is_saved_comes_back(tmp_path: Path, variant: str) -> None:
    data = make_trajectories(LENGTHS, **_variants()[variant])
    data.save(tmp_path / "new" / "store")
    assert listed(tmp_path / "new") == ["store"]
    assert listed(tmp_path / "new" / "store") == sorted(MEMBERS)
    opened = Trajectories.open(tmp_path / "new" / "store")
    assert_same(opened, data)
    assert opened.observation_space.dtype == data.observation_space.dtype
    for name in ("observations", "actions", "rewards"):
        assert isinstance(getattr(opened, name), np.memmap)
        assert not getattr(opened, name).flags.writeable
        loaded = np.load(tmp_path / "new" / "store" / f"{name}.npy")  # NumPy alone reads them
        np.testing.assert_array_equal(loaded, getattr(data, name))
    assert_same(load_trajectories(tmp_path / "new" / "store", verify=True), data)
    with TrajectoriesWriter(tmp_path / "again", **metadata_of(data)) as writer:
        append_all(writer, data)
        assert listed(tmp_path / "new") == ["store"]
        assert not (tmp_path / "again").exists()
        assert_same(writer.finish(), data)
    assert listed(tmp_path) == ["again", "new"]


def append_all(writer: TrajectoriesWriter, data: Trajectories) -> None:
    for count, part in enumerate(data):
        assert (writer.n_episodes, writer.n_steps) == (count, data.episode_offsets[count])
        writer.append(
            part.observations,
            part.actions,
            part.rewards.astype(np.float64),  # whatever Trajectories takes
            terminated=part.terminated,
            truncated=part.truncated,
        )


def test_a_store_replaces_itself(data: Trajectories, folder: Path) -> None:
    opened = Trajectories.open(folder)
    opened[1:4].save(folder.parent / "part")
    assert_same(Trajectories.open(folder.parent / "part"), data[1:4])
    opened[2:].save(folder, overwrite=True)
    assert_same(Trajectories.open(folder), data[2:])
    assert_same(opened, data)  # still whole: its files live until it goes
    assert listed(folder.parent) == ["part", "store"]


def test_nothing_is_left_without_finish_or_after_an_exception(
    data: Trajectories, folder: Path, tmp_path: Path
) -> None:
    def write(where: Path, **options: Any) -> None:
        with open_writer(where, **options) as writer:
            writer.append_all(data[:1])
            raise RuntimeError("stop")

    with open_writer(tmp_path / "other") as writer:
        writer.append_all(data)
    for where, options in ((tmp_path / "other", {}), (folder, {"overwrite": True})):
        with pytest.raises(RuntimeError, match="stop"):
            write(where, **options)
    assert listed(tmp_path) == ["store"]
    assert_same(Trajectories.open(folder), data)


def open_writer(folder: Path, **options: Any) -> TrajectoriesWriter:
    fields: dict[str, Any] = {"observation_space": BOX, "action_space": ACTIONS}
    return TrajectoriesWriter(folder, **{**fields, **options})


def test_a_wrong_episode_is_refused_and_writing_goes_on(data: Trajectories, tmp_path: Path) -> None:
    right = {"observations": np.zeros((2, 3)), "actions": np.zeros((2, 2)), "rewards": np.zeros(2)}
    wrong: list[tuple[dict[str, Any], str | None]] = [
        ({"observations": np.full((2, 3), np.nan)}, "observations"),
        ({"actions": np.full((2, 2), 2.0)}, "actions"),
        ({"observations": np.zeros((2, 4))}, "observations"),
        ({"rewards": np.zeros(3)}, None),
        ({name: value[:0] for name, value in right.items()}, None),
    ]
    with open_writer(tmp_path / "store") as writer:
        writer.append_all(data[:1])
        for changes, name in wrong:
            with pytest.raises(DatasetError, match="episode 1 to be written") as caught:
                writer.append(**{**right, **changes}, terminated=True, truncated=False)
            assert (caught.value.episode, caught.value.setting) == (1, name)
        writer.append_all(data[1:])
        assert_same(writer.finish(), data)


def test_other_and_no_episodes_are_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "store") as writer:
        with pytest.raises(DatasetError) as caught:
            writer.append_all(make_trajectories([2], n_observations=4))
        assert (caught.value.setting, caught.value.choices) == ("observation_space", (BOX,))
        with pytest.raises(DatasetError, match="no episode was written"):
            writer.finish()


def test_the_order_of_calls(data: Trajectories, tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "store")
    for call in (lambda: writer.append_all(data), writer.finish):
        with pytest.raises(DatasetError, match="is not open: write within"):
            call()
    assert not listed(tmp_path)
    with writer:
        writer.append_all(data)
        writer.finish()
        with pytest.raises(DatasetError, match="is not open"):
            writer.append_all(data)
    with pytest.raises(DatasetError, match="was entered before"):
        writer.__enter__()
    assert_same(Trajectories.open(tmp_path / "store"), data)


def test_places_that_are_taken(data: Trajectories, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"store holds a store already: .* overwrite=True"):
        data.save(folder)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match="precious holds something else than a store"):
            data.save(tmp_path / "precious", overwrite=overwrite)
        with pytest.raises(DatasetError, match="file is a file"):
            data.save(tmp_path / "file", overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    data.save(tmp_path / "empty")
    assert_same(Trajectories.open(tmp_path / "empty"), data)
    assert listed(tmp_path) == ["empty", "file", "precious", "store"]


def test_a_place_that_is_taken_meanwhile(data: Trajectories, tmp_path: Path) -> None:
    with open_writer(tmp_path / "store") as writer:
        writer.append_all(data)
        data[:1].save(tmp_path / "store")
        with pytest.raises(DatasetError, match="holds a store already"):
            writer.finish()
    assert_same(Trajectories.open(tmp_path / "store"), data[:1])


def test_a_write_that_failed_cannot_be_finished(
    data: Trajectories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(folder, overwrite=True) as writer:
        writer.append_all(data[:1])
        with monkeypatch.context() as patch:
            write = NpyStream.write

            def fail(stream: NpyStream, rows: Any) -> None:
                if rows.ndim == 1:
                    raise OSError(28, "No space left on device")
                write(stream, rows)

            patch.setattr(NpyStream, "write", fail)
            with pytest.raises(OSError, match="No space left"):
                writer.append_all(data)
        with pytest.raises(DatasetError, match="is not open"):
            writer.finish()
    assert_same(Trajectories.open(folder), data)  # the store that was there
    assert listed(folder.parent) == ["store"]


class _Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", [f"{name}.npy" for name in ARRAYS])
def test_damaged_arrays(data: Trajectories, tmp_path: Path, name: str) -> None:

    def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]

    def resave(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return lambda path: np.save(path, change(np.load(path)))

    header = b"\x93NUMPY\x01\x00\x10\x00{'descr': __impo"
    damages: list[tuple[Callable[[Path], None], str]] = [
        (Path.unlink, "is missing from the store"),
        (rewrite(lambda whole: whole[:-1]), "bytes long and should be"),
        (rewrite(lambda whole: whole + b"\0"), "bytes long and should be"),
        (rewrite(lambda whole: b""), "has no readable .npy header"),
        (rewrite(lambda whole: header + whole[26:]), "has no readable .npy header"),
        (resave(lambda array: array[: len(array) // 2]), "and the store's header says"),
        (resave(lambda array: array.astype(np.float64)), "holds float64 of shape"),
        (resave(lambda array: np.array([_Trap()], object)), "holds object of shape"),
    ]
    if name in ("observations.npy", "actions.npy"):
        damages.append((resave(np.asfortranarray), "column by column"))
    for damage, message in damages:
        data.save(tmp_path / "store", overwrite=True)
        damage(tmp_path / "store" / name)
        with pytest.raises(DatasetError, match=message) as caught:
            Trajectories.open(tmp_path / "store")
        assert caught.value.path == str(tmp_path / "store" / name)


def test_offsets_that_do_not_fit(folder: Path) -> None:
    path = folder / "episode_offsets.npy"
    for end in ([12, 15], [12, 12], [2, 16]):
        np.save(path, np.array([0, 3, 4, 10, *end]))
        error = error_of(folder)
        assert (error.path, error.setting) == (str(path), "episode_offsets")


def error_of(folder: Path, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        Trajectories.open(folder, **options)
    return caught.value


def test_damaged_headers(folder: Path) -> None:
    path = folder / "trajectories.json"
    header = json.loads(path.read_text())
    no_box = {"type": "Discrete", "n": 3, "start": 0}
    huge = {"type": "Box", "shape": [1 << 30], "dtype": "float32"}
    wrong: list[tuple[str, Any]] = [
        ("format", "other"),
        *(("format_version", version) for version in (2, True)),
        *((name, count) for name in ("n_steps", "n_episodes") for count in ("16", -1, True, 4)),
        *(("observation_space", space) for space in ({"type": "Box"}, no_box, huge)),
        *(("action_space", space) for space in ({"type": "Text"}, None)),
        *(("frame_stack", number) for number in (0, 2)),
        *(("env_id", 3), ("env_kwargs", []), ("source", None)),
    ]
    for name, value in wrong:
        path.write_text(json.dumps({**header, name: value}))
        error = error_of(folder)
        assert str(error.path).startswith(str(folder)), (name, value)
        assert error.setting in (name, None), (name, value)
    for name in ("env_kwargs", "env_id", "n_steps", "frame_stack"):
        path.write_text(json.dumps({key: value for key, value in header.items() if key != name}))
        assert error_of(folder).setting == name


def test_broken_json(folder: Path) -> None:
    for text in ("", "{", "[" * 10_000, "[1]", "null", '"\udcff"'):
        (folder / "trajectories.json").write_bytes(text.encode(errors="surrogateescape"))
        assert error_of(folder).path == str(folder / "trajectories.json")


def test_no_store(folder: Path, tmp_path: Path) -> None:
    assert error_of(tmp_path / "nowhere").path == str(tmp_path / "nowhere" / "trajectories.json")
    (folder / "trajectories.json").unlink()
    with pytest.raises(DatasetError, match=r"trajectories\.json"):
        load_trajectories(folder)


def test_values_are_checked_when_asked_for(folder: Path) -> None:
    array = np.load(folder / "observations.npy")
    array[4, 1] = np.nan
    np.save(folder / "observations.npy", array)
    Trajectories.open(folder)
    error = error_of(folder, verify=True)
    assert (error.path, error.episode, error.index) == (str(folder), 2, 4)


def test_a_pickle_holds_a_stores_place(tmp_path: Path) -> None:
    data = make_trajectories([300, 200, 500], n_observations=50)
    data.save(tmp_path / "store")
    store = Trajectories.open(tmp_path / "store")
    assert store.returns_to_go.size == 1000  # derived, and not pickled
    for kept, expected in ((store, data), (store[1:], data[1:]), (store[1:2], data[1:2])):
        pickled = pickle.dumps(kept)
        assert len(pickled) < 5000 < expected.observations.nbytes
        for again in (pickle.loads(pickled), copy.deepcopy(kept)):
            assert_same(again, expected)
            assert isinstance(again.observations, np.memmap)
            assert pickle.loads(pickle.dumps(again)).n_steps == expected.n_steps
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(store))  # for another process
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'a.pkl')!r}, 'rb')).returns)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(data.returns)


def test_a_pickle_of_a_store_that_was_replaced_holds_its_values(tmp_path: Path) -> None:
    data = make_trajectories([30, 20])
    data.save(tmp_path / "store")
    store = Trajectories.open(tmp_path / "store")
    make_trajectories([4], seed=1).save(tmp_path / "store", overwrite=True)
    for again in (pickle.loads(pickle.dumps(each)) for each in (data, store)):
        assert_same(again, data)
        assert not isinstance(again.observations, np.memmap)


def test_a_pickled_store_that_is_gone_or_another(tmp_path: Path) -> None:
    make_trajectories([30, 20]).save(tmp_path / "store")
    pickled = pickle.dumps(Trajectories.open(tmp_path / "store"))
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"observations.npy cannot be opened \(No such file"):
        pickle.loads(pickled)
    make_trajectories([20, 30], seed=1).save(tmp_path / "store")
    with pytest.raises(DatasetError, match=r"observations.npy was written anew"):
        pickle.loads(pickled)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 10 MB in 400 episodes."""
    folder = tmp_path_factory.mktemp("big") / "big"
    make_trajectories([100] * 400, n_observations=60).save(folder)
    return folder


def test_private_memory_is_bounded(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(_checks, "CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    try:
        data = Trajectories.open(big)
        assert data.returns_to_go.shape == (40_000,)
        assert compute_observation_statistics(data) is not None
        sampler = WindowSampler(data, 20, 64)
        for update in range(50):
            sampler.sample(update)
        best = data.take_top(0.3).with_delayed_rewards()
        WindowSampler(best, 20, 64).sample(0)
        Trajectories.open(big, verify=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.observations.nbytes / 4


def test_maps_of_anybody(big: Path) -> None:
    flat = {
        name: np.load(big / f"{name}.npy", mmap_mode="r")
        for name in ("observations", "actions", "rewards")
    }
    flat["terminals"] = np.arange(40_000) % 100 == 99
    data = load_trajectories(flat)
    assert isinstance(data.observations, np.memmap)
    ours = WindowSampler(data, 20, 64).sample(3)
    stored = WindowSampler(Trajectories.open(big), 20, 64).sample(3)
    np.testing.assert_array_equal(ours.observations, stored.observations)
    copied = pickle.loads(pickle.dumps(data))
    assert not isinstance(copied.observations, np.memmap)
    np.testing.assert_array_equal(copied.observations, data.observations)


def test_maps_of_other_types_become_mapped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "SCRATCH_BYTES", 16)
    monkeypatch.setattr(mapping, "_CHUNK_BYTES", 16)
    monkeypatch.setattr(_checks, "CHUNK_BYTES", 16)
    observations = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "observations.npy", observations)
    flat = {
        "observations": np.load(tmp_path / "observations.npy", mmap_mode="r"),
        "actions": np.zeros((6, 1), np.float32),
        "rewards": np.ones(6),
        "timeouts": [0, 0, 1, 0, 0, 1],
    }
    data = load_trajectories(flat)
    assert isinstance(data.observations, np.memmap)
    assert data.observations.dtype == np.float32
    np.testing.assert_array_equal(data.observations, observations)
    assert [path.name for path in tmp_path.iterdir()] == ["observations.npy"]


def test_files_are_closed(tmp_path: Path) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/dev/fd").iterdir()))

    make_trajectories([3, 2]).save(tmp_path / "store")
    before = count()
    data = Trajectories.open(tmp_path / "store")
    part = data.observations[2:4]
    del data
    assert count() > before
    assert np.isfinite(part).all()  # a view keeps its own file
    del part
    assert count() == before
