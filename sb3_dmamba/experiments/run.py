"""One experiment from request to report: plan, run, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_dmamba.experiments.catalogue import Experiment
from sb3_dmamba.experiments.engines import Engine, explain_failures, run_cells, write_slurm_script
from sb3_dmamba.experiments.plan import Request, make_plan
from sb3_dmamba.experiments.report import write_report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Finished", "run_experiment"]


@dataclass(frozen=True)
class Finished:
    """What came of a command.

    Args:
        files: What was written.
        n_cells: Cells of the experiment.
        n_waiting: Cells that are not done: those of a SLURM script.
    """

    files: tuple[Path, ...]
    n_cells: int
    n_waiting: int = 0


def run_experiment(
    experiment: Experiment,
    request: Request,
    out: Path,
    command: str,
    engine: Engine | None = None,
    slurm: Path | None = None,
    console: Console | None = None,
) -> Finished:
    """Run whatever of an experiment is not done, and write its report.

    Args:
        experiment: The experiment.
        request: Data, seeds and what else differs from its defaults.
        out: Folder of the report.
        command: What reproduces it, for the report.
        engine: Where to run; None is one process of this machine at a time.
        slurm: Where to write a job array instead of running anything.
        console: Where to show what runs; None shows nothing.

    Raises:
        ExperimentError: Cells failed; the report of the others is written first.
        DecisionMambaError: Whatever planning raises.
    """
    engine = engine or Engine()
    plan = make_plan(experiment, request)
    folders = [planned.folder for planned in plan.cells]
    if slurm is not None:
        n_waiting = write_slurm_script(
            slurm, folders, experiment.name, command, engine.threads, engine.device
        )
        return Finished((slurm,), len(folders), n_waiting)
    failures = run_cells(folders, engine, console)
    files: list[Path] = []
    if any(folder.is_done for folder in folders):
        files = write_report(plan, out, command)
    explain_failures(failures)
    return Finished(tuple(files), len(folders))
