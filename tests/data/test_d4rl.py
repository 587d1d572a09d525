"""D4RL's files, the Decision Transformer's pickles, and D4RL's names of either."""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba import d4rl as names_of_d4rl
from sb3_dmamba.data import Trajectories, load_trajectories, validation
from sb3_dmamba.data.sources import d4rl
from sb3_dmamba.data.sources.d4rl import open_d4rl_file, open_d4rl_name
from sb3_dmamba.data.sources.pickles import _ALLOWED, load_plain_pickle, to_array
from sb3_dmamba.errors import DatasetError
from tests.data.builders import flat_arrays, refusal, unlike, write_hdf5
from tests.serving import serving

Arrays = dict[str, Any]


def episodes(arrays: Arrays, timeouts: bool = False) -> list[Arrays]:
    """Cut flat arrays as the Decision Transformer's script does, the last episode left out."""
    keys = ["observations", "actions", "rewards", "terminals", *["timeouts"] * timeouts]
    return [{key: arrays[key][part] for key in keys} for part in (slice(0, 4), slice(4, 7))]


def check(data: Trajectories, arrays: Arrays, lengths: list[int]) -> None:
    steps = sum(lengths)
    assert data.lengths.tolist() == lengths
    for key in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(data, key), np.float32(arrays[key][:steps]))
    assert data.terminated.tolist() == [True, False, False][: len(lengths)]
    assert data.truncated.tolist() == [False, True, False][: len(lengths)]


def test_what_people_write_besides(tmp_path: Path) -> None:
    arrays = flat_arrays()
    other: Arrays = {key: arrays[key].astype(np.float64) for key in ("observations", "actions")}
    other["rewards"] = arrays["rewards"][:, None]
    other["terminated"] = arrays["terminals"][:, None].astype(np.uint8)
    other["truncated"] = arrays["timeouts"].astype(np.float32)
    check(load_trajectories(write_hdf5(tmp_path / "data.h5", other)), arrays, [4, 3, 2])


def test_files_without_timeouts(tmp_path: Path) -> None:
    arrays = flat_arrays()
    del arrays["timeouts"]
    path = write_hdf5(tmp_path / "old.hdf5", arrays)
    assert load_trajectories(path).lengths.tolist() == [4, 5]
    data = load_trajectories(path, max_episode_steps=2)
    assert data.lengths.tolist() == [2, 2, 2, 2, 1]
    assert data.terminated.tolist() == [False, True, False, False, False]  # not both
    assert data.truncated.tolist() == [True, False, True, True, False]
    assert refusal(path, max_episode_steps=0).setting == "max_episode_steps"


@pytest.mark.parametrize("chunk", [1, 200, 10_000])
def test_pieces_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(d4rl, "CHUNK_BYTES", chunk)
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", 2 * chunk)
    arrays = flat_arrays()
    path = write_hdf5(tmp_path / "hopper_medium-v2.hdf5", arrays)
    check(load_trajectories(path), arrays, [4, 3, 2])
    pieces = list(open_d4rl_file(path).pieces())
    expected = [[4, 3, 2]] if chunk == 10_000 else [[4], [3], [2]]
    assert [piece.lengths.tolist() for piece in pieces] == expected
    joined = np.concatenate([piece.observations for piece in pieces])
    np.testing.assert_array_equal(joined, arrays["observations"])
    assert {piece.env_id for piece in pieces} == {"Hopper-v4"}
    assert {str(piece.action_space) for piece in pieces} == {"Box(-1.0, 1.0, (3,), float32)"}


