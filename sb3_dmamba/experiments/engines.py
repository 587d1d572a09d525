"""Engines that execute runs: local processes, Ray and SLURM."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import ExperimentError, MissingDependencyError
from sb3_dmamba.experiments.runs import CellFolder, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


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


def run_locally(
    folders: Sequence[CellFolder],
    jobs: int,
    threads: int,
    device: str,
    on_end: Callable[[CellFolder, str | None], None],
) -> None:
    """Run cells side by side, a process each: one that dies takes no other with it.

    Args:
        folders: The cells.
        jobs: Cells at once.
        threads: Threads of each.
        device: Where each computes.
        on_end: Called with each cell, and with what went wrong or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; the processes are ended first.
    """
    running = _Running()
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        futures = {
            pool.submit(running.execute, folder, threads, device): folder for folder in folders
        }
        for future in concurrent.futures.as_completed(futures):
            on_end(futures[future], future.result())
    except BaseException:
        running.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Running:
    """The processes that run now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def execute(self, folder: CellFolder, threads: int, device: str) -> str | None:
        """Run a cell and wait for it; return what went wrong."""
        with folder.log.open("ab") as log:
            with self._lock:
                if self._is_stopped:
                    return "interrupted before it began"
                process = subprocess.Popen(
                    [*cell_command(folder.path, device, threads), "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=cell_environment(threads),
                )
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        return describe_failure(folder, status)

    def stop(self) -> None:
        """End every process, and let none begin."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.terminate()


_MAX_RETRIES = 3  # of a task whose node was lost; the cell goes on from its checkpoint


def run_with_ray(
    folders: Sequence[CellFolder],
    threads: int,
    device: str,
    on_end: Callable[[CellFolder, str | None], None],
) -> None:
    """Run cells as Ray decides; a cluster that is connected already is used as it is.

    Args:
        folders: The cells.
        threads: Threads of each, and the CPUs that each asks for.
        device: Where each computes; one that begins with ``"cuda"`` asks for a GPU.
        on_end: Called with each cell, and with what went wrong or None.

    Raises:
        MissingDependencyError: Ray is not installed.
        KeyboardInterrupt: Ctrl-C; the tasks are cancelled first.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", "run cells with --ray", "ray") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False)
    needs = {"num_cpus": threads, "num_gpus": 1 if device.startswith("cuda") else 0}
    task = ray.remote(**needs, max_retries=_MAX_RETRIES)(run_cell_process)
    pending = {
        task.remote(str(folder.path.resolve()), device, threads): folder for folder in folders
    }
    try:
        while pending:
            finished, _ = ray.wait(list(pending), num_returns=1)
            for reference in finished:
                folder = pending.pop(reference)
                try:
                    on_end(folder, ray.get(reference))
                except ray.exceptions.RayError as error:
                    on_end(folder, f"Ray lost it: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        for reference in pending:
            ray.cancel(reference, force=True)
        raise
    finally:
        if is_ours:
            ray.shutdown()


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
