"""Run an experiment: plan, execute its runs on an engine (local processes, Ray, SLURM), report.

Every engine executes a run in a process of its own, by the command of :func:`run_command`
(``python -m sb3_dmamba.experiments.grid FOLDER``), so one that dies takes no other with it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich import progress as rich
from rich.console import Console

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import ConfigError, ExperimentError, MissingDependencyError
from sb3_dmamba.experiments.catalogue import Experiment
from sb3_dmamba.experiments.plan import Request, make_plan
from sb3_dmamba.experiments.report import write_report
from sb3_dmamba.experiments.runs import RunFolder, write_text
from sb3_dmamba.machine import PASSIVE_WAITING, set_thread_variables

__all__ = ["Engine", "Finished", "run_experiment"]

OnEnd = Callable[[RunFolder, str | None], None]
"""Called with each run that has ended, and the reason where it failed."""


@dataclass(frozen=True)
class Engine:
    """Where runs are executed.

    Args:
        kind: ``"local"`` for processes of this machine, ``"ray"`` for Ray's tasks.
        jobs: Runs at once, of ``"local"``; Ray decides by its free CPUs.
        threads: Threads of each run.
        device: Device of each run; one that begins with ``"cuda"`` asks Ray and SLURM for a GPU.

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


@dataclass(frozen=True)
class Finished:
    """Outcome of :func:`run_experiment`.

    Args:
        files: The files written.
        n_runs: Runs of the experiment.
        n_waiting: Runs that are not done: those of a SLURM script.
    """

    files: tuple[Path, ...]
    n_runs: int
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
    """Execute the runs of an experiment that are not done, and write its report.

    Args:
        experiment: The experiment.
        request: Data, seeds and other options.
        out: Folder of the report.
        command: What reproduces it, for the report.
        engine: Where to run; None is one process of this machine at a time.
        slurm: Where to write a job array instead of running anything.
        console: Where to show progress; None shows nothing.

    Raises:
        ExperimentError: Runs failed; the report of the others is written first.
        DecisionMambaError: Whatever planning raises.
    """
    engine = engine or Engine()
    plan = make_plan(experiment, request, None if console is None else _Lines(console))
    if plan.processor_seconds is not None:
        engine = _on_the_processor(engine)
    folders = [planned.folder for planned in plan.runs]
    if slurm is not None:
        n_waiting = write_slurm_script(slurm, folders, experiment.name, command, engine)
        return Finished((slurm,), len(folders), n_waiting)
    failures = execute_runs(folders, engine, console)
    any_done = any(folder.is_done for folder in folders)
    files = write_report(plan, out, command) if any_done else []
    raise_failures(failures)
    return Finished(tuple(files), len(folders))


def _on_the_processor(engine: Engine) -> Engine:
    if engine.device not in ("auto", "cpu"):
        message = (
            f"device={engine.device!r}: a budget of processor time is spent on the CPU; give a "
            "number of updates instead"
        )
        raise ConfigError(message, setting="device", value=engine.device, choices=["auto", "cpu"])
    return replace(engine, device="cpu")


def execute_runs(
    folders: Sequence[RunFolder], engine: Engine, console: Console | None = None
) -> dict[str, str]:
    """Execute every run that is not done; one that fails leaves the others alone."""
    waiting = [folder for folder in folders if not folder.is_done]
    failures: dict[str, str] = {}

    def on_end(folder: RunFolder, failure: str | None) -> None:
        label = folder.read_run().label
        if failure is not None:
            failures[label] = failure
        if console is not None and (failure is not None or not console.is_terminal):
            n_done = sum(each.is_done for each in folders)
            outcome = "done" if failure is None else f"failed: {failure}"
            _Lines(console)(f"{label}: {outcome} ({n_done} of {len(folders)} runs done)")

    if waiting:
        is_ray = engine.kind == "ray"
        if console is not None:
            where = "Ray" if is_ray else f"this machine, {engine.jobs} at a time"
            n_done = len(folders) - len(waiting)
            _Lines(console)(f"{len(folders)} runs, {n_done} of them done before: on {where}")
        with _show_progress(folders, console):
            (_execute_with_ray if is_ray else execute_locally)(waiting, engine, on_end)
    return failures


def raise_failures(failures: dict[str, str]) -> None:
    """Raise an ExperimentError that names the runs that failed, where some did."""
    if failures:
        listed = "\n".join(f"  {label}: {reason}" for label, reason in failures.items())
        message = (
            f"{len(failures)} run{'s' if len(failures) > 1 else ''} failed; the others are kept, "
            f"and the same command tries these again:\n{listed}"
        )
        raise ExperimentError(message, value=tuple(failures))


