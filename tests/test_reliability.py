"""Short runs of the fuzz and the kills, and what each kind of fault that they found must give."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba import DecisionMamba
from sb3_dmamba.cli import main
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.sources.pickles import check_opcodes, load_plain_pickle, to_array
from sb3_dmamba.data.store import read_npy_header
from sb3_dmamba.errors import ConfigError, DatasetError, ModelFileError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.spaces import flat_space
from tests import fuzz
from tests.data.builders import refusal
from tests.kill import kill
from tests.models import tiny_model

KINDS = {kind.name: kind for kind in fuzz.KINDS}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a sound file of a kind of the fuzz's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")

    def write(name: str) -> Path:
        KINDS[name].write(tmp_path / name)
        return tmp_path / name

    return write


def test_a_short_fuzz() -> None:
    counts, faults, peak = fuzz.fuzz(seed=0, times=30)
    assert not faults, "\n".join(faults)
    assert peak < 1024
    assert counts.keys() == KINDS.keys()
    for outcomes in counts.values():
        assert sum(outcomes.values()) == 30
        assert outcomes["refused"] > 5


@pytest.mark.parametrize("kind", ["train", "convert"])
def test_a_few_kills(kind: str) -> None:
    result = kill(kind, times=2, seed=0)
    assert result.n_killed == 2
    assert result.n_finished > 0


def test_npy_headers_are_read_to_a_limit() -> None:
    for header in (*fuzz.HEADERS[:3], fuzz.npy((-1,), "<f4"), fuzz.npy((1,) * 65, "<f4")):
        file = io.BytesIO(header)
        with pytest.raises(ValueError, match="not an array"):
            read_npy_header(file)
        assert file.tell() < 10_100
    found = read_npy_header(io.BytesIO(fuzz.npy((3, 2), "<f4")))
    assert found == ((3, 2), False, np.dtype(np.float32))


def test_a_chunk_of_hdf5_takes_no_more_than_its_size(make: Any) -> None:
    whole = {name: make(name) for name in ("d4rl.hdf5", "minari")}
    files = {"d4rl.hdf5": whole["d4rl.hdf5"], "minari": whole["minari"] / "data/main_data.hdf5"}
    for name, path in whole.items():
        content = files[name].read_bytes()
        for options in ({}, {"inner": True}, {"chunks": (1 << 29,)}):
            fuzz.chunk("rewards", **options)(path)
            error = refusal(path)
            assert (error.path, error.setting) == (str(files[name]), "rewards")
            files[name].write_bytes(content)
        load_trajectories(path)


def test_honest_chunks_that_compress_well_are_read(make: Any) -> None:
    path = make("d4rl.hdf5")
    flags = {"terminals": np.zeros(1 << 19, bool), "timeouts": np.zeros(1 << 19, bool)}
    noise = np.random.default_rng(0).normal(size=(1 << 19, 1)).astype(np.float32)
    arrays: dict[str, Any] = {
        "observations": noise,
        "actions": noise / 100,
        "rewards": noise[:, 0],
        **flags,
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, chunks=values.shape, compression="gzip")
    np.testing.assert_array_equal(load_trajectories(path).observations, noise)


def test_minaris_arrays_lie_in_their_file(make: Any) -> None:
    path = make("minari")
    secret = path.parent / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["rewards"] = np.zeros(7)
    fuzz.links(lambda: h5py.ExternalLink(str(secret), "/rewards"))(path)
    assert refusal(path).setting == "rewards"


def test_an_image_is_decoded_only_in_its_size(make: Any) -> None:
    path = make("minari")
    fuzz.huge_frame(path)
    assert refusal(path).path == str(path / "data/main_data.hdf5")


def test_counts_and_spaces_beyond_any_memory(make: Any) -> None:
    path = make("minari")
    sets = fuzz.sets("total_episodes", value=10**300, file="data/metadata.json")
    sets(path)
    assert refusal(path).setting == "total_episodes"
    for space in (spaces.Discrete(10**12), spaces.Dict(a=spaces.MultiBinary([10**4, 10**4]))):
        with pytest.raises(SpaceError):
            flat_space(space)
    for name, value in (("hidden_size", 10**300), ("context_length", 10**9)):
        with pytest.raises(ConfigError) as caught:
            tiny_model(**{name: value})
        assert (caught.value.setting, caught.value.value) == (name, value)
    model = make("model.zip")
    fuzz.sets("counters", "num_timesteps", value=10**300)(model)
    with pytest.raises(ModelFileError) as refused:
        DecisionMamba.load(model)
    assert refused.value.setting == "num_timesteps"


def test_what_does_not_fit_into_memory_is_a_dataset_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("of 1 TiB")

    monkeypatch.setattr("sb3_dmamba.data.sources.arrays.load_arrays", fails)
    assert isinstance(refusal({}).__cause__, MemoryError)


def test_pickles_that_would_crash_or_fill_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    deep = b"N" + b"\x85" * 1_000_000  # a tuple in a tuple in a tuple ...
    hashed = (b"}" + deep + b"Ns.", b"\x8f(" + deep + b"\x90.", b"}(" + deep + b"Nu.")
    remembered = b"(0}N" + b"\x85" * 60 + b"\x940h\0" + b"\x85" * 60 + b"Ns."
    for content in (*hashed, remembered):
        path.write_bytes(b"\x80\x04" + content)
        with pytest.raises(DatasetError, match="nested"):
            load_plain_pickle(path)
    for value in (fuzz.shared_lists(), fuzz.own_item()):
        path.write_bytes(pickle.dumps({"rewards": value}))
        with pytest.raises(DatasetError, match="more than its size"):
            load_plain_pickle(path)
    check_opcodes(io.BytesIO(pickle.dumps({("a", ("b", (1, 2))): [(1, (2,))] * 1000})))
    for texts in (["a" * 10**6] * 10**4, [["a"]], [None], [1.0, 10**400]):
        with pytest.raises(DatasetError):
            to_array(texts)
    assert to_array([[1, 2.5], [True, 3]]).tolist() == [[1.0, 2.5], [1.0, 3.0]]


def test_zips_hold_no_more_than_their_bytes(make: Any) -> None:
    for name, load in (("model.zip", DecisionMamba.load), ("policy.pt", DecisionMambaPolicy.load)):
        path = make(name)
        whole = path.read_bytes()
        for trick in (fuzz.zip_bomb, fuzz.zip_sizes, fuzz.zip_overlap):
            trick(path)
            with pytest.raises(ModelFileError):
                load(path)
            path.write_bytes(whole)
        load(path)


def test_a_policy_file_is_checked_before_torch_reads_it(make: Any) -> None:
    path = make("policy.pt")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
    place = info.header_offset + whole[info.header_offset :].index(archive_bytes(path, info)) + 1
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ModelFileError):
        DecisionMambaPolicy.load(path)
    deep = b"\x80\x02}" + b"N" + b"\x85" * 1_000_000 + b"Ns."
    path.write_bytes(whole)
    fuzz.edit_zip(path, lambda parts: parts.update({n: deep for n in parts if n.endswith(".pkl")}))
    with pytest.raises(ModelFileError):
        DecisionMambaPolicy.load(path)


def test_torch_gets_a_zip_whose_directory_is_sound(make: Any) -> None:
    """Torch takes a member that is flagged as a folder for read, and returns unset memory."""
    path = make("policy.pt")
    sound = fuzz.digest(fuzz.read_policy(path))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
    while (place := content.find(b"PK\1\2", place)) >= 0:
        content[place + 38] |= 0x10
        place += 46
    path.write_bytes(content)
    assert fuzz.digest(fuzz.read_policy(path)) == sound


def archive_bytes(path: Path, info: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(info)


def test_a_store_says_when_its_values_changed(make: Any) -> None:
    folder = make("store")
    changes: dict[str, Any] = {
        "observations": np.flip,
        "rewards": np.flip,
        "terminated": np.logical_not,
        "episode_offsets": lambda array: np.add(array, [0, 1, 0]),
    }
    for name, change in changes.items():
        path = folder / f"{name}.npy"
        array = np.load(path)
        np.save(path, change(array))
        Trajectories.open(folder)
        with pytest.raises(DatasetError) as caught:
            Trajectories.open(folder, verify=True)
        assert (caught.value.path, caught.value.setting) == (str(path), name)
        np.save(path, array)
    header = json.loads((folder / "trajectories.json").read_text())
    (folder / "trajectories.json").write_text(
        json.dumps({key: value for key, value in header.items() if key != "crc32"})
    )
    Trajectories.open(folder, verify=True)  # as an earlier version wrote it


WRITER = """
import sys, time
from sb3_dmamba.data import Trajectories, TrajectoriesWriter
data = Trajectories.open(sys.argv[1])
fields = {"observation_space": data.observation_space, "action_space": data.action_space}
with TrajectoriesWriter(sys.argv[2], **fields) as writer:
    print("open", flush=True)
    time.sleep(100)