MALFORMED: list[tuple[Arrays, dict[str, Any]]] = [
    ({"rewards": None}, {"setting": "rewards"}),
    ({"terminals": None, "timeouts": None}, {"setting": "terminals"}),
    ({"terminations": np.zeros(9)}, {"choices": ("terminals", "terminations")}),
    ({"rewards": np.float32(3)}, {"setting": "rewards"}),
    ({"rewards": np.full(9, np.inf)}, {"setting": "rewards", "episode": 0, "index": 0}),
    ({"observations": np.zeros((8, 11))}, {"setting": "observations", "value": (8, 11)}),
    ({"observations": np.full((9, 2), "x", "S1")}, {"setting": "observations"}),
    ({"observations/x": np.zeros(9), "observations": None}, {"setting": "observations"}),
    ({"actions": np.zeros((9, 3), complex)}, {"setting": "actions"}),
    ({"actions": np.zeros(9, np.float32)}, {"setting": "action_space"}),
    ({"terminals": np.zeros(4)}, {"setting": "terminals", "value": (4,)}),
    ({"terminals": np.full(9, np.nan)}, {"setting": "terminals", "index": 0}),
    ({"timeouts": np.arange(9)}, {"setting": "timeouts", "index": 2, "value": 2}),
    ({"observations": np.full((9, 11), np.nan)}, {"setting": "observations", "index": 0}),
    ({"episode_0": np.zeros(9)}, {"said": "Minari's: pass its folder"}),
    ({"observations_0": np.zeros(9)}, {"said": "d3rlpy's: load it with d3rlpy"}),
]


def test_malformed_hdf5(tmp_path: Path) -> None:
    wrong = []
    for changes, expected in MALFORMED:
        arrays = {**flat_arrays(), **changes}
        path = write_hdf5(tmp_path / "a.hdf5", {k: v for k, v in arrays.items() if v is not None})
        wrong += unlike(changes, refusal(path), {**expected, "path": path})
    assert not wrong, "\n".join(wrong)


def test_a_bad_action_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "CHUNK_BYTES", 1)
    for bad, dtype in ((-2, np.int64), (2**64 - 1, np.uint64), (np.inf, np.float32)):
        actions = np.zeros((9, 1), dtype)
        actions[5] = bad
        path = write_hdf5(tmp_path / "a.hdf5", {**flat_arrays(), "actions": actions})
        error = refusal(path)
        assert (error.path, error.index, error.value) == (str(path), 5, bad)


def test_damaged_hdf5(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = flat_arrays()
    arrays["observations"] = generator.normal(size=(9, 5000))
    path = write_hdf5(tmp_path / "a.hdf5", arrays, compression="gzip", chunks=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"not HDF5"):
        path.write_bytes(damaged)
        assert refusal(path).path == str(path)
    with h5py.File(io.BytesIO(whole), "r") as file:
        chunk = file["observations"].id.get_chunk_info(3)
    start = chunk.byte_offset
    path.write_bytes(whole[:start] + bytes(chunk.size) + whole[start + chunk.size :])
    error = refusal(path)
    assert (error.path, error.setting, error.index) == (str(path), "observations", 0)


def test_other_files_are_not_read(tmp_path: Path) -> None:
    secret = write_hdf5(tmp_path / "secret.hdf5", flat_arrays())
    arrays = flat_arrays()
    del arrays["observations"]
    layout = h5py.VirtualLayout((9, 11), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "observations", (9, 11))
    raw = [(str(secret), 0, 9 * 11 * 4)]
    linked = h5py.ExternalLink(str(secret), "observations")
    for attack in ("link", "two links", "raw contents", "virtual dataset"):
        path = write_hdf5(tmp_path / "a.hdf5", arrays)
        with h5py.File(path, "a") as file:
            if attack == "link":
                file["observations"] = linked
            elif attack == "two links":
                file["outside"], file["observations"] = linked, h5py.SoftLink("/outside")
            elif attack == "raw contents":
                file.create_dataset("observations", (9, 11), np.float32, external=raw)
            else:
                file.create_virtual_dataset("observations", layout)
        expected = {"path": path, "setting": "observations", "said": "lie in another file"}
        assert not unlike(attack, refusal(path), expected)


def test_a_small_file_that_announces_a_huge_array(tmp_path: Path) -> None:
    for key, shape in (("rewards", (10**12,)), ("observations", (9, 10**11))):
        path = write_hdf5(tmp_path / "a.hdf5", {k: v for k, v in flat_arrays().items() if k != key})
        with h5py.File(path, "a") as file:
            file.create_dataset(key, shape, "f4", chunks=True)
        expected = {"path": path, "setting": key, "said": "bytes are announced"}
        assert not unlike(key, refusal(path), expected)


def write_pickle(path: Path, contents: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(contents, protocol))
    return path


def test_pickles(tmp_path: Path) -> None:
    arrays = flat_arrays()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        contents = episodes(arrays, timeouts=protocol % 2 == 0)
        path = write_pickle(tmp_path / "mine.pkl", contents, protocol)
        data = load_trajectories(path)
        check(data, arrays, [4, 3])
        if protocol <= 2:
            path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))  # NumPy 1
            check(load_trajectories(path), arrays, [4, 3])
        assert (data.env_id, data.source) == (None, f"d4rl:{path}")
        assert data.action_space == spaces.Box(-1.0, 1.0, (3,), np.float32)