# --- The process of a run ------------------------------------------------------------------------

_THREAD_VARIABLES = tuple(f"{each}_NUM_THREADS" for each in ("OMP", "MKL", "OPENBLAS", "NUMBA"))
_LOG_LINES = 3  # of a failed run's log, quoted in the message
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception): ")  # what is before it is no part of it


def run_command(path: Path, device: str, threads: int) -> list[str]:
    """Return the command that executes one run."""
    command = [sys.executable, "-m", "sb3_dmamba.experiments.grid", str(path)]
    return [*command, "--device", device, "--threads", str(threads)]


class _Processes:
    """The processes of runs that are being executed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def execute(self, folder: RunFolder, device: str, threads: int) -> str | None:
        """Execute a run and wait for it; return the reason where it failed."""
        with folder.log.open("ab") as log:
            with self._lock:
                if self._is_stopped:
                    return "interrupted before it began"
                process = subprocess.Popen(
                    [*run_command(folder.path, device, threads), "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_make_environment(threads),
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return _describe_failure(folder, status)

    def stop(self) -> None:
        """End every process, and start no more."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()


def _make_environment(threads: int) -> dict[str, str]:
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    set_thread_variables(environment)
    return environment


_KILLED = "its process was killed by signal"


def _describe_failure(folder: RunFolder, status: int) -> str | None:
    if status == 0:
        return None
    if status < 0:
        return f"{_KILLED} {-status} (log: {folder.log})"
    try:
        lines = folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    lines = lines[-_LOG_LINES:]
    errors = [index for index, line in enumerate(lines) if _ERROR_LINE.match(line)]
    said = " / ".join(line.strip() for line in lines[errors[-1] if errors else 0 :])
    ending = f"ended with status {status}{': ' if said else ''}{said}"
    return f"its process {ending} (log: {folder.log})"


# --- Engines -------------------------------------------------------------------------------------

_RAY_RETRIES = 3  # of a task whose worker or process was lost; the run goes on from its checkpoint


@contextlib.contextmanager
def _orderly_termination() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, so that runs are ended; Ray would print traces of its C++.

    Nothing changes outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    status = 128 + signal.SIGTERM
    is_ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        is_ended.set()
        raise SystemExit(status)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:  # with another status, where it passed through Ray
        if is_ended.is_set():
            raise SystemExit(status) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def execute_locally(folders: Sequence[RunFolder], engine: Engine, on_end: OnEnd) -> None:
    """Execute ``engine.jobs`` runs at a time on this machine; an interrupt ends them all."""
    processes = _Processes()
    pool = concurrent.futures.ThreadPoolExecutor(engine.jobs)
    with _orderly_termination():
        try:
            futures = {
                pool.submit(processes.execute, folder, engine.device, engine.threads): folder
                for folder in folders
            }
            for future in concurrent.futures.as_completed(futures):
                on_end(futures[future], future.result())
        except BaseException:
            processes.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _execute_with_ray(folders: Sequence[RunFolder], engine: Engine, on_end: OnEnd) -> None:
    """Execute runs as Ray's tasks; a cluster that is connected already is used as it is."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingDependencyError("ray", "run experiments with --ray", "ray") from error
    if is_ours := not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises plain ones
            raise ExperimentError(f"Ray does not start: {error}") from error
    needs = {"num_cpus": engine.threads, "num_gpus": int(engine.device.startswith("cuda"))}
    _warn_if_no_node_has(needs, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    retries = {"max_retries": _RAY_RETRIES, "retry_exceptions": [_KilledError]}
    task = ray.remote(**needs, **retries)(_execute_at)
    pending: dict[Any, RunFolder] = {}
    try:
        with _orderly_termination():  # after init, which sets a handler of its own
            for folder in folders:
                where = str(folder.path.resolve()), engine.device, engine.threads
                pending[task.remote(*where)] = folder
            while pending:
                ended, _ = ray.wait(list(pending), num_returns=1)
                for reference in ended:
                    folder = pending.pop(reference)
                    try:
                        on_end(folder, ray.get(reference))
                    except ray.exceptions.RayTaskError as error:
                        on_end(folder, str(error.cause))
                    except ray.exceptions.RayError as error:
                        on_end(folder, f"Ray lost it: {str(error).splitlines()[0]}")
    except BaseException:
        for reference in pending:
            ray.cancel(reference, force=True)
        raise
    finally:
        if is_ours:
            ray.shutdown()


def _warn_if_no_node_has(needs: Mapping[str, int], nodes: Sequence[Mapping[str, float]]) -> None:
    wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    if not any(all(node.get(k, 0) >= n for k, n in wanted.items()) for node in nodes):
        message = (
            f"no node of Ray has what a run asks for ({wanted}), so runs wait until one joins: ask "
            "for fewer --threads or another --device"
        )
        warnings.warn(message, stacklevel=2)


class _KilledError(Exception):
    """The process of a run was killed: Ray tries it again, perhaps on another node."""


def _execute_at(path: str, device: str, threads: int) -> str | None:
    failure = _Processes().execute(RunFolder(Path(path)), device, threads)
    if failure is not None and failure.startswith(_KILLED):
        raise _KilledError(failure)
    return failure


_SCRIPT = """\
#!/usr/bin/env bash
# {n_runs} runs of {name}; each goes on from its last checkpoint when it is submitted again.
# sbatch {file}      and when all are done:      {command}
#SBATCH --job-name=dmamba-{name}
#SBATCH --array=1-{n_runs}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --requeue
#SBATCH --output={logs}
{gpu}
set -euo pipefail