"""


def test_what_a_killed_writer_left_is_removed_and_no_living_ones(make: Any, tmp_path: Path) -> None:
    data, target = Trajectories.open(make("store")), tmp_path / "target"
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        data.save(target)
        assert len(list(tmp_path.glob(".target.*"))) == 1
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    data.save(target, overwrite=True)
    assert not list(tmp_path.glob(".target.*"))
    assert not list(target.glob(".*"))


def test_a_store_is_replaced_in_one_step(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never absent, so that a kill at any moment leaves the old or the new one."""
    data = Trajectories.open(make("store"))
    data.save(tmp_path / "target")

    def renamed(*_: Any) -> None:
        raise AssertionError("renamed: there was a moment without a store")

    if sys.platform == "linux":
        monkeypatch.setattr(Path, "replace", renamed)
        monkeypatch.setattr(os, "replace", renamed)
    data[:1].save(tmp_path / "target", overwrite=True)
    assert len(Trajectories.open(tmp_path / "target")) == 1


def test_a_run_resumes_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_dmamba.cli.train import _find_newest

    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelFileError) as caught:
        _find_newest(tmp_path)
    assert caught.value.path == str(tmp_path)
    for number in (9, 10, 100):
        (tmp_path / "checkpoints" / f"model_{number}_steps.zip").touch()
    (tmp_path / "checkpoints" / "model_x_steps.zip").touch()
    assert _find_newest(tmp_path).name == "model_100_steps.zip"
    assert _find_newest(tmp_path / "checkpoints").name == "model_100_steps.zip"
    fuzz.write_model(tmp_path / "model.zip")  # of 2 updates
    assert _find_newest(tmp_path).name == "model_100_steps.zip"
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()
    assert _find_newest(tmp_path).name == "model.zip"
    monkeypatch.setattr(sys, "argv", ["dmamba", "train", "--resume", str(tmp_path / "checkpoints")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


def test_safetensors_that_declare_too_much(make: Any) -> None:
    path = make("model.zip")
    for content in (struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 10**5) + fuzz.NESTED):
        fuzz.replaces(content, "policy.safetensors")(path)
        with pytest.raises(ModelFileError):
            DecisionMamba.load(path)