def test_other_layouts_of_arrays_in_pickles(tmp_path: Path) -> None:
    arrays = flat_arrays()
    changed = episodes(arrays)
    changed[0]["observations"] = np.asfortranarray(changed[0]["observations"])
    changed[0]["rewards"] = changed[0]["rewards"].tolist()
    changed[1]["rewards"] = list(changed[1]["rewards"])  # of NumPy's scalars
    changed[1]["observations"] = list(changed[1]["observations"])  # of arrays
    changed[1]["actions"] = changed[1]["actions"].astype(">f8")
    changed[1]["terminals"] = [False, False, False]
    changed[0]["infos"] = {"unread": [np.array([object, None])[1:], {1, 2}, b"x", 1.5, None]}
    for protocol in (2, 5):
        path = write_pickle(tmp_path / "a.pkl", tuple(changed), protocol)
        check(load_trajectories(path), arrays, [4, 3])


def test_episodes_that_only_time_limits_end(tmp_path: Path) -> None:
    for name in ("timeouts", "truncations"):
        flat = {key: flat_arrays()[key][:7] for key in ("observations", "actions", "rewards")}
        flat[name] = np.arange(7) == 3  # nothing ends the second one
        pieces = [{k: v[part] for k, v in flat.items()} for part in (slice(0, 4), slice(4, 7))]
        for contents in (flat, pieces):
            data = load_trajectories(write_pickle(tmp_path / "a.pkl", contents))
            assert data.lengths.tolist() == [4, 3]
            assert not data.terminated.any()
            assert data.truncated.tolist() == [True, False]


def test_episodes_of_discrete_actions(tmp_path: Path) -> None:
    changed = episodes(flat_arrays())
    changed[0]["actions"], changed[1]["actions"] = np.zeros((4, 1), int), np.array([2, 1, 0])
    for episode in changed:
        episode["dones"] = episode.pop("terminals")
    data = load_trajectories(write_pickle(tmp_path / "a.pkl", changed))
    assert data.action_space == spaces.Discrete(3)
    assert data.actions.tolist() == [0, 0, 0, 0, 2, 1, 0]
    changed[1]["actions"] = np.array([0.5, 1, 0])
    path = write_pickle(tmp_path / "a.pkl", changed)
    error = refusal(path, action_space=spaces.Discrete(3))
    assert (error.episode, error.setting, error.value) == (1, "action_space", 0.5)


def malformed(e: list[Arrays]) -> list[tuple[Any, dict[str, Any]]]:
    """Return contents that are no episodes, made of two that are."""
    first, second = e
    no_terminals = {k: v for k, v in second.items() if k != "terminals"}
    return [
        (3, {"said": "it holds int: a list of one dict an episode"}),
        ([], {"said": "it holds no episode"}),
        ([*e, 3], {"episode": 2}),
        ([first, {}], {"episode": 1, "setting": "observations"}),
        ([{**first, "rewards": np.zeros(3)}], {"episode": 0, "setting": "observations"}),
        ([{**first, "rewards": np.zeros((4, 2))}], {"episode": 0, "value": (4, 2)}),
        ([{**first, "rewards": np.zeros(0)}], {"episode": 0, "setting": "rewards"}),
        ([{**first, "rewards": np.array([None] * 4)}], {"said": "rewards: it holds 'O8'"}),
        ([{**first, "rewards": np.array(["a"] * 4)}], {"said": "rewards: it holds 'U1'"}),
        ([{**first, "rewards": "many"}], {"said": "rewards: it is a str without numbers"}),
        ([{**first, "rewards": [[1], [1, 2]]}], {"said": "rewards: its parts make up no array"}),
        ([{**first, "terminals": np.ones(4)}], {"setting": "terminals", "index": 0}),
        ([{**first, "terminals": np.ones(3)}], {"setting": "terminals", "value": (3,)}),
        ([first, no_terminals], {"episode": 1, "setting": "terminals"}),
        ([first, {**second, "observations": np.zeros((3, 2))}], {"episode": 1, "value": (3, 2)}),
        ([{**first, "actions": np.full((4, 3), np.nan)}], {"setting": "actions", "index": 0}),
        ({"observations": np.zeros((2, 2))}, {"setting": "actions"}),
        ({"obs": 0, "acts": 0}, {"said": "rename 'obs' to 'observations'"}),
        ({**first, "timeout": 0}, {"setting": "timeout", "choices": ("timeouts",)}),
    ]


