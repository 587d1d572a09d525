from __future__ import annotations

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save as dump_tensors

from sb3_dmamba import model_file as checkpoints
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ModelFileError
from sb3_dmamba.model_file import FORMAT_VERSION, ModelFile
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.training.updater import make_optimizer, optimizer_from_tensors, optimizer_to_tensors

FILE = ModelFile(
    {"name": "small", "list": [1, 2.5, None]},
    {"one": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}, "none": {}},
)


def assert_is_the_file(read: ModelFile) -> None:
    assert read.header == {"format_version": FORMAT_VERSION, **FILE.header}
    assert read.tensors.keys() == {"one", "none"}
    assert read.tensors["none"] == {}
    for name, tensor in FILE.tensors["one"].items():
        assert torch.equal(read.tensors["one"][name], tensor)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.zip"
    FILE.write(path)
    assert_is_the_file(ModelFile.read(path))
    assert_is_the_file(ModelFile.read(str(path)))
    assert_is_the_file(ModelFile.read(path.with_suffix("")))
    assert [each.name for each in path.parent.iterdir()] == ["model.zip"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_open_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    FILE.write(buffer)
    assert_is_the_file(ModelFile.read(buffer))
    with (tmp_path / "open.zip").open("wb") as file:
        FILE.write(file)
    with (tmp_path / "open.zip").open("rb") as file:
        assert_is_the_file(ModelFile.read(file))


def test_nothing_is_stored_but_json_and_safetensors() -> None:
    buffer = io.BytesIO()
    ModelFile({}, {"one": {"a": torch.zeros(2).t()}}).write(buffer)
    with zipfile.ZipFile(buffer) as archive:
        assert sorted(archive.namelist()) == ["data", "model.json", "one.safetensors"]


# --- Damage ----------------------------------------------------------------------------------


def as_bytes() -> bytes:
    buffer = io.BytesIO()
    FILE.write(buffer)
    return buffer.getvalue()


def test_every_truncation_is_noticed() -> None:
    whole = as_bytes()
    for length in range(len(whole)):
        with pytest.raises(ModelFileError):
            ModelFile.read(io.BytesIO(whole[:length]))


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed_or_harmless(mask: int) -> None:
    whole = as_bytes()
    n_noticed = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= mask
        try:
            read = ModelFile.read(io.BytesIO(bytes(damaged)))
        except ModelFileError:
            n_noticed += 1
        else:  # a date, a permission, a comment, or the name of a group
            if read.tensors.keys() == FILE.tensors.keys():
                assert_is_the_file(read)
    assert n_noticed > 0.5 * len(whole)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_compressed_file_is_none_of_ours(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with (
        zipfile.ZipFile(io.BytesIO(as_bytes())) as source,
        zipfile.ZipFile(path, "w", compression) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ModelFileError, match="compressed"):
        ModelFile.read(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(bytes(damaged))
        with pytest.raises(ModelFileError):
            ModelFile.read(path)


def make_zip(members: dict[str, bytes | str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer


GOOD = json.dumps({"format_version": FORMAT_VERSION})


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"data": "{}"},
        {"model.json": ""},
        {"model.json": "{"},
        {"model.json": b"\xff\xfe\x00"},
        {"model.json": "[" * 100_000},
        {"model.json": "[]"},
        {"model.json": "null"},
        {"model.json": GOOD, "one.safetensors": b""},
        {"model.json": GOOD, "one.safetensors": b"\x00" * 8},
        {"model.json": GOOD, "one.safetensors": b"\xff" * 64},
        {"model.json": GOOD, "one.safetensors": dump_tensors({"a": torch.zeros(9)})[:-4]},
        {"model.json": GOOD, "one.safetensors": b"\x02" + b"\x00" * 7 + b"[]"},
    ],
)
def test_other_content(members: dict[str, bytes | str]) -> None:
    with pytest.raises(ModelFileError):
        ModelFile.read(make_zip(members))


@pytest.mark.parametrize("version", [0, -1, FORMAT_VERSION + 1, "1", 1.0, None, True, [1]])
def test_other_versions(version: Any) -> None:
    text = json.dumps({"format_version": version})
    with pytest.raises(ModelFileError, match="format version"):
        ModelFile.read(make_zip({"model.json": text}))


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x05\x06" + b"\x00" * 18])
def test_no_model_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.zip"):
        ModelFile.read(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model file at .*absent \(nor .*absent\.zip\)"):
        ModelFile.read(tmp_path / "absent")
    with pytest.raises(ModelFileError, match=r"no model file at .*absent\.zip$"):
        ModelFile.read(tmp_path / "absent.zip")
    FILE.write(tmp_path / "other.zip")
    for path in (tmp_path, tmp_path / "absent.zip"):
        with pytest.raises(ModelFileError, match=r"no model file at .*: try .*other\.zip$"):
            ModelFile.read(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (17,)


def test_a_pickle_inside_is_not_executed() -> None:
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb()}, buffer)
    bomb = buffer.getvalue()
    for name in ("one.safetensors", "model.json", "policy.pth", "data.pkl"):
        try:
            ModelFile.read(make_zip({"model.json": GOOD, name: bomb}))
        except ModelFileError:
            assert name in ("one.safetensors", "model.json")
    with pytest.raises(ModelFileError):
        ModelFile.read(io.BytesIO(bomb))  # torch's own files are zips, too


# --- A write that fails ------------------------------------------------------------------------


def fail_with(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
def test_a_write_that_fails_leaves_the_old_file(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.zip"
    FILE.write(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail_with(error))
        with pytest.raises(type(error)):
            ModelFile({"name": "new"}).write(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.zip"]
    ModelFile({"name": "new"}).write(path)
    assert ModelFile.read(path).header["name"] == "new"


def test_a_header_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    FILE.write(path)
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            ModelFile({"name": bad}).write(path)
    assert_is_the_file(ModelFile.read(path))
    assert [each.name for each in tmp_path.iterdir()] == ["model.zip"]


SLOW_WRITE = """
import os, sys, time
from sb3_dmamba import paths
from sb3_dmamba.model_file import ModelFile

class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        print("half", flush=True)
        time.sleep(60)

fdopen = os.fdopen
paths.os.fdopen = lambda descriptor, mode: Slow(fdopen(descriptor, mode))
ModelFile({"name": "new"}).write(sys.argv[1])
"""


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    FILE.write(path)
    command = [sys.executable, "-c", SLOW_WRITE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert_is_the_file(ModelFile.read(path))
    leftovers = [each.name for each in tmp_path.iterdir() if each != path]
    assert len(leftovers) == 1  # nobody was left to remove it
    assert leftovers[0].endswith(".partial")
    ModelFile({"name": "newer"}).write(path)
    assert ModelFile.read(tmp_path / "model").header["name"] == "newer"


# --- The optimiser -----------------------------------------------------------------------------

CONFIG = DecisionMambaConfig(hidden_size=8, n_layers=1, d_state=2)


def make_stepped_optimizer(seed: int = 0) -> torch.optim.AdamW:
    policy = DecisionMambaPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), CONFIG)
    optimizer = make_optimizer(policy, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return optimizer


def test_optimiser_round_trip() -> None:
    tensors = optimizer_to_tensors(make_stepped_optimizer(0))
    assert any(tensor.any() for tensor in tensors.values())
    other = make_stepped_optimizer(1)
    optimizer_from_tensors(other, tensors)
    back = optimizer_to_tensors(other)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"999.exp_avg": torch.zeros(1)}, "no parameter"),
        ({"exp_avg": torch.zeros(1)}, "no parameter"),
        ({"0.momentum": torch.zeros(1)}, "no parameter"),
        ({"-1.exp_avg": torch.zeros(1)}, "no parameter"),
        ({"²".join(("", ".exp_avg")): torch.zeros(1)}, "no parameter"),
        ({"0.exp_avg": torch.zeros(3)}, "shape"),
        ({"0.step": torch.zeros(3)}, "shape"),
        ({"0.step": torch.tensor(1)}, "int64"),
        ({"0.exp_avg_sq": None}, "lacks exp_avg_sq"),
        ({"0.step": None}, "lacks step"),
    ],
)
def test_an_optimiser_state_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    optimizer = make_stepped_optimizer()
    before = {k: v.clone() for k, v in optimizer_to_tensors(optimizer).items()}
    changed = {**before, **change}
    with pytest.raises(ModelFileError, match=message):
        optimizer_from_tensors(optimizer, {k: v for k, v in changed.items() if v is not None})
    after = optimizer_to_tensors(optimizer)
    assert all(torch.equal(after[name], before[name]) for name in before)


# --- Spaces ------------------------------------------------------------------------------------


def test_the_module_unpickles_nothing() -> None:
    source = Path(checkpoints.__file__).read_text(encoding="utf-8")
    assert "pickle" not in source.split('"""', 2)[2]
    assert "torch.load" not in source
