"""Downloading a file: resumed where it broke off, checked, and there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_dmamba.data._progress import Bar, byte_progress
from sb3_dmamba.errors import DatasetError

__all__ = ["OFFLINE_VARIABLE", "download_file", "is_offline"]

OFFLINE_VARIABLE = "SB3_DMAMBA_OFFLINE"
"""Environment variable: set to anything but 0, nothing is ever downloaded."""

_BLOCK = 1 << 18
_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 30.0
_OPENINGS = 10


def is_offline() -> bool:
    """Whether :data:`OFFLINE_VARIABLE` forbids downloads."""
    return os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")


def download_file(
    url: str,
    path: Path,
    *,
    signature: bytes = b"",
    progress_bar: bool = True,
    timeout: float = 30.0,
    attempts: int = 5,
    first_wait: float = 1.0,
) -> Path:
    """Download a file to a path, continuing what an earlier try left.

    What has arrived lies beside ``path``, in ``<name>.part``, until all of it is there; only then
    is it renamed. It is continued only if the server says that the file is still the same one.

    Args:
        url: An http or https address.
        path: Where the file goes; folders are made.
        signature: What the file must begin with (a web page that some networks send instead does
            not).
        progress_bar: Show a bar, on stderr.
        timeout: Seconds without a byte after which a connection counts as broken.
        attempts: Tries in a row that bring nothing, after which to give up.
        first_wait: Seconds before the second try; doubles with each that brings nothing.

    Returns:
        ``path``.

    Raises:
        DatasetError: The server cannot be reached or has no such file, the file is of another
            kind or of another size than announced, the disk is full, or another process is
            downloading it. Says where to put the file instead.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DatasetError(f"{url!r} is not an http or https address")
    download = _Download(url, path, timeout)
    with download.opened(), byte_progress(path.name, progress_bar) as bar:
        failures, reached, most = 0, False, download.size
        while True:
            reason, final = download.fetch_once(bar)
            if reason is None:
                break
            reached = reached or not final
            failures = 0 if download.size > most else failures + 1
            most = max(most, download.size)
            if failures >= attempts or (final and not reached):
                raise DatasetError(f"{url} could not be downloaded ({reason}): {download.advice}")
            time.sleep(min(first_wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))
        download.finish(signature)
    return path


class _Download:
    """A file on its way: what there is of it, and how to get more."""

    def __init__(self, url: str, path: Path, timeout: float) -> None:
        self.url = url
        self.path = path
        self.timeout = timeout
        self.part = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")
        self.total: int | None = None
        self._file: io.FileIO

    @property
    def size(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    @property
    def advice(self) -> str:
        kept = f"; {self.part} keeps what has arrived, and the next try goes on from there"
        return (
            f"get that file in another way and put it at {self.path}, or try again later"
            f"{kept if self.size else ''}"
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the partial file, locked; an empty one does not stay."""
        self._open()
        with self._file:
            try:
                yield
            finally:
                if self.part.exists() and not self.size:
                    self._forget()

    def _open(self) -> None:
        """Open and lock the partial file: the one that bears its name once it is locked."""
        for _ in range(_OPENINGS):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.part.open("ab", buffering=0)
            except OSError as error:
                raise DatasetError(f"{self.part} cannot be written ({error.strerror})") from error
            try:
                _lock(self._file, self.part)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._file.fileno()), self.part.stat()):
                        return
            except BaseException:
                self._file.close()
                raise
            self._file.close()  # another process has finished with it meanwhile
        raise DatasetError(f"another process is downloading {self.part}: wait for it")

    def fetch_once(self, bar: Bar) -> tuple[str | None, bool]:
        """Try to get what is missing.

        Returns:
            Why it is not all there yet, or None; and whether that was no connection at all.
        """
        try:
            with self._request() as response:
                self._begin(response)
                bar.start(self.size, self.total)
                while block := response.read(_BLOCK):
                    self._write(block)
                    bar.advance(len(block))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and self.size:
                self._restart()  # the file became shorter
            elif error.code not in _WORTH_ANOTHER_TRY:
                reason = f"the server answers {error.code}, {error.reason}"
                raise DatasetError(f"{self.url} is not there ({reason}): {self.advice}") from error
            return f"the server answers {error.code}, {error.reason}", False
        except (OSError, http.client.HTTPException) as error:
            return _describe(error), _is_no_connection(error)
        if self.total is not None and self.size != self.total:
            return f"{self.size:,} of {self.total:,} bytes arrived", False
        return None, False

    def _request(self) -> Any:
        headers = {"Accept-Encoding": "identity", "User-Agent": "sb3_dmamba"}
        validator = self._read_note()
        if self.size and validator is None:
            self._restart()  # nothing says that the file is still the same
        if self.size and validator is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": validator}
        request = urllib.request.Request(self.url, headers=headers)
        return urllib.request.urlopen(request, timeout=self.timeout)

    def _begin(self, response: Any) -> None:
        """Take in the answer's head: what it will send, and from where on."""
        if response.status == http.client.PARTIAL_CONTENT:
            given = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", given.strip())
            if match is None or int(match[1]) != self.size:
                self._restart()
                raise http.client.HTTPException(f"it sent the wrong part, {given!r}")
            self.total = int(match[2])
        else:
            self._restart()
            length = response.headers.get("Content-Length", "")
            self.total = int(length) if length.isdecimal() else None
        missing = (self.total or 0) - self.size
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise DatasetError(
                f"{self.url} needs {missing:,} bytes more and {self.part.parent} has {free:,} "
                f"left: make room, or choose another folder"
            )
        self._write_note(response.headers)

    def _write(self, block: bytes) -> None:
        try:
            while block:
                block = block[self._file.write(block) :]
        except OSError as error:
            raise DatasetError(f"{self.part} cannot be written ({error.strerror})") from error

    def finish(self, signature: bytes) -> None:
        """Check the whole file and put it in its place.

        Raises:
            DatasetError: It does not begin with ``signature``; it is thrown away.
        """
        os.fsync(self._file.fileno())
        with self.part.open("rb") as file:
            start = file.read(len(signature))
        if start != signature:
            self._forget()
            raise DatasetError(
                f"{self.url} sent something else than the file, beginning with {start!r} (a "
                f"login page of the network?): get that file in another way and put it at "
                f"{self.path}"
            )
        self.part.replace(self.path)
        self.note.unlink(missing_ok=True)

    def _restart(self) -> None:
        self._file.truncate(0)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _read_note(self) -> str | None:
        """Return what identifies the file that the partial one is of; None if nothing does."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            validator = note["validator"] if note["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return validator if isinstance(validator, str) else None

    def _write_note(self, headers: Any) -> None:
        tag = headers.get("ETag", "")
        strong = tag if tag and not tag.startswith("W/") else None  # a range needs a strong one
        note = {"url": self.url, "validator": strong or headers.get("Last-Modified")}
        self.note.write_text(json.dumps(note), encoding="utf-8")


def _is_no_connection(error: BaseException) -> bool:
    """Whether it is no use to try again at once: no name, no route, nobody there, no trust."""
    reason = getattr(error, "reason", error)
    refused = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
    unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH)
    return isinstance(reason, refused) or getattr(reason, "errno", None) in unreachable


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__


def _lock(file: io.FileIO, path: Path) -> None:
    """Keep other processes from writing the same file, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"another process is downloading {path}: wait for it") from None
    except OSError:  # a file system without locks
        return