def test_malformed_pickles(tmp_path: Path) -> None:
    wrong = []
    for contents, expected in malformed(episodes(flat_arrays())):
        path = write_pickle(tmp_path / "a.pkl", contents)
        wrong += unlike(expected, refusal(path), {**expected, "path": path})
    assert not wrong, "\n".join(wrong)


class Calls:
    """Pickles as a call of a function, which would run when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    attacks: list[tuple[Any, tuple[str, ...], str]] = [
        (os.system, ("touch {}",), "(posix|nt).system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (getattr, ("{}", "lower"), "builtins.getattr"),
        (np.load, ("{}",), "numpy.load"),
        (io.open, ("{}", "w"), "_?io.open"),
    ]
    for function, arguments, name in attacks:
        for protocol in (0, 2, 5):
            filled = [argument.format(made) for argument in arguments]
            contents = [{**episodes(flat_arrays())[0], "rewards": Calls(function, *filled)}]
            path = write_pickle(tmp_path / "a.pkl", contents, protocol)
            error = refusal(path)
            assert error.path == str(path)
            assert re.fullmatch(name, error.value)
            assert not made.exists()


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


DTYPE = _global("numpy.dtype")
RECONSTRUCT = _global("numpy.core.multiarray._reconstruct")
ARRAY = RECONSTRUCT + b"(" + _global("numpy.ndarray") + b"(tU\x01btR"
FLOAT = DTYPE + b"(U\x02f8tR"


HOSTILE = [
    (b"", "damaged or no pickle"),
    (b"garbage", "damaged or no pickle"),
    (b"\x80\x7f.", "unsupported pickle protocol"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00abc.", "but only 4 remain"),
    (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00N.", "truncated"),
    (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00N.", "but only 2 remain"),
    (b"(lp0\nr\xff\xff\xff\xff.", "memo index 4294967295"),  # its table would take 64 GB
    (b"Pname\n.", "refers to objects outside of it"),
    (b"\x80\x02U\x04nameQ.", "refers to objects outside of it"),
    (_global("__builtin__.set") + b"(I9\ntR.", "not iterable"),
    (b"\x80\x02\x82\x01.", "extension 1"),
    (DTYPE + b"}U\x08__call__Nsb.", "tries to change a function"),
    (_global("numpy.ndarray") + b"(I9999999999\ntR.", "it holds _Array"),
    (_global("_codecs.encode") + b"(U\x01xU\x05utf16tR.", "encoded as 'utf16'"),
    (DTYPE + b"(I3\ntR.", "TypeError"),
    (ARRAY + b"(I1\n(I-1\nt" + FLOAT + b"I00\nU\x00tb.", "0 bytes for an array"),
    (ARRAY + b"(I1\n(I5\nt" + FLOAT + b"I00\nU\x03abctb.", "3 bytes for an array of f8"),
    (ARRAY + b"(I1\n(I0\ntI8\nI00\nU\x00tb.", "dtype or shape is of a wrong kind"),
    (ARRAY + b"(I1\n(I0\nt" + FLOAT + b"I00\nNtb.", "contents are a NoneType"),
    (ARRAY + b"(I1\ntb.", "not enough values"),
    (b"\x80\x02" + DTYPE + b")\x81.", "damaged or no pickle"),  # makes an instance of it
]


def test_hostile_pickles(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    wrong = []
    for contents, message in HOSTILE:
        path.write_bytes(contents)
        wrong += unlike(contents, refusal(path), {"path": path, "said": message})
    assert not wrong, "\n".join(wrong)


def test_what_a_pickle_may_name_cannot_be_changed_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    attributes = b"}U\x0c__defaults__(tsU\x08__dict__Ns"
    for name in ("numpy.core.multiarray.scalar", *_ALLOWED):
        for state in (attributes, b"(N" + attributes + b"t"):
            path.write_bytes(_global(name) + state + b"b.")
            with pytest.raises(DatasetError, match="tries to change a function"):
                load_plain_pickle(path)
        path.write_bytes(_global(name) + b"U\x01xNs.")  # sets an item of it
        with pytest.raises(DatasetError, match="damaged or no pickle"):
            load_plain_pickle(path)


def test_dtypes_with_fields_stay_without_contents(tmp_path: Path) -> None:
    # NumPy would take the bytes of such an array for pointers.
    fields = b"U\x01|N(U\x01ot}U\x01o(" + DTYPE + b"(U\x01OtRI0\ntsI8\nI1\nI0\n"
    for number, holds in ((b"U\x02V8", "'V8'"), (b"U\x01O", "'O'")):
        dtype = DTYPE + b"(" + number + b"tR(I3\n" + fields + b"tb"
        array = ARRAY + b"(I1\n(I1\nt" + dtype + b"I00\nU\x0841414141tb"
        (tmp_path / "a.pkl").write_bytes(b"(dU\x0cobservations" + array + b"s.")
        contents = load_plain_pickle(tmp_path / "a.pkl")
        with pytest.raises(DatasetError, match=f"it holds {holds}"):
            to_array(contents["observations"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.pkl"
    for load in (load_plain_pickle, lambda path: open_d4rl_file(path.with_suffix(".h5")).load()):
        with pytest.raises(DatasetError, match=r"there is no file .*none\."):
            load(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """D4RL's folder, empty, and no way to download."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    monkeypatch.setenv("SB3_DMAMBA_OFFLINE", "1")
    return folder


