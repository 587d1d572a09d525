"""What the trainings cost: measured on one machine, and other on the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_dmamba.experiments.planning import Plan, PlannedCell
from sb3_dmamba.experiments.reports.tables import format_table

__all__ = ["describe_machines", "format_costs"]


def format_costs(plan: Plan) -> str:
    """Return the time of an update and of a training, by task and variant."""
    rows = []
    for task in plan.tasks:
        for variant in plan.variants:
            cells = [c for c in plan.cells if (c.task, c.variant) == (task.name, variant)]
            spent = [_sum(cell) for cell in cells if cell.folder.is_done]
            spent = [each for each in spent if each["updates"]]
            if not spent:
                continue
            milliseconds = [1e3 * each["train_seconds"] / each["updates"] for each in spent]
            processor = [1e3 * each["train_cpu_seconds"] / each["updates"] for each in spent]
            rows.append(
                [
                    task.name,
                    variant,
                    f"{np.median(milliseconds):.1f}",
                    f"{np.median(processor):.1f}",
                    f"{np.median([each['train_seconds'] for each in spent]) / 60:.1f}",
                    f"{np.median([each['evaluation_seconds'] for each in spent]) / 60:.1f}",
                ]
            )
    header = [
        "task", "variant", "ms an update", "of it processor", "min training", "min evaluation",
    ]  # fmt: skip
    return format_table(header, rows)


def describe_machines(plan: Plan) -> str:
    """Return what computed, and with which versions."""
    machines: dict[str, int] = {}
    for cell in plan.cells:
        for session in cell.folder.read_json(cell.folder.machine, []):
            versions = ", ".join(f"{name} {each}" for name, each in session["versions"].items())
            threads = session["threads"]
            text = (
                f"{session['machine']}, device {session['device']}, {threads} "
                f"thread{'' if threads == 1 else 's'} a training; {versions}"
            )
            machines[text] = machines.get(text, 0) + 1
    return "\n".join(f"* {text}" for text in machines)


def _sum(cell: PlannedCell) -> Mapping[str, float]:
    sessions: list[dict[str, Any]] = cell.folder.read_json(cell.folder.machine, [])
    names = ("updates", "train_seconds", "train_cpu_seconds", "evaluation_seconds")
    return {name: sum(float(session[name]) for session in sessions) for name in names}
