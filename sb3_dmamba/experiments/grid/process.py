"""One cell as one process: what every engine starts, and how an end is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sb3_dmamba.experiments.grid.folder import CellFolder

__all__ = ["cell_command", "cell_environment", "describe_failure", "run_cell_process"]

_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_LAST_LINES = 3


def cell_command(path: Path, device: str, threads: int) -> list[str]:
    """Return the command that runs one cell."""
    command = [sys.executable, "-m", "sb3_dmamba.experiments.grid", str(path)]
    return [*command, "--device", device, "--threads", str(threads)]


def cell_environment(threads: int) -> dict[str, str]:
    """Return this process's environment, with the number of threads of every library set."""
    return {**os.environ, **dict.fromkeys(_THREAD_COUNTS, str(threads))}


def describe_failure(folder: CellFolder, status: int) -> str | None:
    """Say how a cell's process ended; None where it ended well."""
    if status == 0:
        return None
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    try:
        lines = folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = " / ".join(line.strip() for line in lines[-_LAST_LINES:]) if status > 0 else ""
    return f"its process {how}{': ' if said else ''}{said} (log: {folder.log})"


def run_cell_process(path: str, device: str, threads: int) -> str | None:
    """Run a cell in a process of its own; return what went wrong."""
    folder = CellFolder(Path(path))
    with folder.log.open("ab") as log:
        finished = subprocess.run(
            [*cell_command(folder.path, device, threads), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=cell_environment(threads),
            check=False,
        )
    return describe_failure(folder, finished.returncode)
