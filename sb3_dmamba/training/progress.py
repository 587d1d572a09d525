"""The progress bar of ``fit``."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["UpdateProgress"]

_REFRESH_SECONDS = 0.2  # between two looks at the loss: it may sit on a GPU, which then waits


class UpdateProgress(BaseCallback):
    """Show loss, updates per second and time left while ``fit`` runs, on stderr."""

    def _on_training_start(self) -> None:
        console = Console(stderr=True)
        total = self.locals["total_timesteps"] - self.model.num_timesteps
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} updates/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            # What is printed meanwhile goes above the bar, if it would go to the same terminal.
            redirect_stdout=console.is_jupyter or sys.stdout.isatty(),
        )
        self.progress.start()
        self.looked_at = -math.inf
        self.bar = self.progress.add_task("fit", total=total, loss="-", rate="-")

    def _on_step(self) -> bool:
        task = self.progress.tasks[0]
        if time.monotonic() - self.looked_at >= _REFRESH_SECONDS:
            self.looked_at = time.monotonic()
            loss = float(self.locals["metrics"].loss)
            rate = f"{task.speed:.1f}" if task.speed else "-"
            self.progress.update(self.bar, loss=f"{loss:.4f}", rate=rate)
        self.progress.advance(self.bar)
        return True

    def close(self) -> None:
        """Leave the terminal as it was, however the training ended."""
        if hasattr(self, "progress"):
            self.progress.stop()

    def _on_training_end(self) -> None:
        self.close()
