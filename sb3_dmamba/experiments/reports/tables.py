"""The report's tables: Markdown for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.experiments.catalogue.experiment import Published
from sb3_dmamba.experiments.planning import Plan
from sb3_dmamba.experiments.reports.summary import ExperimentSummary, TaskSummary
from sb3_dmamba.experiments.reports.wording import format_estimate, format_number
from sb3_dmamba.experiments.statistics import compute_interquartile_mean, estimate

__all__ = [
    "format_achieved",
    "format_last_and_best",
    "format_published",
    "format_seeds",
    "format_table",
    "to_csv",
    "to_json",
]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def format_achieved(task: TaskSummary) -> str:
    """Return what each arm achieved for each target: interquartile mean and interval."""
    targets = task.planned.target_returns
    header = ["variant", "memory", *(f"asked {format_number(target)}" for target in targets)]
    winners = {target: task.winner(target) for target in targets}
    rows = []
    for arm in task.arms:
        row = [arm.variant, arm.memory]
        for target in targets:
            text = format_estimate(arm.targets[target].estimate)
            row.append(f"**{text}**" if winners[target] is arm else text)
        correlation, other = arm.rank_correlation, task.reference_arm(arm)
        row.append("-" if correlation is None else format_estimate(correlation))
        chance = None if other is None else arm.improvement(other, task.planned.headline)
        row.append("-" if chance is None else format_estimate(chance))
        rows.append(row)
    return format_table([*header, "rank correlation", "better than the first"], rows)


def format_seeds(task: TaskSummary) -> str:
    """Return each training's mean return, one after the other in the order of seeds."""
    targets = task.planned.target_returns
    header = ["variant", "memory", *(f"asked {format_number(target)}" for target in targets)]
    rows = [
        [
            arm.variant,
            arm.memory,
            *(", ".join(map(format_number, arm.targets[t].seed_means.tolist())) for t in targets),
        ]
        for arm in task.arms
    ]
    return format_table(header, rows)


def format_last_and_best(task: TaskSummary) -> str:
    """Return the last and the best score of the trainings, each at its best target."""
    has_reference = task.planned.task.reference is not None
    rows = []
    for arm in task.arms:
        row = [arm.variant, arm.memory]
        for scores in (arm.last_scores, arm.best_scores):
            shown = task.normalize(scores) if has_reference else scores
            row.append(format_estimate(estimate(shown[:, None])))
        rows.append(row)
    unit = " (normalised)" if has_reference else ""
    return format_table(["variant", "memory", f"last{unit}", f"best{unit}"], rows)


def format_published(summary: ExperimentSummary, published: Published) -> str:
    """Return the last and best scores of the first memory's arms beside what others report."""
    others = list(dict.fromkeys(name for row in published.scores.values() for name in row))
    variants = list(summary.plan.variants)
    header = ["task", *(f"{name}, {when}" for name in variants for when in ("last", "best"))]
    rows = []
    strata: dict[str, list[NDArray[np.float64]]] = {}
    for task in summary.tasks:
        row = [task.planned.name]
        firsts = {arm.variant: arm for arm in reversed(task.arms)}
        for name in variants:
            arm = firsts.get(name)
            for when in ("last", "best"):
                if arm is None:
                    row.append("-")
                    continue
                scores = arm.last_scores if when == "last" else arm.best_scores
                shown = task.normalize(scores) if published.is_normalized else scores
                strata.setdefault(f"{name}, {when}", []).append(shown[:, None])
                row.append(format_estimate(estimate(shown[:, None])))
        rows.append(
            [*row, *(published.scores.get(task.planned.name, {}).get(o, "-") for o in others)]
        )
    if published.is_normalized and len(summary.tasks) > 1:
        together = [estimate(strata[column]) if column in strata else None for column in header[1:]]
        cells = ["-" if value is None else format_estimate(value) for value in together]
        rows.append(["all (interquartile mean)", *cells, *("" for _ in others)])
    return format_table([*header, *others], rows)


def to_csv(plan: Plan) -> str:
    """Return a row for each training, evaluation, memory and target."""
    text = io.StringIO()
    columns = (
        "task", "variant", "memory", "seed", "update", "target_return", "n_episodes", "mean",
        "interquartile_mean", "std", "min", "max", "mean_length",
    )  # fmt: skip
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for planned in plan.cells:
        if not planned.folder.is_done:
            continue
        for each in planned.folder.read_result().evaluations:
            returns = each.returns
            numbers = (
                returns.mean(),
                compute_interquartile_mean(returns),
                returns.std(ddof=1) if len(returns) > 1 else np.nan,
                returns.min(),
                returns.max(),
                each.lengths.mean(),
            )
            names = (planned.task, planned.variant, each.memory, planned.seed, each.update)
            shown = [f"{float(number):.8g}" for number in numbers]
            writer.writerow([*names, f"{each.target_return:g}", len(returns), *shown])
    return text.getvalue()


def to_json(summary: ExperimentSummary) -> dict[str, Any]:
    """Return every figure of the report, and the episodes of the last weights."""
    plan = summary.plan
    return {
        "format": 1,
        "experiment": plan.experiment.name,
        "question": plan.experiment.question,
        "n_cells": len(plan.cells),
        "n_done": summary.n_done,
        "cells": [
            {"task": c.task, "variant": c.variant, "seed": c.seed, "key": c.cell.key}
            for c in plan.cells
        ],
        "tasks": [_task_to_json(task) for task in summary.tasks],
    }


def _task_to_json(task: TaskSummary) -> dict[str, Any]:
    planned = task.planned
    returns = planned.returns
    return {
        "task": planned.name,
        "env_id": planned.task.env_id,
        "data": {
            "source": planned.source,
            "fingerprint": planned.fingerprint,
            "n_episodes": len(returns),
            "n_steps": planned.n_steps,
            "mean_return": float(returns.mean()),
            "lowest_return": float(returns.min()),
            "highest_return": float(returns.max()),
        },
        "headline_target": planned.headline,
        "arms": [_arm_to_json(task, index) for index in range(len(task.arms))],
    }


def _arm_to_json(task: TaskSummary, index: int) -> dict[str, Any]:
    arm = task.arms[index]
    other = task.reference_arm(arm)
    correlation = arm.rank_correlation
    headline = task.planned.headline
    targets = {}
    for target, each in arm.targets.items():
        winner = task.winner(target)
        targets[f"{target:g}"] = {
            "interquartile_mean": each.estimate.to_dict(),
            "seed_means": _round(each.seed_means),
            "mean_length": each.mean_length,
            "is_winner": winner is arm,
            "returns": [_round(row) for row in each.returns],
        }
    return {
        "variant": arm.variant,
        "memory": arm.memory,
        "seeds": list(arm.seeds),
        "n_parameters": arm.n_parameters,
        "rank_correlation": None if correlation is None else correlation.to_dict(),
        "compared_with": None if other is None else other.name,
        "probability_of_improvement": (
            None if other is None else arm.improvement(other, headline).to_dict()
        ),
        "last_scores": _round(arm.last_scores),
        "best_scores": _round(arm.best_scores),
        "targets": targets,
    }


def _round(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in np.asarray(values).tolist()]
