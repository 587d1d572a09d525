"""Downloads against a server on loopback that misbehaves as real ones do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sb3_dmamba.data import download as download_module
from sb3_dmamba.data.download import download_file
from sb3_dmamba.errors import DatasetError
from tests.serving import CONTENT, Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


def download(server: Server, path: Path, **options: Any) -> Path:
    return download_file(server.url, path, **{"progress_bar": False, "first_wait": 0.0, **options})


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "data.bin"
    assert download(server, path) == path
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == ["data.bin"]
    assert len(server.requests) == 1


def test_a_connection_that_breaks_half_way_is_resumed(server: Server, tmp_path: Path) -> None:
    server.drop_after = [500_000, 77, 0]
    path = download(server, tmp_path / "data.bin")
    assert path.read_bytes() == CONTENT
    ranges = [request.get("Range") for request in server.requests]
    assert ranges == [None, "bytes=500000-", "bytes=500077-", "bytes=500077-"]
    assert left(tmp_path) == ["data.bin"]


def test_a_download_given_up_is_resumed_the_next_time(server: Server, tmp_path: Path) -> None:
    server.drop_after = [300_000, 0, 0]
    path = tmp_path / "data.bin"
    message = rf"300,000 of 1,048,576 bytes arrived.*put it at {path}.*data.bin.part keeps"
    with pytest.raises(DatasetError, match=message):
        download(server, path, attempts=2)
    assert left(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    assert not path.exists()
    server.requests.clear()
    assert download(server, path).read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == ["bytes=300000-"]


def test_another_file_at_the_address_is_not_glued_on(server: Server, tmp_path: Path) -> None:
    server.drop_after = [300_000, 0]
    with pytest.raises(DatasetError):
        download(server, tmp_path / "data.bin", attempts=1)
    server.content, server.tag, server.drop_after = CONTENT[::-1], '"two"', []
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("note", [None, "{", '{"url": "http://other", "validator": "x"}', "[]"])
def test_remains_of_unknown_origin_are_not_continued(
    server: Server, tmp_path: Path, note: str | None
) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"something else")
    if note is not None:
        (tmp_path / "data.bin.part.json").write_text(note)
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_an_identity_it_starts_again(
    server: Server, tmp_path: Path, tag: str | None
) -> None:
    server.tag, server.drop_after = tag, [500_000]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    assert all("Range" not in request for request in server.requests)


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drop_after = False, [500_000]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    server.drop_after = [400_000] * 9  # never gets any further: it ends
    with pytest.raises(DatasetError, match="400,000 of 1,048,576 bytes arrived"):
        download(server, tmp_path / "again.bin", attempts=3)
    assert len(server.requests) == 2 + 4


def test_a_wrong_range_is_not_glued_on(server: Server, tmp_path: Path) -> None:
    server.wrong_range, server.drop_after = True, [500_000]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_file_that_became_shorter(server: Server, tmp_path: Path) -> None:
    server.drop_after = [500_000, 0]
    with pytest.raises(DatasetError):
        download(server, tmp_path / "data.bin", attempts=1)
    server.content, server.drop_after = CONTENT[:1000], []
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT[:1000]


def test_a_server_that_falls_silent(server: Server, tmp_path: Path) -> None:
    server.stalls, server.drop_after = True, [500_000]
    assert download(server, tmp_path / "data.bin", timeout=0.3).read_bytes() == CONTENT


def test_a_length_that_is_not_announced(server: Server, tmp_path: Path) -> None:
    server.announces = False
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    server.statuses = [503] * 9
    with pytest.raises(DatasetError, match=r"the server answers 503.*get that file in another way"):
        download(server, tmp_path / "more.bin", attempts=3)
    assert left(tmp_path) == ["data.bin"]


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DatasetError, match=rf"{server.url} is not there .*404.*put it at"):
        download(server, tmp_path / "data.bin")
    assert len(server.requests) == 1
    assert left(tmp_path) == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as closed:
        url = closed.url
    path = tmp_path / "data.bin"
    with pytest.raises(DatasetError, match=rf"{url} could not .*refused.*put it at {path}"):
        download_file(url, path, progress_bar=False, first_wait=99)  # and does not wait
    assert left(tmp_path) == []


def test_a_page_instead_of_the_file(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>Please log in"
    with pytest.raises(DatasetError, match=r"something else.*b'<htm'.*put it at"):
        download(server, tmp_path / "data.bin", signature=b"\x89HDF")
    assert left(tmp_path) == []


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match=r"needs 1,048,576 bytes more and .* has 1 left"):
        download(server, tmp_path / "data.bin")
    assert left(tmp_path) == []


def test_a_folder_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"data.bin.part cannot be written"):
        download(server, tmp_path / "file" / "data.bin")


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="locks are POSIX's")
    with (tmp_path / "data.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another process is downloading"):
            download(server, tmp_path / "data.bin")
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT


def test_an_interruption_keeps_what_has_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    server.drop_after = [500_000]
    monkeypatch.setattr("time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:500_000]
    note = json.loads((tmp_path / "data.bin.part.json").read_text())
    assert note == {"url": server.url, "validator": '"one"'}


def test_other_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not an http or https address"):
        download_file("file:///etc/passwd", tmp_path / "data.bin")


def test_the_bar_goes_to_stderr(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(server, tmp_path / "data.bin", progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "data.bin" in captured.err
    assert "1.0/1.0 MiB" in captured.err


def test_another_process_that_finishes_before_the_lock(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = download_module._lock, 0

    def lock_late(file: Any, part: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # between opening and locking
            part.write_bytes(CONTENT)
            part.replace(tmp_path / "data.bin")
        lock(file, part)

    monkeypatch.setattr(download_module, "_lock", lock_late)
    assert download(server, tmp_path / "data.bin").read_bytes() == CONTENT
    assert calls == 2
    assert left(tmp_path) == ["data.bin"]
