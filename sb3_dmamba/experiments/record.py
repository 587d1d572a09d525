"""Record of an experiment: the files that its report is made from, and what is computed from them.

A report's folder holds ``results.csv`` (a row for each evaluation of a training), ``losses.csv``
(its training loss), ``settings.json`` (what was run) and ``machine.json`` (machines, versions and
times). The report and its pictures are made from these files alone; only ``machine.json`` depends
on the machine's speed or the time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.evaluation.statistics import Estimate, compute_normalized_score, estimate
from sb3_dmamba.experiments import statistics
from sb3_dmamba.experiments.plan import Plan, PlannedRun, PlannedTask
from sb3_dmamba.experiments.runs import Evaluation, RunResult, write_json, write_text

FORMAT = 1
"""Of ``settings.json``."""

EVALUATION_COLUMNS = (
    "task", "variant", "memory", "seed", "update", "target_return", "n_episodes", "mean",
    "interquartile_mean", "std", "min", "max", "mean_length", "n_parameters", "return_importance",
    "returns",
)  # fmt: skip
"""Columns of ``results.csv``. ``returns`` has every episode's, separated by spaces, for the last
weights; it is empty for earlier ones. Older reports have no ``return_importance``."""

LOSS_COLUMNS = ("task", "variant", "seed", "update", "loss")
"""Columns of ``losses.csv``: the mean training loss since the row before."""


@dataclass(frozen=True, eq=False)
class Record:
    """Everything that a report is made from, as its files have it."""

    settings: Mapping[str, Any]
    evaluations: pd.DataFrame  # EVALUATION_COLUMNS, all text
    losses: pd.DataFrame  # LOSS_COLUMNS, all text; empty for reports older than losses.csv
    machine: Mapping[str, Any]

    @classmethod
    def from_plan(cls, plan: Plan, command: str) -> Record:
        """Gather the results of the runs that are done."""
        done = [(each, each.folder.read_result()) for each in plan.runs if each.folder.is_done]
        if not done:
            raise ExperimentError("no training is done: there is nothing to report")
        rows = [_evaluation_row(run, result, e) for run, result in done for e in result.evaluations]
        losses = [
            (run.task, run.variant, str(run.seed), str(update), f"{loss:.6g}")
            for run, result in done
            for update, loss in result.losses
        ]
        return cls(
            settings=json.loads(json.dumps(_describe(plan, command), allow_nan=False)),
            evaluations=pd.DataFrame(rows, columns=EVALUATION_COLUMNS),
            losses=pd.DataFrame(losses, columns=LOSS_COLUMNS),
            machine=_describe_machine(plan),
        )

    def write(self, folder: Path) -> list[Path]:
        """Write the files, and return them."""
        tables = {"results.csv": self.evaluations, "losses.csv": self.losses}
        for name, table in tables.items():
            write_table(folder / name, table)
        documents = {"settings.json": self.settings, "machine.json": self.machine}
        for name, document in documents.items():
            write_json(folder / name, document, indent=1)
        return [folder / name for name in (*tables, *documents)]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the files of a report."""
        losses = folder / "losses.csv"
        return cls(
            settings=read_settings(folder),
            evaluations=read_table(folder / "results.csv", EVALUATION_COLUMNS),
            losses=read_table(losses, LOSS_COLUMNS) if losses.exists() else pd.DataFrame(),
            machine=_read_json(folder / "machine.json"),
        )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file atomically."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", na_rep="nan"))


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV file, all columns as text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise ExperimentError(f"{path} cannot be read: {error}", value=str(path)) from error
    if "return_importance" in columns and "return_importance" not in table:
        table["return_importance"] = ""  # a report older than the column
    if missing := [name for name in columns if name not in table]:
        raise ExperimentError(f"{path} lacks the columns {', '.join(missing)}", value=str(path))
    return table


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``settings.json`` of a report."""
    settings = _read_json(folder / "settings.json")
    if (found := settings.get("format")) != FORMAT:
        message = f"the report in {folder} has format {found!r} and this version reads {FORMAT}"
        raise ExperimentError(message, setting="format", value=found)
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except json.JSONDecodeError as error:
        raise ExperimentError(f"{path} cannot be read: {error}", value=str(path)) from error
    return document


def _missing(path: Path) -> ExperimentError:
    message = f"there is no report in {path.parent}: {path.name} is missing"
    return ExperimentError(message, value=str(path))


# --- From a plan ---------------------------------------------------------------------------------


def _evaluation_row(planned: PlannedRun, result: RunResult, evaluation: Evaluation) -> list[str]:
    returns = evaluation.returns
    deviation = returns.std(ddof=1) if len(returns) > 1 else np.nan
    centre = returns.mean(), statistics.compute_interquartile_mean(returns), deviation
    figures = *centre, returns.min(), returns.max(), evaluation.lengths.mean()
    is_last = evaluation.update == result.last_update
    target = repr(evaluation.target_return).removesuffix(".0")
    return [
        *(planned.task, planned.variant, evaluation.memory),
        *(str(planned.seed), str(evaluation.update), target, str(len(returns))),
        *(f"{float(value):.8g}" for value in figures),
        str(result.n_parameters),
        "" if result.return_importance is None else f"{result.return_importance:.4g}",
        " ".join(f"{value:.8g}" for value in returns.tolist()) if is_last else "",
    ]


def _describe(plan: Plan, command: str) -> dict[str, Any]:
    evaluation = plan.runs[0].run.evaluation
    published = plan.experiment.published
    return {
        "format": FORMAT,
        "experiment": plan.experiment.name,
        "title": plan.experiment.title,
        "question": plan.experiment.question,
        "command": command,
        "n_trainings": len(plan.runs),
        "seeds": list(dict.fromkeys(planned.seed for planned in plan.runs)),
        "processor_seconds": plan.processor_seconds,
        "n_episodes": evaluation.n_episodes,
        "eval_seed": evaluation.seed,
        "max_episode_steps": evaluation.max_episode_steps,
        "variants": {
            name: {
                "settings": dict(variant.settings),
                "data_options": dict(variant.data_options),
                "description": variant.description,
                "recipe": variant.recipe,
                "algorithm": variant.algorithm,
            }
            for name, variant in plan.variants.items()
        },
        "tasks": [_describe_task(plan, task) for task in plan.tasks],
        "published": None if published is None else asdict(published),
    }


def _describe_task(plan: Plan, planned: PlannedTask) -> dict[str, Any]:
    planned_runs = [each for each in plan.runs if each.task == planned.name]
    runs = [each.run for each in planned_runs]
    ours = [run for run in runs if not run.algorithm] or runs
    configs = [run.identity()["config"] for run in ours]
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
        "deterministic": all(run.evaluation.deterministic for run in runs),
        "updates": {each.variant: each.run.config.n_updates for each in planned_runs},
        "settings": {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)},
    }


def _describe_machine(plan: Plan) -> dict[str, Any]:
    sessions = [each.folder.read_json(each.folder.machine, []) for each in plan.runs]
    costs = []
    for task in plan.tasks:
        for variant in plan.variants:
            spent = [
                {name: sum(float(session[name]) for session in own) for name in _SPENT}
                for each, own in zip(plan.runs, sessions, strict=True)
                if (each.task, each.variant) == (task.name, variant) and each.folder.is_done
            ]
            spent = [each for each in spent if each["updates"]]
            if spent:
                costs.append({"task": task.name, "variant": variant, **_compute_costs(spent)})
    machines = []
    for session in itertools.chain.from_iterable(sessions):
        versions = ", ".join(f"{name} {each}" for name, each in session["versions"].items())
        threads = f"{session['threads']} thread{'' if session['threads'] == 1 else 's'}"
        where = f"{session['machine']}, device {session['device']}"
        if "precision" in session:
            where += f", {session['precision']}"
        machines.append(f"{where}, {threads} a training; {versions}")
    return {"costs": costs, "machines": list(dict.fromkeys(machines))}


_SPENT = ("updates", "train_seconds", "train_cpu_seconds", "evaluation_seconds")


def _compute_costs(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the medians over the trainings of a variant."""
    table = pd.DataFrame(spent)
    values = {
        "update_ms": 1e3 * table["train_seconds"] / table["updates"],
        "update_cpu_ms": 1e3 * table["train_cpu_seconds"] / table["updates"],
        "training_minutes": table["train_seconds"] / 60,
        "training_cpu_seconds": table["train_cpu_seconds"],
        "evaluation_minutes": table["evaluation_seconds"] / 60,
    }
    return {name: float(np.median(each)) for name, each in values.items()}


