"""Progress bars and warnings."""

from __future__ import annotations

import contextlib
import inspect
import warnings
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


def warn_caller(message: str) -> None:
    """Warn with a UserWarning that points at the innermost frame outside this package."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and _PACKAGE in Path(frame.f_code.co_filename).parents:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
