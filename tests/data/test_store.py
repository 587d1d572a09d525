from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import Trajectories, TrajectoriesWriter, load_trajectories
from sb3_dmamba.data.store import NpyStream
from sb3_dmamba.errors import DatasetError, SpaceError

Make = Callable[..., Trajectories]
LENGTHS = [3, 1, 6, 2, 4]
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
MEMBERS = ("trajectories.json", *(f"{name}.npy" for name in ARRAYS))


def _variants() -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(0)
    n_steps = sum(LENGTHS)
    frames = generator.integers(0, 256, (n_steps, 5, 4), dtype=np.uint8)
    bounds = np.array([-1.0, -np.inf, 0.1], np.float32), np.array([2.0, 1e-3, np.inf], np.float32)
    return {
        "continuous": {},
        "bounds that differ": {
            "observation_space": spaces.Box(*bounds),
            "action_space": spaces.Box(np.array([-1 / 3, -2]), np.ones(2), dtype=np.float64),
            "actions": generator.uniform(-0.3, 1, (n_steps, 2)),
            "env_id": "Hopper-v5",
            "env_kwargs": {"reset_noise_scale": 0.1, "nested": [1, None, "é"]},
            "source": "somewhere, ünïcode",
        },
        "discrete": {
            "action_space": spaces.Discrete(4, start=-1),
            "actions": generator.integers(-1, 3, n_steps),
        },
        "images": {
            "observations": frames,
            "observation_space": spaces.Box(0, 255, (5, 4), np.uint8),
        },
        "stacked frames": {
            "observations": frames,
            "observation_space": spaces.Box(0, 255, (3, 5, 4), np.uint8),
            "frame_stack": 3,
        },
    }


@pytest.fixture
def data(make_trajectories: Make) -> Trajectories:
    return make_trajectories(LENGTHS)


@pytest.fixture
def folder(data: Trajectories, tmp_path: Path) -> Path:
    data.save(tmp_path / "store")
    return tmp_path / "store"


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(found: Trajectories, expected: Trajectories) -> None:
    for field in dataclasses.fields(Trajectories):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, field.name)
            assert ours.dtype == theirs.dtype, field.name
        else:
            assert ours == theirs, field.name


# --- Round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", _variants())
def test_what_is_saved_comes_back(make_trajectories: Make, tmp_path: Path, variant: str) -> None:
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
    assert_same(Trajectories.open(tmp_path / "new" / "store", verify=True), data)
    assert_same(load_trajectories(str(tmp_path / "new" / "store")), data)
    assert_same(load_trajectories(tmp_path / "new" / "store", verify=True), data)


@pytest.mark.parametrize("variant", _variants())
def test_episode_by_episode(make_trajectories: Make, tmp_path: Path, variant: str) -> None:
    data = make_trajectories(LENGTHS, **_variants()[variant])
    names = ("observation_space", "action_space", "env_id", "env_kwargs", "source", "frame_stack")
    fields = {name: getattr(data, name) for name in names}
    with TrajectoriesWriter(tmp_path / "store", **fields) as writer:
        for count, part in enumerate(data):
            assert (writer.n_episodes, writer.n_steps) == (count, data.episode_offsets[count])
            writer.append(
                part.observations[::1],
                part.actions,
                part.rewards.astype(np.float64),  # whatever Trajectories takes
                terminated=part.terminated,
                truncated=part.truncated,
            )
        assert not (tmp_path / "store").exists()
        finished = writer.finish()
    assert_same(finished, data)
    assert listed(tmp_path) == ["store"]


def test_a_part_of_a_store_is_saved(data: Trajectories, folder: Path, tmp_path: Path) -> None:
    opened = Trajectories.open(folder)
    opened[1:4].save(tmp_path / "part")
    assert_same(Trajectories.open(tmp_path / "part"), data[1:4])


def test_a_store_replaces_itself(data: Trajectories, folder: Path) -> None:
    opened = Trajectories.open(folder)
    opened[2:].save(folder, overwrite=True)
    assert_same(Trajectories.open(folder), data[2:])
    assert_same(opened, data)  # still whole: its files live until it goes
    assert listed(folder.parent) == ["store"]


def test_a_copy_of_an_opened_store(data: Trajectories, folder: Path) -> None:
    opened = Trajectories.open(folder)
    assert_same(pickle.loads(pickle.dumps(opened)), data)


# --- Writing -------------------------------------------------------------------------------------


def test_nothing_is_left_after_an_exception(data: Trajectories, tmp_path: Path) -> None:
    def write() -> None:
        with open_writer(tmp_path / "store") as writer:
            writer.append_all(data)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert not listed(tmp_path)


def test_nothing_is_left_without_finish(data: Trajectories, folder: Path, tmp_path: Path) -> None:
    with open_writer(tmp_path / "other") as writer:
        writer.append_all(data)
    with open_writer(folder, overwrite=True) as writer:
        writer.append_all(data[:1])
    assert listed(tmp_path) == ["store"]
    assert_same(Trajectories.open(folder), data)