# --- Summary: what a report says -----------------------------------------------------------------

_MIN_TARGETS = 3  # of a rank correlation


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """Returns of the last weights of an arm for one target (seeds, episodes)."""

    returns: NDArray[np.float64]  # (seeds, episodes)

    @cached_property
    def estimate(self) -> Estimate:
        """The interquartile mean over seeds and episodes."""
        return estimate(self.returns)

    @property
    def seed_means(self) -> NDArray[np.float64]:
        """Each training's mean return (seeds,)."""
        return np.asarray(self.returns.mean(axis=1))


@dataclass(frozen=True, eq=False)
class ArmSummary:
    """A variant acting with one memory."""

    variant: str
    memory: str
    seeds: tuple[int, ...]
    targets: Mapping[float, TargetSummary]
    history: Mapping[int, Mapping[float, NDArray[np.float64]]]  # update, target: means (seeds,)
    losses: tuple[NDArray[np.float64], ...]  # by seed: update and loss (points, 2)
    rank_correlation: Estimate | None  # None with fewer than three targets in range
    distance: Estimate | None  # of asked and achieved, a share of the data's range; None without
    return_importance: float  # mean over trainings; NaN where not measured

    @property
    def name(self) -> str:
        """The variant and the memory."""
        return self.variant if self.memory == "none" else f"{self.variant}, {self.memory}"

    def improvement(self, other: ArmSummary, target: float) -> Estimate:
        """Return how often a training of this arm is above one of another, at a target."""
        pair = self.targets[target].returns, other.targets[target].returns
        return statistics.compute_probability_of_improvement(*pair)

    @property
    def last_scores(self) -> NDArray[np.float64]:
        """Each seed's mean return at its best target, last weights (seeds,)."""
        return np.asarray(np.max([t.seed_means for t in self.targets.values()], axis=0))

    @property
    def best_scores(self) -> NDArray[np.float64]:
        """Each seed's best mean return over targets and evaluations, as the paper's (seeds,)."""
        rows = [means for by_target in self.history.values() for means in by_target.values()]
        return np.asarray(np.max(rows, axis=0))