def test_names_and_addresses() -> None:
    names = names_of_d4rl.list_names()
    assert len(names) == len(set(names)) == 4 * (5 + 6 + 6)
    assert [str(names_of_d4rl.parse_name(name)) for name in names] == names
    for name, address in {  # written down from d4rl/infos.py
        "hopper-medium-replay-v2": "gym_mujoco_v2/hopper_medium_replay-v2.hdf5",
        "walker2d-full-replay-v1": "gym_mujoco_v1/walker2d_full_replay-v1.hdf5",
        "hopper-expert-v0": "gym_mujoco/hopper_expert.hdf5",
        "walker2d-medium-v0": "gym_mujoco/walker2d_medium.hdf5",
        "walker2d-medium-replay-v0": "gym_mujoco/walker_mixed.hdf5",
        "halfcheetah-medium-replay-v0": "gym_mujoco/halfcheetah_mixed.hdf5",
    }.items():
        base = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
        assert names_of_d4rl.parse_name(name).url == f"{base}/{address}"


def test_a_name_in_the_cache(cache: Path) -> None:
    arrays = flat_arrays()
    for file_name in ("hopper_medium_replay-v2.hdf5", "hopper-medium-replay-v2.hdf5"):
        path = write_hdf5(cache / file_name, arrays)
        data = load_trajectories("hopper-medium-replay-v2")
        check(data, arrays, [4, 3, 2])
        assert (data.env_id, data.env_kwargs) == ("Hopper-v4", {})
        assert data.source == "d4rl:hopper-medium-replay-v2"
        for piece in open_d4rl_name("hopper-medium-replay-v2").pieces():
            assert (piece.source, piece.env_id) == (data.source, data.env_id)
        path.unlink()


