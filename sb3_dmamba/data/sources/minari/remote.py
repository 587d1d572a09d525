"""Minari datasets that are not here yet, fetched by Minari itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from urllib.request import getproxies

from sb3_dmamba.data.download import OFFLINE_VARIABLE, is_offline
from sb3_dmamba.errors import DatasetError

__all__ = ["download_minari"]

_HOST = "huggingface.co"  # of Minari's default, hf://farama-minari
_INSTALL = 'pip install "minari[hf]" (or "minari[gcs]" where MINARI_REMOTE begins with gcp)'


def download_minari(dataset_id: str, root: Path) -> Path:
    """Download a dataset, and its namespace, from the server that ``MINARI_REMOTE`` names.

    Minari shows its own progress, on stderr. What it has half done when it fails goes away.

    Args:
        dataset_id: With its version.
        root: Minari's folder of datasets.

    Returns:
        The dataset's folder, which has ``data`` inside.

    Raises:
        DatasetError: It is not there or cannot be reached, downloads are switched off, or the
            package that reaches that server is not installed.
    """
    if is_offline():
        raise DatasetError(f"{dataset_id!r} is not downloaded: {OFFLINE_VARIABLE} is set")
    _check_reachable(dataset_id)
    import minari

    folder = root / dataset_id
    existed = folder.exists()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            minari.download_dataset(dataset_id)
    except BaseException as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        if isinstance(error, ImportError):
            reason = f"Minari's package for that is missing: {_INSTALL}"
        else:
            reason = _first_line(error)
        raise DatasetError(f"{dataset_id!r} could not be downloaded ({reason})") from error
    if not (folder / "data").is_dir():
        raise DatasetError(f"Minari downloaded {dataset_id!r} and {folder / 'data'} is not there")
    return folder


def _check_reachable(dataset_id: str) -> None:
    """Raise DatasetError where Minari's usual server has no address, which it would try for long.

    A proxy finds the address itself, and another server may need none.
    """
    if "MINARI_REMOTE" in os.environ or "HF_ENDPOINT" in os.environ or getproxies():
        return
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError as error:
        raise DatasetError(
            f"{dataset_id!r} could not be downloaded ({_HOST} cannot be reached: {error.strerror})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
