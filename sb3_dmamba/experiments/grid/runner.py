"""Running cells on an engine: processes of this machine, or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.grid.folder import CellFolder
from sb3_dmamba.experiments.grid.local import run_locally
from sb3_dmamba.experiments.grid.progress import show_progress
from sb3_dmamba.experiments.grid.ray_tasks import run_with_ray

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Engine", "explain_failures", "run_cells"]


@dataclass(frozen=True)
class Engine:
    """Where cells run.

    Args:
        kind: ``"local"`` for processes of this machine, ``"ray"`` for Ray's tasks.
        jobs: Cells at once, of ``"local"``; Ray decides by its free CPUs.
        threads: Threads of each.
        device: Where each computes.

    Raises:
        ConfigError: A count is out of its range.
    """

    kind: Literal["local", "ray"] = "local"
    jobs: int = 1
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 1))


def run_cells(
    folders: Sequence[CellFolder], engine: Engine, console: Console | None = None
) -> dict[str, str]:
    """Run every cell that is not done; one that fails leaves the others alone.

    Args:
        folders: The cells.
        engine: Where to run them.
        console: Where to show what runs; None shows nothing.

    Returns:
        What went wrong, by the label of the cell; empty where all are done.

    Raises:
        MissingDependencyError: Ray is asked for and not installed.
        KeyboardInterrupt: Ctrl-C; every cell keeps its last checkpoint.
    """
    waiting = [folder for folder in folders if not folder.is_done]
    failures: dict[str, str] = {}

    def on_end(folder: CellFolder, problem: str | None) -> None:
        if problem is not None:
            failures[folder.read_cell().label] = problem

    if not waiting:
        return failures
    with show_progress(folders, console):
        if engine.kind == "ray":
            run_with_ray(waiting, engine.threads, engine.device, on_end)
        else:
            run_locally(waiting, engine.jobs, engine.threads, engine.device, on_end)
    return failures


def explain_failures(failures: dict[str, str]) -> None:
    """Raise where cells failed.

    Raises:
        ExperimentError: Some did; names them.
    """
    if failures:
        listed = "\n".join(f"  {label}: {problem}" for label, problem in failures.items())
        raise ExperimentError(
            f"{len(failures)} cell{'s' if len(failures) > 1 else ''} failed; the others are kept, "
            f"and the same command tries these again:\n{listed}"
        )
