"""Running one cell: train, evaluate, keep what is done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_dmamba import DecisionMamba, Trajectories, load_trajectories
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.grid.accounting import Session
from sb3_dmamba.experiments.grid.cell import Cell
from sb3_dmamba.experiments.grid.curve import LossCurve
from sb3_dmamba.experiments.grid.fingerprint import compute_fingerprint
from sb3_dmamba.experiments.grid.folder import CellFolder, Evaluation, write_json

__all__ = ["execute_cell"]


def execute_cell(path: str | Path, device: str = "auto", parent: int | None = None) -> None:
    """Do whatever of a cell is not done yet; training goes on exactly where it stopped.

    Args:
        path: The cell's folder, with its description in it.
        device: Where to compute.
        parent: Process for which this one works: once that is gone, this one ends too.

    Raises:
        ExperimentError: The data is not what the cell was described with.
        DecisionMambaError: Whatever training and evaluation raise.
    """
    folder = CellFolder(Path(path))
    with folder.locked(lambda: _end_with(parent)):
        if not folder.is_done:
            _Execution(folder, device, parent).run()


class _Execution:
    def __init__(self, folder: CellFolder, device: str, parent: int | None) -> None:
        self.folder = folder
        self.cell = folder.read_cell()
        self.parent = parent
        self.model = _open_model(folder, self.cell, device)
        self.session = Session(folder, str(self.model.device))
        self.n_updates = self.cell.config.n_updates
        self.evaluated_updates = self.cell.evaluation.evaluated_updates(self.n_updates)

    def run(self) -> None:
        self._evaluate_if_due()
        begun = self.model.num_timesteps
        if begun < self.n_updates:
            trajectories = _load(self.cell)
            self.model.set_logger(Logger(None, []))
            remaining = None if begun else self.n_updates  # None goes on with the schedule
            with self.session.training():
                self.model.fit(trajectories, remaining, callback=_Watch(self))
        self._finish()

    def _finish(self) -> None:
        self.model.save(self.folder.model, exclude="optimizer")
        rows = [
            row
            for update in self.evaluated_updates
            for memory in self.cell.evaluation.memories
            for row in self._read_evaluation(update, memory)
        ]
        curve = LossCurve(self.folder, self.n_updates, self.n_updates)
        n_parameters = sum(each.numel() for each in self.model.policy.parameters())
        result = {"n_parameters": n_parameters, "losses": curve.entries, "evaluations": rows}
        write_json(self.folder.result, result)
        self.folder.progress.unlink(missing_ok=True)

    def after_update(self, curve: LossCurve) -> None:
        """Keep a checkpoint and evaluate, where it is time to."""
        done = self.model.num_timesteps
        _end_with(self.parent)
        self.session.count_update()
        if done in self.evaluated_updates or self.session.is_checkpoint_due():
            with self.session.pause():
                curve.write(done)
                self.model.save(self.folder.model)
                self.session.write(done)
                self._evaluate_if_due()
        self._report_progress("training")

    def _report_progress(self, phase: str) -> None:
        if self.session.is_progress_due():
            done = self.model.num_timesteps
            document = {
                "updates": done,
                "total": self.n_updates,
                "phase": phase,
                "time": time.time(),
            }
            write_json(self.folder.progress, document)

    # --- Evaluation ------------------------------------------------------------------------------

    def _evaluation_path(self, update: int, memory: str) -> Path:
        return self.folder.evaluations / f"{update:09d}-{memory}.json"

    def _read_evaluation(self, update: int, memory: str) -> list[dict[str, Any]]:
        path = self._evaluation_path(update, memory)
        rows: list[dict[str, Any]] | None = self.folder.read_json(path, None)
        if rows is None:
            raise ExperimentError(
                f"{path} is missing or damaged, and the weights of update {update} are gone: "
                f"remove the folder {self.folder.path} and run the experiment again"
            )
        return rows

    def _evaluate_if_due(self) -> None:
        update, plan = self.model.num_timesteps, self.cell.evaluation
        if update not in self.evaluated_updates:
            return
        for memory in plan.memories:
            path = self._evaluation_path(update, memory)
            if self.folder.read_json(path, None) is not None:
                continue
            self._report_progress(f"evaluating ({memory})")
            with self.session.evaluating():
                report = self.model.evaluate(
                    plan.target_returns,
                    plan.n_episodes,
                    memory=memory,
                    seed=plan.seed,
                    deterministic=plan.deterministic,
                    max_episode_steps=plan.max_episode_steps,
                    n_workers=0,
                )
            rows = [
                Evaluation(update, memory, each.target_return, each.returns, each.lengths).to_dict()
                for each in report.results
            ]
            write_json(path, rows)
        self.session.write(update)


class _Watch(BaseCallback):
    """Tells the execution of every update."""

    def __init__(self, execution: _Execution) -> None:
        super().__init__()
        self.execution = execution

    def _on_training_start(self) -> None:
        folder, n_updates = self.execution.folder, self.execution.n_updates
        self.curve = LossCurve(folder, self.model.num_timesteps, n_updates)

    def _on_step(self) -> bool:
        self.curve.add(self.model.num_timesteps, self.locals["metrics"].loss)
        self.execution.after_update(self.curve)
        return True


def _end_with(parent: int | None) -> None:
    """End this process where the one that it works for is gone."""
    if parent is not None and os.getppid() != parent:
        raise SystemExit(f"the process that started this one ({parent}) is gone")


def _open_model(folder: CellFolder, cell: Cell, device: str) -> DecisionMamba:
    if folder.model.exists():
        return DecisionMamba.load(folder.model, device=device)
    return DecisionMamba(cell.task, config=cell.config, seed=cell.seed, device=device)


def _load(cell: Cell) -> Trajectories:
    trajectories = load_trajectories(cell.data.source, **cell.data.options)
    fingerprint = compute_fingerprint(trajectories)
    if fingerprint != cell.data.fingerprint:
        raise ExperimentError(
            f"the data at {cell.data.source} has changed since {cell.label} was planned "
            f"(fingerprint {cell.data.fingerprint}, now {fingerprint}): run the experiment again"
        )
    return trajectories
