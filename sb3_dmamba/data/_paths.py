"""Paths that do not exist, and what the user may have meant."""

from __future__ import annotations

import os
from pathlib import Path

from sb3_dmamba.checks import near_names

__all__ = ["describe_missing_path"]

_N_NAMED = 3


def describe_missing_path(source: str | os.PathLike[str]) -> str:
    """Say that there is no such file or folder, where it was looked for, and what is like it."""
    path = Path(source).expanduser()
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    there = path.absolute()
    while not there.parent.is_dir():
        there = there.parent
    return f"there is no file or folder {str(source)!r}{where}{_describe_siblings(there, path)}"


def _describe_siblings(missing: Path, wanted: Path) -> str:
    """Name what lies beside the first part of a path that is missing, and is spelled like it."""
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:  # a folder that may not be listed
        return ""
    near = near_names(missing.name, names, n=_N_NAMED)
    if near:
        folder = wanted.parent if missing == wanted.absolute() else missing.parent
        return f" (near names there: {', '.join(str(folder / name) for name in near)})"
    return ""
