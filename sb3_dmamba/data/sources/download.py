"""Download a file with a progress bar, atomically."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_dmamba.console import Bar, byte_progress
from sb3_dmamba.errors import DatasetError

if TYPE_CHECKING:
    from requests import Response


OFFLINE_VARIABLE = "SB3_DMAMBA_OFFLINE"
"""Environment variable that switches downloads off, unless it is empty or 0."""

_BLOCK = 1 << 18
_TEMPORARY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


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
) -> Path:
    """Download a file that begins with ``signature`` to a path, unless it is there.

    A temporary file beside it is renamed when it is complete. ``timeout`` is in seconds without a
    byte. Raises DatasetError, which says where to put the file instead.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DatasetError(f"{url!r} is not an http or https address", setting="url", value=url)
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # the bar shows progress
    with byte_progress(path.name, progress_bar) as bar:
        client = pooch.create(
            path=path.parent,
            base_url="",
            registry={path.name: None},
            urls={path.name: url},
            retry_if_failed=attempts - 1,
        )
        try:
            client.fetch(path.name, downloader=_Downloader(signature, bar, timeout))
        except (_PermanentError, requests.RequestException, ValueError) as error:
            problem = f"{url} could not be downloaded ({error}): put that file at {path}"
            raise DatasetError(problem, path=path, setting="url", value=url) from error
        except OSError as error:
            problem = f"{path} cannot be written ({error.strerror or error})"
            raise DatasetError(problem, path=path) from error
    return path


class _PermanentError(Exception):
    """A failure that another attempt would not change."""


class _Downloader:
    """One attempt, as pooch calls it, and the progress bar that pooch updates."""

    def __init__(self, signature: bytes, bar: Bar, timeout: float) -> None:
        self._signature, self._bar, self._timeout = signature, bar, timeout
        self._is_reached = False
        self.total = 0  # pooch sets it: the announced size, or 0
        self.update = bar.advance

    def __call__(self, url: str, output_file: str, client: Any) -> None:
        import pooch
        import requests
        from urllib3.exceptions import NewConnectionError

        path = Path(output_file)
        path.unlink()  # only its owner could read it; it is made again with usual permissions
        self.reset()
        fetch = pooch.HTTPDownloader(
            progressbar=self,
            chunk_size=_BLOCK,
            timeout=self._timeout,
            headers={"Accept-Encoding": "identity", "User-Agent": "sb3_dmamba"},
            hooks={"response": self._check_response},
        )
        try:
            fetch(url, output_file, client)
        except requests.ConnectionError as error:
            reason = getattr(error.args[0] if error.args else None, "reason", None)
            is_untrusted = isinstance(error, requests.exceptions.SSLError)
            if not self._is_reached and (is_untrusted or isinstance(reason, NewConnectionError)):
                raise _PermanentError(reason or error) from error
            raise
        size = path.stat().st_size
        if self.total not in (0, size):
            raise ValueError(f"{size:,} of {self.total:,} bytes arrived")
        with path.open("rb") as file:
            start = file.read(len(self._signature))
        if start != self._signature:
            raise _PermanentError(f"the server sent something else, beginning with {start!r}")

    def _check_response(self, response: Response, **_: Any) -> None:
        self._is_reached = True
        status = response.status_code
        if status >= 400 and status not in _TEMPORARY_STATUSES:
            response.close()
            raise _PermanentError(f"the server answers {status}, {response.reason}")

    def reset(self) -> None:
        """Begin again: with an attempt, and before pooch adds the exact size."""
        self._bar.start(0, self.total or None)

    def close(self) -> None:
        """Do nothing: :func:`download_file` closes the bar."""