def test_the_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_hdf5(tmp_path / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5", flat_arrays())
    assert len(load_trajectories("hopper-medium-v2")) == 3


def test_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = cache / "hopper_medium-v2.hdf5"
    advice = f"/hopper_medium-v2.hdf5 and put it at {target}"
    error = refusal("hopper-medium-v2")
    expected = {"path": target, "setting": "SB3_DMAMBA_OFFLINE", "said": advice}
    assert not unlike("offline", error, expected)
    monkeypatch.delenv("SB3_DMAMBA_OFFLINE")
    error = refusal("hopper-medium-v2", download=False)
    assert not unlike("no download", error, {"path": target, "setting": "download"})
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(names_of_d4rl, "ADDRESS", "http://127.0.0.1:9")
    assert not unlike("no server", refusal("hopper-medium-v2"), {"path": target, "setting": "url"})
    assert not list(cache.iterdir())


def test_a_name_is_downloaded_over_a_bad_connection(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SB3_DMAMBA_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    arrays = flat_arrays()
    with serving() as server:
        server.content = write_hdf5(tmp_path / "theirs", arrays).read_bytes()
        server.drop_after = [len(server.content) // 2]
        monkeypatch.setattr(
            names_of_d4rl, "ADDRESS", f"http://127.0.0.1:{server.server_address[1]}"
        )
        check(load_trajectories("hopper-medium-v2", progress_bar=False), arrays, [4, 3, 2])
        assert server.paths == ["/gym_mujoco_v2/hopper_medium-v2.hdf5"] * 2
        load_trajectories("hopper-medium-v2")  # from the cache
        assert len(server.paths) == 2
        server.content = b"<html>not found, but politely"
        with pytest.raises(DatasetError, match="the server sent something else"):
            load_trajectories("hopper-expert-v2", progress_bar=False)
    assert [path.name for path in cache.iterdir()] == ["hopper_medium-v2.hdf5"]


def test_names_that_do_not_exist(cache: Path) -> None:
    assert refusal("hopper-mediun-v2").choices[0] == "hopper-medium-v2"
    assert refusal("ant-full-replay-v0").choices[0].startswith("ant-full-replay-v")


def test_another_robot_in_the_file(cache: Path) -> None:
    path = write_hdf5(cache / "hopper_medium-v2.hdf5", flat_arrays(0, 17, 6))
    error = refusal("hopper-medium-v2")
    assert (error.path, error.value) == (str(path), ((17,), (6,)))
    assert load_trajectories(cache / "hopper_medium-v2.hdf5").env_id is None


def test_medium_expert_both_ways(cache: Path) -> None:
    both, medium, expert = flat_arrays(0), flat_arrays(1), flat_arrays(2)
    write_hdf5(cache / "hopper_medium_expert-v2.hdf5", both)
    write_hdf5(cache / "hopper_medium-v2.hdf5", medium)
    write_pickle(cache / "hopper-expert-v2.pkl", episodes(expert))
    check(load_trajectories("hopper-medium-expert-v2"), both, [4, 3, 2])
    data = load_trajectories("hopper-medium-expert-v2", medium_expert="paper")
    assert data.lengths.tolist() == [4, 3, 4, 3]  # without the one that collection cut
    expected = np.concatenate([expert["observations"][:7], medium["observations"][:7]])
    np.testing.assert_array_equal(data.observations, expected)
    assert data.terminated.tolist() == [True, False, True, False]
    assert data.source == "d4rl:hopper-expert-v2+hopper-medium-v2"
    assert data.env_id == "Hopper-v4"
    pieces = list(open_d4rl_name("hopper-medium-expert-v2", medium_expert="paper").pieces())
    np.testing.assert_array_equal(np.concatenate([p.rewards for p in pieces]), data.rewards)
    assert {piece.source for piece in pieces} == {data.source}
    error = refusal("hopper-medium-expert-v2", medium_expert="both")
    assert (error.setting, error.choices) == ("medium_expert", ("d4rl", "paper"))
    assert refusal("hopper-medium-v2", medium_expert="paper").value == "paper"


@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "walker2d", "ant"])
def test_the_environments_are_the_datas(cache: Path, name: str) -> None:
    pytest.importorskip("mujoco", reason="simulates the robots")
    robot = names_of_d4rl.parse_name(f"{name}-medium-v2").settings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        env = gymnasium.make(robot.env_id, **robot.env_kwargs)
    assert env.observation_space.shape == (robot.n_observations,)
    assert env.action_space == spaces.Box(-1, 1, (robot.n_actions,), np.float32)
    assert env.spec is not None
    assert env.spec.max_episode_steps == robot.max_episode_steps
    env.close()  # type: ignore[no-untyped-call]
