"""Checkpoints that ``dmamba train`` writes, and how a run goes on from the latest one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["make_checkpoint_callback", "print_latest_checkpoint"]

_FOLDER = "checkpoints"


def make_checkpoint_callback(output: Path, every: int) -> BaseCallback | None:
    """Return what saves the model every so many updates; None for 0, which is never."""
    from stable_baselines3.common.callbacks import CheckpointCallback

    return CheckpointCallback(every, str(output / _FOLDER), name_prefix="model") if every else None


def print_latest_checkpoint(output: Path) -> None:
    """Say on stderr how a run that was interrupted can go on, if it has left a checkpoint."""
    checkpoints = list((output / _FOLDER).glob("model_*_steps.zip"))
    if checkpoints:
        latest = max(checkpoints, key=lambda path: path.stat().st_mtime)
        typer.echo(f"Continue with: dmamba train --resume {latest}", err=True)
