"""What a grid is doing, for people: read from the cells' folders, so every engine shows alike."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sb3_dmamba.experiments.grid.folder import CellFolder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["show_progress"]

_LOOK_SECONDS = 0.5
_STALE_SECONDS = 600.0  # a progress file that a crash left


@contextlib.contextmanager
def show_progress(folders: Sequence[CellFolder], console: Console | None) -> Iterator[None]:
    """Show how many cells are done, and the running ones' updates and time left.

    Args:
        folders: The cells.
        console: Where; None shows nothing.
    """
    if console is None:
        yield
        return
    display = _Display(folders, console)
    thread = threading.Thread(target=display.keep_looking, daemon=True)
    with display.progress:
        thread.start()
        try:
            yield
        finally:
            display.ended.set()
            thread.join()
            display.look()


class _Display:
    def __init__(self, folders: Sequence[CellFolder], console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.folders = folders
        self.labels = {folder.path: folder.read_cell().label for folder in folders}
        self.ended = threading.Event()
        self.progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.begun = time.time()
        self.all = self.progress.add_task("[bold]cells", total=len(folders), phase="")
        self.rows: dict[CellFolder, TaskID] = {}

    def keep_looking(self) -> None:
        while not self.ended.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Bring the display up to what the folders say."""
        done = 0
        for folder in self.folders:
            if folder.is_done:
                done += 1
                if folder in self.rows:
                    self.progress.remove_task(self.rows.pop(folder))
                continue
            state = folder.read_json(folder.progress, None)
            if state is None or state["time"] < self.begun - _STALE_SECONDS:
                continue
            if folder not in self.rows:
                self.rows[folder] = self.progress.add_task(
                    self.labels[folder.path],
                    total=state["total"],
                    completed=state["updates"],
                    phase=state["phase"],
                )
            self.progress.update(
                self.rows[folder], completed=state["updates"], phase=state["phase"]
            )
        self.progress.update(self.all, completed=done)