runs=(
{folders}
)
export {variables}
cd {directory}
exec {run}
"""


def write_slurm_script(
    path: Path, folders: Sequence[RunFolder], name: str, command: str, engine: Engine
) -> int:
    """Write a job array of the runs that are not done; return how many these are."""
    waiting = [folder.path.resolve() for folder in folders if not folder.is_done]
    if not waiting:
        raise ExperimentError("every run is done: run the command without --slurm for the report")
    variables = {**dict.fromkeys(_THREAD_VARIABLES, engine.threads), **PASSIVE_WAITING}
    run = shlex.join(run_command(Path("RUN_FOLDER"), engine.device, engine.threads))
    script = _SCRIPT.format(
        n_runs=len(waiting),
        name=name,
        file=shlex.quote(str(path)),
        command=command,
        threads=engine.threads,
        logs=shlex.quote(str(waiting[0].parent / "slurm-").replace("%", "%%") + "%A_%a.txt"),
        gpu="#SBATCH --gpus=1\n" if engine.device.startswith("cuda") else "",
        folders="\n".join(f"  {shlex.quote(str(folder))}" for folder in waiting),
        variables=" ".join(f"{name}={value}" for name, value in variables.items()),
        directory=shlex.quote(str(Path.cwd())),
        run=run.replace("RUN_FOLDER", '"${runs[$((SLURM_ARRAY_TASK_ID - 1))]}"', 1),
    )
    write_text(path, script)
    path.chmod(0o755)
    return len(waiting)


# --- Progress ------------------------------------------------------------------------------------

_LOOK_SECONDS = 0.5
_LINE_SECONDS = 60.0  # between two lines of the runs that train, where there is no terminal
_STALE_SECONDS = 600.0  # age of a progress file that a crash left


@dataclass(frozen=True)
class _Lines:
    """Prints unwrapped lines."""

    console: Console

    def __call__(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def _show_progress(folders: Sequence[RunFolder], console: Console | None) -> Iterator[None]:
    """Show how many runs are done, and the updates of those that train: bars, or lines in a log."""
    if console is None:
        yield
        return
    labels = {folder: folder.read_run().label for folder in folders}
    begun, ended = time.time(), threading.Event()
    phase, left = rich.TextColumn("{task.fields[phase]}"), rich.TextColumn("left")
    runs = rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=24)
    times = phase, rich.TimeElapsedColumn(), left, rich.TimeRemainingColumn()
    columns = *runs, rich.MofNCompleteColumn(), *times
    progress = rich.Progress(*columns, console=console, disable=not console.is_terminal)
    every_run = progress.add_task("[bold]runs", total=len(folders), phase="")
    rows: dict[RunFolder, rich.TaskID] = {}
    said_at: dict[RunFolder, float] = {}

    def look() -> None:
        for folder in folders:
            state = folder.read_json(folder.progress, None)
            if folder.is_done:
                if folder in rows:
                    progress.remove_task(rows.pop(folder))
            elif state is not None and state["time"] >= begun - _STALE_SECONDS:
                if folder not in rows:
                    rows[folder] = progress.add_task(labels[folder], total=state["total"], phase="")
                progress.update(rows[folder], completed=state["updates"], phase=state["phase"])
                if time.time() - said_at.get(folder, 0.0) >= _LINE_SECONDS and progress.disable:
                    said_at[folder] = time.time()
                    done = f"{state['updates']} of {state['total']} updates"
                    _Lines(console)(f"{labels[folder]}: {done}, {state['phase']}")
        progress.update(every_run, completed=sum(folder.is_done for folder in folders))

    def keep_looking() -> None:
        while not ended.wait(_LOOK_SECONDS):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
