"""The files that a report is made from: its evaluations, losses, settings and costs.

A report's folder holds ``results.csv`` (a row for each evaluation of a training), ``losses.csv``
(its training loss), ``settings.json`` (what was run) and ``machine.json`` (what computed, and how
long). The report and its pictures are made from these files alone. Nothing but ``machine.json``
depends on the machine's speed or the time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.evaluation.statistics import compute_interquartile_mean
from sb3_dmamba.experiments.plan import Plan, PlannedCell, PlannedTask
from sb3_dmamba.experiments.runs import CellResult, Evaluation, write_json, write_text

__all__ = [
    "EVALUATION_COLUMNS",
    "FORMAT",
    "LOSS_COLUMNS",
    "Record",
    "Row",
    "read_settings",
    "read_table",
    "to_csv",
]

FORMAT = 1
"""Of ``settings.json``."""

EVALUATION_COLUMNS = (
    "task", "variant", "memory", "seed", "update", "target_return", "n_episodes", "mean",
    "interquartile_mean", "std", "min", "max", "mean_length", "n_parameters", "returns",
)  # fmt: skip
"""Columns of ``results.csv``. ``returns`` has every episode's, with spaces between, for the last
weights; evaluations along the way have their figures alone."""

LOSS_COLUMNS = ("task", "variant", "seed", "update", "loss")
"""Columns of ``losses.csv``: the mean training loss since the row before."""

Row = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Record:
    """Everything that a report is made from, as its files have it.

    Args:
        settings: What was run: question, command, variants, tasks and their data.
        evaluations: Rows of :data:`EVALUATION_COLUMNS`.
        losses: Rows of :data:`LOSS_COLUMNS`; reports made before there were such files have none.
        machine: The costs by task and variant, and what computed.
    """

    settings: Mapping[str, Any]
    evaluations: Sequence[Row]
    losses: Sequence[Row]
    machine: Mapping[str, Any]

    @classmethod
    def from_plan(cls, plan: Plan, command: str) -> Record:
        """Gather the results of the trainings that are done.

        Args:
            plan: The experiment's trainings.
            command: What reproduces it.

        Raises:
            ExperimentError: None is done.
        """
        evaluations: list[Row] = []
        losses: list[Row] = []
        for planned in plan.cells:
            if planned.folder.is_done:
                result = planned.folder.read_result()
                evaluations += [_evaluation_row(planned, result, e) for e in result.evaluations]
                losses += _loss_rows(planned, result)
        if not evaluations:
            raise ExperimentError("no training is done: there is nothing to report")
        settings = json.loads(json.dumps(_describe(plan, command), allow_nan=False))
        return cls(settings, evaluations, losses, _describe_machine(plan))

    def write(self, folder: Path) -> list[Path]:
        """Write the files, and return them."""
        tables = {
            "results.csv": to_csv(EVALUATION_COLUMNS, self.evaluations),
            "losses.csv": to_csv(LOSS_COLUMNS, self.losses),
        }
        for name, text in tables.items():
            write_text(folder / name, text)
        documents = {"settings.json": self.settings, "machine.json": self.machine}
        for name, document in documents.items():
            write_json(folder / name, document, indent=1)
        return [folder / name for name in (*tables, *documents)]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the files of a report.

        Raises:
            ExperimentError: A file is missing or damaged.
        """
        losses = folder / "losses.csv"
        return cls(
            settings=read_settings(folder),
            evaluations=read_table(folder / "results.csv", EVALUATION_COLUMNS),
            losses=read_table(losses, LOSS_COLUMNS) if losses.exists() else [],
            machine=_read_json(folder / "machine.json"),
        )


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read the rows of a CSV file.

    Raises:
        ExperimentError: The file is missing, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[Row] = [*reader]
            found = reader.fieldnames or []
    except FileNotFoundError as error:
        raise ExperimentError(
            f"there is no report in {path.parent}: {path.name} is missing"
        ) from error
    missing = [name for name in columns if name not in found]
    if missing:
        raise ExperimentError(f"{path} lacks the columns {', '.join(missing)}")
    return rows


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``settings.json`` of a report.

    Raises:
        ExperimentError: It is missing, damaged, or of another format.
    """
    settings = _read_json(folder / "settings.json")
    if settings.get("format") != FORMAT:
        raise ExperimentError(
            f"the report in {folder} has format {settings.get('format')!r} and this version reads "
            f"{FORMAT}"
        )
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExperimentError(
            f"there is no report in {path.parent}: {path.name} is missing"
        ) from error
    except json.JSONDecodeError as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from error
    return document


# --- From a plan ---------------------------------------------------------------------------------


def _evaluation_row(planned: PlannedCell, result: CellResult, evaluation: Evaluation) -> Row:
    returns = evaluation.returns
    figures = {
        "mean": returns.mean(),
        "interquartile_mean": compute_interquartile_mean(returns),
        "std": returns.std(ddof=1) if len(returns) > 1 else np.nan,
        "min": returns.min(),
        "max": returns.max(),
        "mean_length": evaluation.lengths.mean(),
    }
    is_last = evaluation.update == result.last_update
    return {
        "task": planned.task,
        "variant": planned.variant,
        "memory": evaluation.memory,
        "seed": str(planned.seed),
        "update": str(evaluation.update),
        "target_return": repr(evaluation.target_return).removesuffix(".0"),
        "n_episodes": str(len(returns)),
        **{name: f"{float(value):.8g}" for name, value in figures.items()},
        "n_parameters": str(result.n_parameters),
        "returns": " ".join(f"{value:.8g}" for value in returns.tolist()) if is_last else "",
    }


def _loss_rows(planned: PlannedCell, result: CellResult) -> list[Row]:
    names = {"task": planned.task, "variant": planned.variant, "seed": str(planned.seed)}
    return [
        {**names, "update": str(update), "loss": f"{loss:.6g}"} for update, loss in result.losses
    ]


def _describe(plan: Plan, command: str) -> dict[str, Any]:
    evaluation = plan.cells[0].cell.evaluation
    published = plan.experiment.published
    return {
        "format": FORMAT,
        "experiment": plan.experiment.name,
        "title": plan.experiment.title,
        "question": plan.experiment.question,
        "command": command,
        "n_trainings": len(plan.cells),
        "seeds": list(dict.fromkeys(cell.seed for cell in plan.cells)),
        "n_episodes": evaluation.n_episodes,
        "eval_seed": evaluation.seed,
        "max_episode_steps": evaluation.max_episode_steps,
        "variants": {
            name: {
                "settings": dict(variant.settings),
                "data_options": dict(variant.data_options),
                "description": variant.description,
            }
            for name, variant in plan.variants.items()
        },
        "tasks": [_describe_task(plan, task) for task in plan.tasks],
        "published": None if published is None else asdict(published),
    }


def _describe_task(plan: Plan, planned: PlannedTask) -> dict[str, Any]:
    cells = [cell.cell for cell in plan.cells if cell.task == planned.name]
    configs = [cell.identity()["config"] for cell in cells]
    first = configs[0]
    reference = planned.task.reference
    return {
        "name": planned.name,
        "env_id": planned.task.env_id,
        "source": planned.source,
        "fingerprint": planned.fingerprint,
        "n_episodes": len(planned.returns),
        "n_steps": planned.n_steps,
        "mean_return": float(planned.returns.mean()),
        "lowest_return": float(planned.returns.min()),
        "highest_return": float(planned.returns.max()),
        "target_returns": planned.target_returns,
        "targets_in_range": planned.targets_in_range,
        "headline": planned.headline,
        "reference": None if reference is None else asdict(reference),
        "deterministic": all(cell.evaluation.deterministic for cell in cells),
        "settings": {
            name: value
            for name, value in first.items()
            if all(each.get(name) == value for each in configs)
        },
    }


def _describe_machine(plan: Plan) -> dict[str, Any]:
    costs = []
    machines: list[str] = []
    for task in plan.tasks:
        for variant in plan.variants:
            cells = [c for c in plan.cells if (c.task, c.variant) == (task.name, variant)]
            spent = [_sum_sessions(cell) for cell in cells if cell.folder.is_done]
            spent = [each for each in spent if each["updates"]]
            if spent:
                costs.append({"task": task.name, "variant": variant, **_summarize_costs(spent)})
    for cell in plan.cells:
        for session in cell.folder.read_json(cell.folder.machine, []):
            versions = ", ".join(f"{name} {each}" for name, each in session["versions"].items())
            threads = session["threads"]
            machines.append(
                f"{session['machine']}, device {session['device']}, {threads} "
                f"thread{'' if threads == 1 else 's'} a training; {versions}"
            )
    return {"costs": costs, "machines": list(dict.fromkeys(machines))}


def _sum_sessions(cell: PlannedCell) -> Mapping[str, float]:
    sessions: list[dict[str, Any]] = cell.folder.read_json(cell.folder.machine, [])
    names = ("updates", "train_seconds", "train_cpu_seconds", "evaluation_seconds")
    return {name: sum(float(session[name]) for session in sessions) for name in names}


def _summarize_costs(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the medians over the trainings of a variant."""
    values = {
        "update_ms": [1e3 * each["train_seconds"] / each["updates"] for each in spent],
        "update_cpu_ms": [1e3 * each["train_cpu_seconds"] / each["updates"] for each in spent],
        "training_minutes": [each["train_seconds"] / 60 for each in spent],
        "evaluation_minutes": [each["evaluation_seconds"] / 60 for each in spent],
    }
    return {name: float(np.median(each)) for name, each in values.items()}
