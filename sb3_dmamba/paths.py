"""Files and folders: atomic writes, Minari's folder, missing paths."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sb3_dmamba.checks import near_names


def write_atomically(target: Path, content: bytes) -> None:
    """Write a file; whatever goes wrong, one that is there already stays whole.

    Args:
        target: Where to write; folders on the way are made.
        content: All of it.

    Raises:
        OSError: The place cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=".partial", dir=target.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are private; this one has the permissions any new file has.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def minari_folder() -> Path:
    """Return the folder that Minari downloads to and lists; it need not be there yet.

    ``MINARI_DATASETS_PATH`` where it is set, taken as it is (Minari expands no ``~``), else
    ~/.minari/datasets.

    Source: minari 0.5, ``storage/datasets_root_dir.py``.
    """
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


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