def open_writer(folder: Path, **options: Any) -> TrajectoriesWriter:
    fields: dict[str, Any] = {"observation_space": BOX, "action_space": ACTIONS}
    return TrajectoriesWriter(folder, **{**fields, **options})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.full((2, 3), np.nan)}, r"episode 1 .*observations\[0, 0\] is nan"),
        ({"actions": np.full((2, 2), 2.0)}, r"episode 1 .*actions\[0, 0\] is 2"),
        ({"rewards": np.zeros(3)}, r"episode 1 .*2 observations, 2 actions and 3 rewards"),
        ({"observations": np.zeros((2, 4))}, r"episode 1 .*observations have shape \(2, 4\)"),
        (
            {"observations": np.zeros((0, 3)), "actions": np.zeros((0, 2)), "rewards": []},
            "episode 1 .*empty",
        ),
    ],
)
def test_a_wrong_episode_is_refused_and_writing_goes_on(
    data: Trajectories, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    wrong = {
        "observations": np.zeros((2, 3)),
        "actions": np.zeros((2, 2)),
        "rewards": np.zeros(2),
        **changes,
    }
    with open_writer(tmp_path / "store") as writer:
        writer.append_all(data[:1])
        with pytest.raises(DatasetError, match=message):
            writer.append(**wrong, terminated=True, truncated=False)
        writer.append_all(data[1:])
        assert_same(writer.finish(), data)


def test_other_episodes_are_refused(make_trajectories: Make, tmp_path: Path) -> None:
    with (
        open_writer(tmp_path / "store") as writer,
        pytest.raises(DatasetError, match=r"the episodes' observation_space is Box\(.*\(4,\)"),
    ):
        writer.append_all(make_trajectories([2], n_observations=4))


def test_an_empty_store(tmp_path: Path) -> None:
    with (
        open_writer(tmp_path / "store") as writer,
        pytest.raises(DatasetError, match="no episode was written"),
    ):
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


def test_a_full_disk_leaves_nothing(
    data: Trajectories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        data[:1].save(folder, overwrite=True)
    assert listed(folder.parent) == ["store"]
    assert_same(Trajectories.open(folder), data)


def test_a_write_that_failed_cannot_be_finished(
    data: Trajectories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "observation_space": data.observation_space,
        "action_space": data.action_space,
        "frame_stack": data.frame_stack,
    }
    with TrajectoriesWriter(folder, overwrite=True, **fields) as writer:
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


def test_wrong_fields(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="flat_space"):
        open_writer(tmp_path / "store", observation_space=spaces.Discrete(3))
    with pytest.raises(SpaceError, match="MultiBinary"):
        open_writer(tmp_path / "store", action_space=spaces.MultiBinary(3))
    with pytest.raises(DatasetError, match="cannot be written as JSON"):
        open_writer(tmp_path / "store", env_kwargs={"f": print})
    with pytest.raises(DatasetError, match="frame_stack=0"):
        open_writer(tmp_path / "store", frame_stack=0)
    assert not listed(tmp_path)


# --- Damage --------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _scribble(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': __impo" + path.read_bytes()[26:])


def _halve(path: Path) -> None:
    np.save(path, np.load(path)[: len(np.load(path)) // 2])


def _widen(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _transpose(path: Path) -> None:
    np.save(path, np.asfortranarray(np.load(path)))


def _trap(path: Path) -> None:
    np.save(path, np.array([_Trap()], object), allow_pickle=True)


class _Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", [f"{name}.npy" for name in ARRAYS])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is missing from the store"),
        (_cut, "bytes long and should be"),
        (_lengthen, "bytes long and should be"),
        (_empty, "has no readable .npy header"),
        (_scribble, "has no readable .npy header"),
        (_halve, "and the store's header says"),
        (_widen, "holds float64 of shape"),
        (_trap, "holds object of shape"),
    ],
)
def test_damaged_arrays(
    folder: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder / name)
    with pytest.raises(DatasetError, match=message) as caught:
        Trajectories.open(folder)
    assert str(folder / name) in str(caught.value)


def test_columns_first(folder: Path) -> None:
    _transpose(folder / "observations.npy")
    with pytest.raises(DatasetError, match=r"observations.npy holds .* column by column"):
        Trajectories.open(folder)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 4, 10, 12, 15], "end at 15 and there are 16 steps"),
        ([0, 3, 3, 10, 12, 16], "episode 1 goes from step 3 to 3"),
        ([1, 3, 4, 10, 12, 16], r"episode_offsets\[0\] is 1"),
        ([0, 3, 40, 10, 12, 16], "episode 2 goes from step 40 to 10"),
    ],
)
def test_offsets_that_do_not_fit(folder: Path, offsets: list[int], message: str) -> None:
    np.save(folder / "episode_offsets.npy", np.array(offsets))
    with pytest.raises(DatasetError, match=f"episode_offsets.npy: .*{message}"):
        Trajectories.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not the header of a store"),
        ({"format_version": 2}, "has format version 2, .* upgrade with"),
        ({"format_version": True}, "has format version True"),
        ({"n_steps": "16"}, "n_steps='16', and a positive integer"),
        ({"n_steps": -1}, "n_steps=-1, and a positive integer"),
        ({"n_episodes": 4}, "and the store's header says"),
        ({"observation_space": {"type": "Box"}}, "describes no space"),
        ({"observation_space": {"type": "Discrete", "n": 3, "start": 0}}, "flat_space"),
        (
            {"observation_space": {"type": "Box", "shape": [1 << 30], "dtype": "float32"}},
            "describes neither",
        ),
        ({"action_space": {"type": "Text"}}, "neither a Box nor a Discrete"),
        ({"action_space": None}, "action_space=None, and dict was expected"),
        ({"frame_stack": 0}, "frame_stack=0"),
        ({"frame_stack": 2}, "frame_stack=2 and the observation space is"),
        ({"env_id": 3}, "env_id=3, and str or NoneType"),
        ({"env_kwargs": []}, "env_kwargs=.*, and dict"),
        ({"source": None}, "source=None, and str"),
    ],
)
def test_damaged_headers(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / "trajectories.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, **changes}))
    with pytest.raises(DatasetError, match=message) as caught:
        Trajectories.open(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 10_000, "[1]", "null", '"\udcff"'])