@dataclass(frozen=True, eq=False)
class TaskSummary:
    """The arms of one task."""

    task: Mapping[str, Any]  # an entry of "tasks" in settings.json
    arms: tuple[ArmSummary, ...]

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task["name"])

    @property
    def targets(self) -> tuple[float, ...]:
        """The returns asked for."""
        return tuple(self.task["target_returns"])

    @property
    def headline(self) -> float:
        """The target that variants are compared at."""
        return float(self.task["headline"])

    def winner(self, target: float) -> ArmSummary | None:
        """Return the arm whose interval is above all others at a target; None if none is."""
        arms = {arm.name: arm for arm in self.arms}
        estimates = {name: arm.targets[target].estimate for name, arm in arms.items()}
        return arms.get(statistics.find_winner(estimates) or "")

    def reference_arm(self, arm: ArmSummary) -> ArmSummary | None:
        """Return the first variant's arm of the same memory, or the very first arm."""
        first = self.arms[0]
        if arm is first:
            return None
        same = [a for a in self.arms if a.variant == first.variant and a.memory == arm.memory]
        return same[0] if same and same[0] is not arm else first

    def scores(self, arm: ArmSummary, when: str, is_normalized: bool) -> NDArray[np.float64]:
        """Return each seed's last or best score, of 100 where it is normalised (seeds, 1)."""
        scores = arm.last_scores if when == "last" else arm.best_scores
        if is_normalized:
            low, high = self.task["reference"]["minimum"], self.task["reference"]["maximum"]
            scores = compute_normalized_score(scores, low, high)
        return scores[:, None]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A variant acting with one memory, over all tasks."""

    arms: tuple[ArmSummary, ...]  # by task
    distance: float  # mean over tasks
    ratio: float  # of the distance to the first variant's
    improvement: Estimate | None  # over the first variant, each task at its headline target
    lowest_rank_correlation: float


@dataclass(frozen=True, eq=False)
class ExperimentSummary:
    """All of an experiment."""

    record: Record
    tasks: tuple[TaskSummary, ...]

    @property
    def n_done(self) -> int:
        """Trainings that are done."""
        return len(self.record.evaluations[["task", "variant", "seed"]].drop_duplicates())

    @property
    def n_evaluations(self) -> int:
        """Evaluations of each training."""
        return max(len(arm.history) for task in self.tasks for arm in task.arms)

    @cached_property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """Each arm over all tasks, those alone that every task has."""
        by_name = [{arm.name: arm for arm in task.arms} for task in self.tasks]
        common = [name for name in by_name[0] if all(name in arms for arms in by_name)]
        found: list[Aggregate] = []
        for name in common:
            arms = [each[name] for each in by_name]
            others = [t.reference_arm(arm) for t, arm in zip(self.tasks, arms, strict=True)]
            found.append(_aggregate(self.tasks, arms, others))
        return tuple(found)


def _aggregate(
    tasks: Sequence[TaskSummary], arms: Sequence[ArmSummary], others: Sequence[ArmSummary | None]
) -> Aggregate:
    """Join a variant's arms; ``others`` are the first variant's, None for its own."""
    own, first = (
        float(np.mean([a.distance.value if a.distance else np.nan for a in each]))
        for each in (arms, [o or a for a, o in zip(arms, others, strict=True)])
    )
    ratio = own / first if first else np.nan
    improvement = None
    if known := [o for o in others if o is not None]:
        pairs = [
            [arm.targets[task.headline].returns for task, arm in zip(tasks, each, strict=True)]
            for each in (arms, known)
        ]
        improvement = statistics.compute_probability_of_improvement(*pairs)
    correlations = [a.rank_correlation.value if a.rank_correlation else np.nan for a in arms]
    return Aggregate(tuple(arms), own, ratio, improvement, float(np.min(correlations)))


def summarize(record: Record) -> ExperimentSummary:
    """Compute the summary of a record."""
    try:
        types = {"seed": int, "update": int, "target_return": float, "mean": float}
        by_arm = record.evaluations.astype(types).groupby(["task", "variant"], sort=False)
        arms_rows = dict(iter(by_arm))
        losses: dict[Any, NDArray[np.float64]] = {}
        if not record.losses.empty:
            names = ["task", "variant", "seed"]
            curves = record.losses.astype({"seed": int}).groupby(names, sort=False)
            losses = {key: each[["update", "loss"]].to_numpy(np.float64) for key, each in curves}
        tasks = []
        for task in record.settings["tasks"]:
            arms = [
                _summarize_arm(task, rows, losses)
                for variant in record.settings["variants"]
                if (task["name"], variant) in arms_rows
                for _, rows in arms_rows[task["name"], variant].groupby("memory", sort=False)
            ]
            if arms:
                budget = record.settings.get("processor_seconds")
                tasks.append(TaskSummary({**task, "processor_seconds": budget}, tuple(arms)))
    except (KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"the files of the report do not fit together: {error!r}") from error
    if not tasks:
        raise ExperimentError("no training is done: there is nothing to report")
    return ExperimentSummary(record, tuple(tasks))


def _summarize_arm(
    task: Mapping[str, Any], rows: pd.DataFrame, losses: Mapping[Any, NDArray[np.float64]]
) -> ArmSummary:
    variant, memory = rows[["variant", "memory"]].iloc[0]
    seeds = tuple(map(int, rows["seed"].unique()))
    curves = tuple(losses.get((task["name"], variant, seed), np.empty((0, 2))) for seed in seeds)
    last = rows["update"].max()
    targets = {
        target: TargetSummary(np.stack([np.array(text.split(), float) for text in each["returns"]]))
        for target, each in rows[rows["update"] == last].groupby("target_return", sort=False)
    }
    history: dict[int, dict[float, NDArray[np.float64]]] = {}
    for (update, target), each in rows.groupby(["update", "target_return"], sort=False):
        means = targets[target].seed_means if update == last else each["mean"].to_numpy()
        history.setdefault(int(update), {})[target] = means
    within = task["targets_in_range"]
    correlation = distance = None
    span = task["highest_return"] - task["lowest_return"]
    if within and span > 0.0:
        means = np.stack([targets[each].seed_means for each in within])
        distance = statistics.compute_distance(within, means, span)
    if len(within) >= _MIN_TARGETS:
        achieved = [targets[each].returns for each in within]
        correlation = statistics.compute_rank_correlation(within, achieved)
    importance = pd.to_numeric(rows["return_importance"], errors="coerce").mean()
    fits = correlation, distance, float(importance)
    return ArmSummary(variant, memory, seeds, targets, history, curves, *fits)
