"""Writing a report: Markdown, pictures, CSV and JSON in one folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sb3_dmamba.experiments.grid.folder import write_text
from sb3_dmamba.experiments.planning import Plan
from sb3_dmamba.experiments.reports.costs import describe_machines, format_costs
from sb3_dmamba.experiments.reports.plots import plot_achieved, plot_learning, plot_profile
from sb3_dmamba.experiments.reports.summary import ExperimentSummary, TaskSummary, summarize
from sb3_dmamba.experiments.reports.tables import (
    format_achieved,
    format_last_and_best,
    format_published,
    format_seeds,
    format_table,
    to_csv,
    to_json,
)
from sb3_dmamba.experiments.reports.wording import describe_answer, format_count, format_number

__all__ = ["MACHINE_HEADING", "write_report"]

MACHINE_HEADING = "## Machine and time"
"""What is above it depends on nothing but the cells' results."""

_HOW_TO_READ = """\
Numbers are interquartile means over all seeds and episodes of the last weights, with 95 %
intervals (a bootstrap over seeds and the episodes within them, with Student's t for how few the
seeds are). A number is bold where its interval lies above all others of its column.
*Rank correlation* is Spearman's, between asked and achieved, over the targets within the data's
range. *Better than the first* is how often a training is above one of the first variant under the
same memory (of the first memory, for the first variant itself), asked {headlines}."""


def write_report(plan: Plan, out: Path, command: str) -> list[Path]:
    """Write the report of whatever is done.

    Args:
        plan: The experiment's cells.
        out: Folder to write into.
        command: What reproduces it.

    Returns:
        The files written, the report first.

    Raises:
        ExperimentError: No cell is done.
    """
    summary = summarize(plan)
    files = {
        "report.md": _compose(summary, command),
        "results.csv": to_csv(plan),
        "results.json": json.dumps(to_json(summary), indent=1, allow_nan=False) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    for task in summary.tasks:
        for name, plot in _PLOTS.items():
            plot(task, out / _picture(task, name))
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


_PLOTS = {"achieved": plot_achieved, "learning": plot_learning, "profile": plot_profile}


def _picture(task: TaskSummary, name: str) -> str:
    return f"{name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task.planned.name)}.png"


def _compose(summary: ExperimentSummary, command: str) -> str:
    plan = summary.plan
    headlines = ", ".join(
        f"{format_number(task.planned.headline)} on {task.planned.name}" for task in summary.tasks
    )
    sections = [
        f"# {plan.experiment.title}",
        plan.experiment.question,
        "## Answer",
        describe_answer(summary),
        "## Results",
        _HOW_TO_READ.format(headlines=headlines),
        *_compose_published(summary),
        *(part for task in summary.tasks for part in _compose_task(summary, task)),
        "## What was run",
        f"```bash\n{command}\n```",
        _describe_cells(summary),
        _format_variants(plan),
        _format_data(summary),
        MACHINE_HEADING,
        format_costs(plan),
        describe_machines(plan),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _compose_published(summary: ExperimentSummary) -> list[str]:
    published = summary.plan.experiment.published
    if published is None:
        return []
    unit = "normalised scores" if published.is_normalized else "raw scores"
    return [
        "### Beside what others report",
        f"Each training at its best target, {unit}: interquartile means over seeds with 95 % "
        f"intervals, of the last weights and of the best evaluation. {published.notes}",
        format_published(summary, published),
    ]


def _compose_task(summary: ExperimentSummary, task: TaskSummary) -> list[str]:
    sections = [f"### {task.planned.name}", format_achieved(task)]
    if summary.n_evaluations > 1:
        sections += [
            "The last weights, and the best of all evaluations (the paper's way, which is "
            "optimistic); each training at its best target.",
            format_last_and_best(task),
        ]
    sections += ["Mean return of each training, in the order of seeds:", format_seeds(task)]
    sections += [f"![{name}]({_picture(task, name)})" for name in _PLOTS]
    return sections


def _describe_cells(summary: ExperimentSummary) -> str:
    plan = summary.plan
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in plan.cells))
    evaluation = plan.cells[0].cell.evaluation
    n_evaluations = summary.n_evaluations
    return (
        f"Seeds {seeds}; {format_count(evaluation.n_episodes, 'episode')} of each target from "
        f"environment seed {evaluation.seed} on, the same for every training; "
        f"{format_count(n_evaluations, 'evaluation')} of each.{_describe_acting(plan)}"
    )


def _describe_acting(plan: Plan) -> str:
    """Say where actions are drawn and where episodes are cut, which is not so by default."""
    drawn = [each.task for each in plan.cells if not each.cell.evaluation.deterministic]
    names = " and ".join(dict.fromkeys(drawn))
    limit = plan.cells[0].cell.evaluation.max_episode_steps
    return (f" Actions are drawn on {names}." if drawn else "") + (
        "" if limit is None else f" Episodes are cut after {limit:,} steps."
    )


def _format_variants(plan: Plan) -> str:
    """Return what differs between variants, and what they share, by task."""
    rows = []
    for name, variant in plan.variants.items():
        settings = ", ".join(f"{key}={value}" for key, value in variant.settings.items())
        options = ", ".join(f"{key}={value}" for key, value in variant.data_options.items())
        rows.append([name, settings or "-", options or "-", variant.description or "-"])
    return format_table(["variant", "settings", "data", "notes"], rows)


def _format_data(summary: ExperimentSummary) -> str:
    rows = []
    parts = []
    for task in summary.tasks:
        planned = task.planned
        returns = planned.returns
        spread = f"{format_number(returns.min())} to {format_number(returns.max())}"
        rows.append(
            [
                planned.name,
                planned.source,
                f"{len(returns):,}",
                f"{planned.n_steps:,}",
                format_number(returns.mean()),
                spread,
                planned.fingerprint,
            ]
        )
        recipe = _shared_settings(summary.plan, planned.name)
        parts.append(f"* {planned.name}: {recipe}")
    header = ["task", "data", "episodes", "steps", "mean return", "returns", "fingerprint"]
    shared = "\n".join(parts)
    return f"{format_table(header, rows)}\n\nSettings that all variants share:\n\n{shared}"


def _shared_settings(plan: Plan, task: str) -> str:
    configs = [cell.cell.identity()["config"] for cell in plan.cells if cell.task == task]
    first = configs[0]
    same = [name for name in first if all(each.get(name) == first[name] for each in configs)]
    listed = ", ".join(f"{name}={first[name]}" for name in same)
    return f"{listed} (and the defaults of `DecisionMambaConfig`)"