def test_broken_json(folder: Path, text: str) -> None:
    (folder / "trajectories.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=r"trajectories.json is not (readable JSON|the head)"):
        Trajectories.open(folder)


@pytest.mark.parametrize("name", ["env_kwargs", "n_steps", "observation_space", "frame_stack"])
def test_a_header_without_a_field(folder: Path, name: str) -> None:
    path = folder / "trajectories.json"
    header = json.loads(path.read_text())
    del header[name]
    path.write_text(json.dumps(header))
    with pytest.raises(DatasetError, match=f"trajectories.json.*{name}=None"):
        Trajectories.open(folder)


def test_no_store(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere/trajectories.json is missing"):
        Trajectories.open(tmp_path / "nowhere")
    (folder / "trajectories.json").unlink()
    with pytest.raises(DatasetError, match=r"store/trajectories.json is missing"):
        load_trajectories(folder)


def test_values_are_checked_when_asked_for(folder: Path) -> None:
    array = np.load(folder / "observations.npy")
    array[4, 1] = np.nan
    np.save(folder / "observations.npy", array)
    Trajectories.open(folder)
    with pytest.raises(DatasetError, match=r"store .*observations\[4, 1\] is nan \(episode 2"):
        Trajectories.open(folder, verify=True)


# --- Learning ------------------------------------------------------------------------------------


def test_a_model_is_fitted_to_a_folder(data: Trajectories, folder: Path) -> None:
    options: dict[str, Any] = {"hidden_size": 8, "n_layers": 1, "batch_size": 4, "seed": 0}
    from_disk = DecisionMamba(None, **options).fit(folder, 3)
    from_memory = DecisionMamba(None, **options).fit(data, 3)
    observation = {"observation": data.observations[:1], "return_to_go": np.ones((1, 1))}
    ours, _ = from_disk.predict(observation)
    theirs, _ = from_memory.predict(observation)
    np.testing.assert_array_equal(ours, theirs)


# --- Pickles ------------------------------------------------------------------------------------


def test_a_pickle_holds_a_stores_place(make_trajectories: Make, tmp_path: Path) -> None:
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


def test_another_process_opens_the_same_store(make_trajectories: Make, tmp_path: Path) -> None:
    data = make_trajectories([30, 20])
    data.save(tmp_path / "store")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trajectories.open(tmp_path / "store")))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'a.pkl')!r}, 'rb')).returns)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(data.returns)


def test_pickles_of_what_lies_in_memory_or_in_no_file_of_a_name(
    make_trajectories: Make, tmp_path: Path
) -> None:
    data = make_trajectories([30, 20])
    assert_same(pickle.loads(pickle.dumps(data)), data)
    data.save(tmp_path / "store")
    store = Trajectories.open(tmp_path / "store")
    make_trajectories([4], seed=1).save(tmp_path / "store", overwrite=True)
    again = pickle.loads(pickle.dumps(store))  # whose files live on, nameless
    assert_same(again, data)
    assert not isinstance(again.observations, np.memmap)


def test_a_pickled_store_that_is_gone_or_another(make_trajectories: Make, tmp_path: Path) -> None:
    make_trajectories([30, 20]).save(tmp_path / "store")
    pickled = pickle.dumps(Trajectories.open(tmp_path / "store"))
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"observations.npy cannot be opened \(No such file"):
        pickle.loads(pickled)
    make_trajectories([20, 30], seed=1).save(tmp_path / "store")
    with pytest.raises(DatasetError, match=r"observations.npy was written anew"):
        pickle.loads(pickled)
