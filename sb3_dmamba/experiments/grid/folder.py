"""A cell's folder: what is in it, written so that a crash leaves nothing half."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from sb3_dmamba.atomic import write_atomically
from sb3_dmamba.errors import ConfigError, ExperimentError
from sb3_dmamba.experiments.grid.cell import Cell

__all__ = ["CellFolder", "CellResult", "Evaluation", "write_json", "write_text"]

_WAIT_SECONDS = 1.0  # between two looks at whether waiting for another process still makes sense


def write_text(path: Path, text: str) -> None:
    """Write a text file, which is there whole or not at all."""
    write_atomically(path, text.encode("utf-8"))


def write_json(path: Path, document: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(document, indent=indent, allow_nan=False) + "\n")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of one target, at one point of a training.

    Args:
        update: Updates that the weights had had.
        memory: How it remembered while acting.
        target_return: The return asked for.
        returns: The returns achieved, (n_episodes,) float64.
        lengths: Steps of the episodes, (n_episodes,) int64.
    """

    update: int
    memory: str
    target_return: float
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {**vars(self), "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Evaluation:
        """Build one from what :meth:`to_dict` returned."""
        returns = np.array(fields["returns"], dtype=np.float64)
        lengths = np.array(fields["lengths"], dtype=np.int64)
        return cls(**{**fields, "returns": returns, "lengths": lengths})


@dataclass(frozen=True, eq=False)
class CellResult:
    """All that tables are made of; nothing in it depends on the machine's speed or the time.

    Args:
        losses: Mean training loss since the entry before, by the update it ends with.
        evaluations: In the order of update, memory and target.
        n_parameters: Of the model.
    """

    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[Evaluation, ...]
    n_parameters: int

    @cached_property
    def last_update(self) -> int:
        """Updates of the last weights."""
        return max(evaluation.update for evaluation in self.evaluations)


class CellFolder:
    """The folder of one cell.

    Args:
        path: The folder; its name is the cell's key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = path / "cell.json"
        self.model = path / "model.zip"
        self.losses = path / "losses.json"
        self.evaluations = path / "evaluations"
        self.result = path / "result.json"
        self.progress = path / "progress.json"
        self.machine = path / "machine.json"
        self.log = path / "log.txt"

    @classmethod
    def prepare(cls, cells: Path, cell: Cell) -> CellFolder:
        """Return the folder of a cell, with its description in it.

        Raises:
            ExperimentError: It holds a training under defaults that have changed since.
        """
        folder = cls(cells / cell.key)
        if folder.description.exists():
            found = folder.read_cell()
            changed = {
                name: (old, cell.config.to_dict()[name])
                for name, old in found.config.to_dict().items()
                if old != cell.config.to_dict()[name]
            }
            if changed:
                raise ExperimentError(
                    f"{folder.path} was trained when these settings had other defaults (before, "
                    f"now): {changed}; set them with --set, or name another folder with --cells"
                )
        # Data that moved is still the same data: the description says where it lies now.
        write_json(folder.description, cell.to_dict(), indent=1)
        return folder

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result.exists()

    def read_cell(self) -> Cell:
        """Read what the cell is.

        Raises:
            ExperimentError: There is no cell, or it cannot be read.
        """
        try:
            return Cell.from_dict(json.loads(self.description.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ExperimentError(f"there is no cell at {self.path}") from error
        except (json.JSONDecodeError, ConfigError) as error:
            raise ExperimentError(f"{self.description} cannot be read: {error}") from error

    def read_result(self) -> CellResult:
        """Read the result of a cell that is done.

        Raises:
            ExperimentError: It is not, or the file was changed.
        """
        try:
            fields = json.loads(self.result.read_text(encoding="utf-8"))
            return CellResult(
                losses=tuple((int(update), float(loss)) for update, loss in fields["losses"]),
                evaluations=tuple(map(Evaluation.from_dict, fields["evaluations"])),
                n_parameters=int(fields["n_parameters"]),
            )
        except FileNotFoundError as error:
            raise ExperimentError(f"the cell {self.path} is not done") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ExperimentError(
                f"{self.result} cannot be read ({error!r}): delete it, and the evaluations are "
                "gathered again"
            ) from error

    def read_json(self, path: Path, default: Any) -> Any:
        """Read a JSON file of the folder; what is absent or damaged is the default."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return default

    @contextlib.contextmanager
    def locked(self, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait until no other process works on the cell, then keep others away.

        The operating system gives the lock back when a process ends, however it ends.

        Args:
            while_waiting: Called every now and then while another process has the lock; what it
                raises ends the wait.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        while True:
            try:
                lock.acquire(timeout=_WAIT_SECONDS)
                break
            except Timeout:
                if while_waiting is not None:
                    while_waiting()
        try:
            yield
        finally:
            lock.release()
