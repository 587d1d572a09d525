"""Checkpoints that ``dmamba train`` writes, and how a run goes on from the latest one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_dmamba.algorithm import DecisionMamba

__all__ = ["Checkpoints"]


@dataclass(frozen=True)
class Checkpoints:
    """Where a run leaves its checkpoints, and how it goes on from one.

    Args:
        folder: Where they lie.
        every: Updates between two; 0 is none.
        resumed: The model that the run goes on from, if it does.
        arguments: Of the command that goes on: what the run was given and no checkpoint knows.
        anew: More of them, where it goes on from ``resumed`` as this run did.
        n_processes: How many train together.
    """

    folder: Path
    every: int
    resumed: Path | None
    arguments: Sequence[str] = ()
    anew: Sequence[str] = ()
    n_processes: int = 1

    def make_callback(self) -> BaseCallback | None:
        """Return what saves the model every so many updates; None where that is never."""
        from stable_baselines3.common.callbacks import CheckpointCallback

        if not self.every:
            return None
        return CheckpointCallback(self.every, str(self.folder), name_prefix="model")

    def keep(self, model: DecisionMamba, first: int) -> None:
        """Save a model whose training was interrupted between two updates; say so on stderr.

        Args:
            model: The model.
            first: Updates that it had before this run.

        Raises:
            OSError: It cannot be written.
        """
        from sb3_dmamba.training.interrupts import Interrupts

        done, total = model.num_timesteps, model._total_timesteps
        if done == first:
            self.say_nothing_was_trained()
            return
        path = self._path(done)
        with Interrupts().held():
            model.save(path)
        if done >= total:
            typer.echo(f"All {done:,} updates are done: {path}", err=True)
            typer.echo(
                f"Evaluate it with: {shlex.join(['dmamba', 'evaluate', str(path)])}", err=True
            )
            return
        typer.echo(f"Kept what was trained, {done:,} of {total:,} updates: {path}", err=True)
        self._say_how_to_continue(path)

    def say_what_is_left(self, model: DecisionMamba, first: int) -> None:
        """Say on stderr that an update was cut off half-way, and where the run can go on."""
        done = model.num_timesteps
        typer.echo(
            f"The model was cut off in the middle of update {done + 1:,}, and is not kept.",
            err=True,
        )
        if self.every and done - first >= self.every:
            self._say_how_to_continue(self._path(first + (done - first) // self.every * self.every))
        elif self.resumed is not None:
            self._say_how_to_continue(self.resumed, *self.anew)

    def say_nothing_was_trained(self) -> None:
        """Say on stderr that a run was interrupted before its first update."""
        if self.resumed is None:
            typer.echo("Nothing was trained.", err=True)
            return
        typer.echo(f"Nothing was trained since {self.resumed}.", err=True)
        self._say_how_to_continue(self.resumed, *self.anew)

    def _path(self, n_updates: int) -> Path:
        """Return the name that Stable-Baselines3's callback gives a checkpoint."""
        return self.folder / f"model_{n_updates}_steps.zip"

    def _say_how_to_continue(self, path: Path, *more: str) -> None:
        program = ["dmamba"]
        if self.n_processes > 1:
            here = os.environ.get("LOCAL_WORLD_SIZE", self.n_processes)  # of those, on this machine
            program = ["torchrun", f"--nproc-per-node={here}", "-m", "sb3_dmamba"]
        command = [*program, "train", "--resume", str(path), *self.arguments, *more]
        typer.echo(f"Continue with: {shlex.join(command)}", err=True)
