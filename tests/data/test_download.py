"""Downloads against a server on loopback that misbehaves as real ones do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sb3_dmamba.data.sources.download import download_file
from sb3_dmamba.errors import DatasetError
from tests.serving import CONTENT, Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving() as server:
        yield server


def download(server: Server, path: Path, **options: Any) -> Path:
    return download_file(server.url, path, **{"progress_bar": False, **options})


def refused(server: Server, path: Path, **options: Any) -> None:
    with pytest.raises(DatasetError) as caught:
        download(server, path, **options)
    assert (caught.value.value, caught.value.path) == (server.url, str(path))
    del caught  # a cycle with this frame, which would keep sockets open


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "folder" / "data.bin"
    assert download(server, path) == path
    assert path.read_bytes() == CONTENT
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert left(path.parent) == ["data.bin"]
    assert len(server.requests) == 1
    assert capsys.readouterr() == ("", "")


def test_a_connection_that_breaks_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.drop_after = [500_000, 77, 0]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    assert left(tmp_path) == ["data.bin"]
    server.requests.clear()
    server.drop_after = [400_000] * 9
    refused(server, tmp_path / "again.bin", attempts=3)
    assert len(server.requests) == 3
    assert left(tmp_path) == ["data.bin"]


def test_silence_and_lengths_that_are_not_announced(server: Server, tmp_path: Path) -> None:
    server.stalls, server.drop_after = True, [500_000]
    assert download(server, tmp_path / "a.bin", timeout=0.3).read_bytes() == CONTENT
    server.announces = False
    assert download(server, tmp_path / "b.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    server.statuses = [503] * 9
    refused(server, tmp_path / "more.bin", attempts=3)
    assert left(tmp_path) == ["data.bin"]


def test_what_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    refused(server, tmp_path / "data.bin")
    assert len(server.requests) == 1
    server.content = b"<html>Please log in"
    refused(server, tmp_path / "data.bin", signature=b"\x89HDF")
    assert len(server.requests) == 2
    with pytest.raises(DatasetError, match="file:///etc/passwd"):
        download_file("file:///etc/passwd", tmp_path / "data.bin")
    assert left(tmp_path) == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seconds: float) -> None:
        raise AssertionError("waited for another attempt")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", fail)
    with Server() as closed:
        url = closed.url
    with pytest.raises(DatasetError, match="refused"):
        download_file(url, tmp_path / "data.bin", progress_bar=False)
    assert left(tmp_path) == []


def test_a_full_disk_or_an_interruption_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise errors.pop()

    errors = [KeyboardInterrupt(), OSError(28, "No space left on device")]
    monkeypatch.setattr("sb3_dmamba.console.Bar.advance", fail)
    for kind in (DatasetError, KeyboardInterrupt):
        with pytest.raises(kind):
            download(server, tmp_path / "data.bin")
    assert len(server.requests) == 2
    assert left(tmp_path) == []
