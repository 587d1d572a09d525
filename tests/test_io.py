"""Atomic writes, Minari's folder, and what is said of a missing path."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sb3_dmamba.io import describe_missing_path, minari_folder, write_atomically

OLD, NEW = b"old", b"new content"


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW
    assert [each.name for each in path.parent.iterdir()] == ["file.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
def test_a_write_that_fails_leaves_the_old_file(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            write_atomically(path, NEW)
    assert path.read_bytes() == OLD
    assert [each.name for each in tmp_path.iterdir()] == ["file.bin"]
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


SLOW_WRITE = """
import os, sys, time
from pathlib import Path
from sb3_dmamba import io

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
io.os.fdopen = lambda descriptor, mode: Slow(fdopen(descriptor, mode))
io.write_atomically(Path(sys.argv[1]), b"new content")
"""


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    command = [sys.executable, "-c", SLOW_WRITE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert path.read_bytes() == OLD
    leftovers = [each.name for each in tmp_path.iterdir() if each != path]
    assert len(leftovers) == 1  # nobody was left to remove it
    assert leftovers[0].endswith(".partial")


def test_a_missing_path_names_similar_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "hopper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert f"in {tmp_path} (near names there: runs/hopper)" in describe_missing_path("runs/hoper")
    absolute = describe_missing_path(tmp_path / "rums" / "hopper")
    assert absolute.endswith(f"(near names there: {tmp_path / 'runs'})")
    assert "near" not in describe_missing_path("something else")


def test_minaris_folder_is_where_minari_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari.storage.datasets_root_dir")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    assert minari_folder() == tmp_path / "home" / ".minari" / "datasets"
    assert minari_folder() == minari.get_dataset_path()
    for given in (str(tmp_path / "given"), "~", "given"):  # as it is: Minari expands nothing
        monkeypatch.setenv("MINARI_DATASETS_PATH", given)
        assert minari_folder() == Path(given) == minari.get_dataset_path()
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    assert minari_folder() == tmp_path / "home" / ".minari" / "datasets"
