"""Progress bars of what takes long with data, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

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

__all__ = ["Bar", "byte_progress", "count_progress"]


@dataclass(frozen=True)
class Bar:
    """A progress bar, which appears when it starts; one that is hidden takes the same calls."""

    progress: Progress
    task: TaskID

    def start(self, completed: int, total: int | None) -> None:
        """Say how much there is, and how much there will be where that is known."""
        self.progress.update(self.task, completed=completed, total=total, visible=True)

    def advance(self, amount: int) -> None:
        """Say how much has come."""
        self.progress.advance(self.task, amount)


def byte_progress(name: str, shown: bool) -> contextlib.AbstractContextManager[Bar]:
    """Show how many bytes have come, how fast, and the time left."""
    return _show(name, shown, DownloadColumn(binary_units=True), TransferSpeedColumn())


def count_progress(name: str, unit: str, shown: bool) -> contextlib.AbstractContextManager[Bar]:
    """Show how many of something are done, and the time left."""
    return _show(name, shown, MofNCompleteColumn(), TextColumn(unit))


@contextlib.contextmanager
def _show(name: str, shown: bool, *columns: ProgressColumn) -> Iterator[Bar]:
    every = (TextColumn("[bold]{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*every, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(progress, progress.add_task(name, total=None, visible=False))
