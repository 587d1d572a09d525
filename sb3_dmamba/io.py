"""Atomic writes, missing paths, Minari's folder, progress bars and warnings."""

from __future__ import annotations

import contextlib
import inspect
import os
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sb3_dmamba.checks import near_names


def write_atomically(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; on failure the old file is unchanged."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=".partial", dir=target.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files: give this one the permissions of an ordinary new file.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_members(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where a zip's members are compressed, overlap, or share a name.

    Without any of these, reading them all takes no more memory than the file has bytes.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it has compressed members, which could grow to any size")
    names = {member.filename for member in members}
    too_long = sum(member.file_size for member in members) > archive.start_dir
    if too_long or len(names) < len(members):
        raise ValueError("its members overlap")


def minari_folder() -> Path:
    """Return Minari's dataset folder, which may not exist yet.

    It is ``MINARI_DATASETS_PATH``, where Minari expands no ``~``, or ~/.minari/datasets.

    Source: minari 0.5, ``storage/datasets_root_dir.py``.
    """
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def describe_missing_path(source: str | os.PathLike[str]) -> str:
    """Return a message about a missing file or folder, with similar names beside it."""
    path = Path(source).expanduser()
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    missing = path.absolute()  # up to the first part that does not exist
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        near = near_names(missing.name, [entry.name for entry in missing.parent.iterdir()], n=3)
    except OSError:  # a folder that may not be listed
        near = []
    folder = path.parent if missing == path.absolute() else missing.parent
    named = ", ".join(str(folder / name) for name in near)
    hint = f" (near names there: {named})" if near else ""
    return f"there is no file or folder {str(source)!r}{where}{hint}"


@dataclass(frozen=True)
class Bar:
    """A progress bar, invisible until :meth:`start`; a disabled one accepts the same calls."""

    progress: Progress
    task: TaskID

    def start(self, completed: int, total: int | None) -> None:
        """Show the bar at ``completed`` of ``total``; None is an unknown total."""
        self.progress.update(self.task, completed=completed, total=total, visible=True)

    def advance(self, amount: int) -> None:
        """Add to the completed amount."""
        self.progress.advance(self.task, amount)


def byte_progress(name: str, shown: bool) -> contextlib.AbstractContextManager[Bar]:
    """Return a progress bar of bytes, with the rate and the remaining time."""
    return _show(name, shown, DownloadColumn(binary_units=True), TransferSpeedColumn())


def count_progress(name: str, unit: str, shown: bool) -> contextlib.AbstractContextManager[Bar]:
    """Return a progress bar of counted items, with the remaining time."""
    return _show(name, shown, MofNCompleteColumn(), TextColumn(unit))


@contextlib.contextmanager
def _show(name: str, shown: bool, *columns: ProgressColumn) -> Iterator[Bar]:
    every = (TextColumn("[bold]{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*every, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(progress, progress.add_task(name, total=None, visible=False))


_PACKAGE = Path(__file__).parent
_LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}


def warn_caller(message: str) -> None:
    """Warn with a UserWarning that points at the line of the user's that led here.

    That is the innermost frame outside this package, the standard library and installed packages.
    """
    frame, level, outside = inspect.currentframe(), 1, 0
    while frame is not None:
        folders = Path(frame.f_code.co_filename).parents
        if _PACKAGE not in folders:
            outside = outside or level  # of a library, where nothing else called it
            if _LIBRARIES.isdisjoint(folders):
                outside = level
                break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=outside)
