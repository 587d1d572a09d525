"""Execute one run: ``python -m sb3_dmamba.experiments.grid FOLDER``.

Training goes on exactly where it stopped: the folder keeps a checkpoint of the last minute, the
loss curve until then, and each evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.errors import DecisionMambaError, ExperimentError
from sb3_dmamba.experiments.models import (
    fit_model,
    load_data,
    measure_return_importance,
    open_model,
)
from sb3_dmamba.experiments.runs import Evaluation, LossCurve, RunFolder, write_json
from sb3_dmamba.machine import choose_precision, describe_device

_CHECKPOINT_SECONDS = 60.0
_PROGRESS_SECONDS = 1.0
_PACKAGES = (
    *("torch", "numpy", "numba", "gymnasium", "stable-baselines3", "d3rlpy", "mujoco", "ale-py"),
)


def main(arguments: list[str] | None = None) -> int:
    """Execute one run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sb3_dmamba.experiments.grid")
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, help="end when this process has ended")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        execute_run(options.folder, options.device, options.parent)
    except (DecisionMambaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def execute_run(path: str | Path, device: str = "auto", parent: int | None = None) -> None:
    """Train and evaluate whatever of a run is not done yet."""
    folder = RunFolder(Path(path))
    with folder.locked(lambda: _exit_without(parent)):
        if not folder.is_done:
            _Execution(folder, device, parent).execute()


class _Execution:
    def __init__(self, folder: RunFolder, device: str, parent: int | None) -> None:
        self.folder = folder
        self.run = folder.read_run()
        self.parent = parent
        if self.run.algorithm:  # d3rlpy's trainings cannot go on from a checkpoint
            folder.discard()
        self.model = open_model(self.run, device, folder)
        self.session = Session(folder, str(self.model.device))
        if isinstance(self.model, DecisionMamba):
            precision = choose_precision(self.model.config.precision, self.model.device)
            self.session.record["precision"] = precision
        self.n_updates = self.run.config.resolved_n_updates
        self.evaluated_updates = self.run.evaluation.evaluated_updates(self.n_updates)

    def execute(self) -> None:
        self._evaluate_if_due()
        done = self.model.num_timesteps
        if done < self.n_updates:
            with self.run.task.make_env():  # before training: it may need an extra
                pass
            if isinstance(self.model, DecisionMamba):
                self.model._compile_ahead()
            trajectories = load_data(self.run)
            self.curve = LossCurve(self.folder, done, self.n_updates)
            n_steps = None if done else self.n_updates  # None goes on with the schedule
            with self.session.training():
                fit_model(self.model, trajectories, n_steps, self.after_update)
        self._finish()

    def after_update(self, loss: torch.Tensor | None) -> None:
        """Count the loss; write a checkpoint and evaluate, where that is due."""
        done = self.model.num_timesteps
        if loss is not None:
            self.curve.add(done, loss)
        _exit_without(self.parent)
        self.session.record["updates"] += 1
        if done in self.evaluated_updates or self.session.is_checkpoint_due():
            with self.session.pause():
                self.curve.write(done)
                self.model.save(self.folder.model)
                self.session.write(done)
                self._evaluate_if_due()
        self._report_progress("training")

    def _evaluate_if_due(self) -> None:
        update, plan = self.model.num_timesteps, self.run.evaluation
        if update not in self.evaluated_updates:
            return
        memory: Any  # also a peer's
        for memory in plan.memories:
            path = self._evaluation_path(update, memory)
            if self.folder.read_json(path, None) is not None:
                continue
            self._report_progress(f"evaluating ({memory})")
            options = ("seed", "deterministic", "max_episode_steps")
            how: dict[str, Any] = {name: getattr(plan, name) for name in options}
            targets, n_episodes = plan.target_returns, plan.n_episodes
            with self.session.evaluating():
                report = self.model.evaluate(targets, n_episodes, memory=memory, n_workers=0, **how)
            rows = [
                Evaluation(update, memory, each.target_return, each.returns, each.lengths).to_dict()
                for each in report.results
            ]
            write_json(path, rows)
        self.session.write(update)

    def _finish(self) -> None:
        self.model.save(self.folder.model, exclude="optimizer")
        memories = self.run.evaluation.memories
        rows: list[dict[str, Any]] = []
        for update, memory in itertools.product(self.evaluated_updates, memories):
            rows += self._read_evaluation(update, memory)
        curve = LossCurve(self.folder, self.n_updates, self.n_updates)
        n_parameters = sum(each.numel() for each in self.model.policy.parameters())
        result = {
            "n_parameters": n_parameters,
            "return_importance": self._measure_importance(),
            "losses": curve.entries,
            "evaluations": rows,
        }
        write_json(self.folder.result, result)
        self.folder.progress.unlink(missing_ok=True)

    def _measure_importance(self) -> float | None:
        try:
            trajectories = load_data(self.run)
        except DecisionMambaError:  # of a run that was done before, the data may be gone
            return None
        return measure_return_importance(self.model, trajectories)

    def _read_evaluation(self, update: int, memory: str) -> list[dict[str, Any]]:
        path = self._evaluation_path(update, memory)
        rows: list[dict[str, Any]] | None = self.folder.read_json(path, None)
        if rows is None:
            message = (
                f"{path} is missing or damaged, and the weights of update {update} are gone: "
                f"remove the folder {self.folder.path} and run the experiment again"
            )
            raise ExperimentError(message, value=str(path))
        return rows

    def _evaluation_path(self, update: int, memory: str) -> Path:
        return self.folder.evaluations / f"{update:09d}-{memory}.json"

    def _report_progress(self, phase: str) -> None:
        if self.session.is_progress_due():
            done, total = self.model.num_timesteps, self.n_updates
            state = {"updates": done, "total": total, "phase": phase, "time": time.time()}
            write_json(self.folder.progress, state)


def _exit_without(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        raise SystemExit(f"the process that started this one ({parent}) is gone")


class Session:
    """The time that one process spends on a run, kept in ``machine.json``."""

    def __init__(self, folder: RunFolder, device: str) -> None:
        self._path = folder.machine
        self._earlier = folder.read_json(folder.machine, [])
        self.record: dict[str, Any] = {
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": describe_device(device),
            "versions": describe_versions(),
            "updates": 0,
            "train_seconds": 0.0,
            "train_cpu_seconds": 0.0,
            "evaluation_seconds": 0.0,
        }
        self._checkpoint_at = self._progress_at = time.monotonic()
        self._started = 0.0, 0.0  # wall and processor time

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count the time inside as training."""
        self._start()
        yield
        self._stop()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time inside as training: checkpoints, evaluations."""
        self._stop()
        yield
        self._checkpoint_at = time.monotonic()
        self._start()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time inside as evaluation."""
        started = time.perf_counter()
        yield
        self.record["evaluation_seconds"] += time.perf_counter() - started

    def is_checkpoint_due(self) -> bool:
        """Whether the last checkpoint is a minute old."""
        return time.monotonic() - self._checkpoint_at > _CHECKPOINT_SECONDS

    def is_progress_due(self) -> bool:
        """Whether the last True was a second ago."""
        now = time.monotonic()
        if now - self._progress_at < _PROGRESS_SECONDS:
            return False
        self._progress_at = now
        return True

    def write(self, update: int) -> None:
        """Write the time spent until a checkpoint; work lost in a crash is not counted."""
        write_json(self._path, [*self._earlier, {**self.record, "until": update}])

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        self.record["train_seconds"] += time.perf_counter() - self._started[0]
        self.record["train_cpu_seconds"] += time.process_time() - self._started[1]


def describe_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    versions = {"sb3_dmamba": sb3_dmamba.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def __getattr__(name: str) -> Any:
    if name == "Engine":  # documented here in 0.1.0; a run needs none
        from sb3_dmamba.experiments.engines import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
