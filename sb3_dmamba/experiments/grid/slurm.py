"""Cells as the array of a SLURM job: a script to read, change and submit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.grid.folder import CellFolder, write_text
from sb3_dmamba.experiments.grid.process import cell_command

__all__ = ["write_slurm_script"]

_SCRIPT = """\
#!/usr/bin/env bash
# {n_cells} cells of {name}; each goes on from its last checkpoint when it is submitted again.
# sbatch {file}      when it is through:      {command}
#SBATCH --job-name=dmamba-{name}
#SBATCH --array=1-{n_cells}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --requeue
#SBATCH --output={logs}/slurm-%A_%a.txt
{gpu}
set -euo pipefail

cells=(
{folders}
)
export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}
cd {directory}
exec {run}
"""


def write_slurm_script(
    path: Path,
    folders: Sequence[CellFolder],
    name: str,
    command: str,
    threads: int = 1,
    device: str = "auto",
) -> int:
    """Write a job array that runs the cells that are not done.

    Args:
        path: The script to write.
        folders: The cells; the nodes must see their folders.
        name: The experiment's name.
        command: What gathers the results afterwards.
        threads: CPUs of each cell.
        device: Where each computes; one that begins with ``"cuda"`` asks for a GPU.

    Returns:
        The number of cells in the array.

    Raises:
        ExperimentError: Every cell is done.
    """
    waiting = [folder.path.resolve() for folder in folders if not folder.is_done]
    if not waiting:
        raise ExperimentError("every cell is done: run the command without --slurm for the report")
    run = shlex.join(cell_command(Path("CELL"), device, threads))
    script = _SCRIPT.format(
        n_cells=len(waiting),
        name=name,
        file=shlex.quote(str(path)),
        command=command,
        threads=threads,
        logs=waiting[0].parent,
        gpu="#SBATCH --gpus=1\n" if device.startswith("cuda") else "",
        folders="\n".join(f"  {shlex.quote(str(folder))}" for folder in waiting),
        directory=shlex.quote(str(Path.cwd())),
        run=run.replace("CELL", '"${cells[$((SLURM_ARRAY_TASK_ID - 1))]}"', 1),
    )
    write_text(path, script)
    path.chmod(0o755)
    return len(waiting)
