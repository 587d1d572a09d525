"""The report of an experiment: Markdown and pictures, made from the files of its record.

``python -m sb3_dmamba.experiments.report FOLDER...`` makes the reports in these folders again from
their CSV and JSON files.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.evaluation.statistics import Estimate, estimate
from sb3_dmamba.experiments.catalogue import list_measurements
from sb3_dmamba.experiments.plan import Plan
from sb3_dmamba.experiments.plots import plot_achieved, plot_learning, plot_profile
from sb3_dmamba.experiments.record import Record, read_settings
from sb3_dmamba.experiments.runs import write_text
from sb3_dmamba.experiments.summary import ArmSummary, ExperimentSummary, TaskSummary, summarize

__all__ = [
    "MACHINE_HEADING",
    "format_number",
    "format_table",
    "main",
    "rebuild_report",
    "write_report",
]

MACHINE_HEADING = "## Machine and time"
"""What is above it depends on nothing but the trainings' results."""

_HOW_TO_READ = """\
Numbers are interquartile means over all seeds and episodes of the last weights, with 95 %
intervals ({intervals}). A number is bold where its interval lies above all others of its column.
*Rank correlation* is Spearman's, between asked and achieved, over the targets within the data's
range. *Better than the first* is how often a training is above one of the first variant under the
same memory (of the first memory, for the first variant itself), asked {headlines}."""


_INTERVALS = """\
a bootstrap over seeds and the episodes within them, with Student's t for how few the
seeds are"""
_INTERVALS_OF_ONE_SEED = "percentiles of a bootstrap over the episodes of the one seed"


def write_report(plan: Plan, out: Path, command: str) -> list[Path]:
    """Write the files of whatever is done, and the report that is made from them.

    Args:
        plan: The experiment's trainings.
        out: Folder to write into.
        command: What reproduces it.

    Returns:
        The files written, the report first.

    Raises:
        ExperimentError: No training is done.
    """
    record = Record.from_plan(plan, command)
    out.mkdir(parents=True, exist_ok=True)
    files = record.write(out)
    return [_write_markdown(record, out), *files]


def rebuild_report(folder: Path) -> Path:
    """Make a report and its pictures again from the files beside it.

    Args:
        folder: The report's, with ``results.csv``, ``settings.json`` and, of an experiment that
            trains, ``losses.csv`` and ``machine.json``.

    Returns:
        The report.

    Raises:
        ExperimentError: A file is missing or damaged.
    """
    name = read_settings(folder)["experiment"]
    measurement = next((each for each in list_measurements() if each.name == name), None)
    if measurement is not None:
        return measurement.rebuild(folder)
    return _write_markdown(Record.read(folder), folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the reports in some folders again."""
    parser = argparse.ArgumentParser(description="Make reports again from their files.")
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    for folder in parser.parse_args(arguments).folders:
        print(rebuild_report(folder))  # noqa: T201


_PLOTS = {"achieved": plot_achieved, "learning": plot_learning, "profile": plot_profile}


def _write_markdown(record: Record, out: Path) -> Path:
    summary = summarize(record)
    for task in summary.tasks:
        for name, plot in _PLOTS.items():
            plot(task, out / _picture(task, name))
    write_text(out / "report.md", _compose(summary))
    return out / "report.md"


# --- Sections ------------------------------------------------------------------------------------


def _picture(task: TaskSummary, name: str) -> str:
    return f"{name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task.planned.name)}.png"


def _compose(summary: ExperimentSummary) -> str:
    settings, machine = summary.record.settings, summary.record.machine
    headlines = ", ".join(
        f"{format_number(task.planned.headline)} on {task.planned.name}" for task in summary.tasks
    )
    is_single = all(len(arm.seeds) == 1 for task in summary.tasks for arm in task.arms)
    intervals = _INTERVALS_OF_ONE_SEED if is_single else _INTERVALS
    sections = [
        f"# {settings['title']}",
        settings["question"],
        "## Answer",
        _describe_answer(summary),
        "## Results",
        _HOW_TO_READ.format(headlines=headlines, intervals=intervals),
        *_compose_published(summary),
        *(part for task in summary.tasks for part in _compose_task(summary, task)),
        "## What was run",
        f"```bash\n{settings['command']}\n```",
        _describe_trainings(summary),
        _format_variants(settings["variants"]),
        _format_data(summary),
        MACHINE_HEADING,
        _format_costs(machine["costs"]),
        "\n".join(f"* {each}" for each in machine["machines"]),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _compose_published(summary: ExperimentSummary) -> list[str]:
    published = summary.record.settings["published"]
    if published is None:
        return []
    unit = "normalised scores" if published["is_normalized"] else "raw scores"
    return [
        "### Beside what others report",
        f"Each training at its best target, {unit}: interquartile means over seeds with 95 % "
        f"intervals, of the last weights and of the best evaluation. {published['notes']}",
        _format_published(summary, published),
    ]


def _compose_task(summary: ExperimentSummary, task: TaskSummary) -> list[str]:
    sections = [f"### {task.planned.name}", _format_achieved(task)]
    if summary.n_evaluations > 1:
        sections += [
            "The last weights, and the best of all evaluations (the paper's way, which is "
            "optimistic); each training at its best target.",
            _format_last_and_best(task),
        ]
    sections += ["Mean return of each training, in the order of seeds:", _format_seeds(task)]
    sections += [f"![{name}]({_picture(task, name)})" for name in _PLOTS]
    return sections


def _describe_trainings(summary: ExperimentSummary) -> str:
    settings = summary.record.settings
    seeds = ", ".join(map(str, settings["seeds"]))
    return (
        f"Seeds {seeds}; {_format_count(settings['n_episodes'], 'episode')} of each target from "
        f"environment seed {settings['eval_seed']} on, the same for every training; "
        f"{_format_count(summary.n_evaluations, 'evaluation')} of each.{_describe_acting(settings)}"
    )


def _describe_acting(settings: Mapping[str, Any]) -> str:
    """Say where actions are drawn and where episodes are cut, which is not so by default."""
    drawn = " and ".join(each["name"] for each in settings["tasks"] if not each["deterministic"])
    limit = settings["max_episode_steps"]
    return (f" Actions are drawn on {drawn}." if drawn else "") + (
        "" if limit is None else f" Episodes are cut after {limit:,} steps."
    )


def _format_variants(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what differs between variants."""
    rows = [
        [
            name,
            _list_settings(variant["settings"]) or "-",
            _list_settings(variant["data_options"]) or "-",
            variant["description"] or "-",
        ]
        for name, variant in variants.items()
    ]
    return format_table(["variant", "settings", "data", "notes"], rows)


def _format_data(summary: ExperimentSummary) -> str:
    """Return what each task's data is, and what its variants share."""
    rows = []
    parts = []
    for planned in (task.planned for task in summary.tasks):
        lowest, highest = map(format_number, (planned.lowest_return, planned.highest_return))
        rows.append(
            [
                planned.name,
                planned.source,
                f"{planned.n_episodes:,}",
                f"{planned.n_steps:,}",
                format_number(planned.mean_return),
                f"{lowest} to {highest}",
                planned.fingerprint,
            ]
        )
        shared = _list_settings(planned.settings)
        parts.append(f"* {planned.name}: {shared} (and the defaults of `DecisionMambaConfig`)")
    header = ["task", "data", "episodes", "steps", "mean return", "returns", "fingerprint"]
    listed = "\n".join(parts)
    return f"{format_table(header, rows)}\n\nSettings that all variants share:\n\n{listed}"


def _list_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _format_costs(costs: Sequence[Mapping[str, Any]]) -> str:
    """Return the time of an update and of a training, by task and variant."""
    header = [
        "task", "variant", "ms an update", "of it processor", "min training", "min evaluation",
    ]  # fmt: skip
    names = ("update_ms", "update_cpu_ms", "training_minutes", "evaluation_minutes")
    rows = [[c["task"], c["variant"], *(f"{c[name]:.1f}" for name in names)] for c in costs]
    return format_table(header, rows)


# --- Tables --------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _format_achieved(task: TaskSummary) -> str:
    """Return what each arm achieved for each target: interquartile mean and interval."""
    targets = task.planned.target_returns
    header = ["variant", "memory", *(f"asked {format_number(target)}" for target in targets)]
    winners = {target: task.winner(target) for target in targets}
    rows = []
    for arm in task.arms:
        row = [arm.variant, arm.memory]
        for target in targets:
            text = _format_estimate(arm.targets[target].estimate)
            row.append(f"**{text}**" if winners[target] is arm else text)
        correlation, other = arm.rank_correlation, task.reference_arm(arm)
        row.append("-" if correlation is None else _format_estimate(correlation))
        chance = None if other is None else arm.improvement(other, task.planned.headline)
        row.append("-" if chance is None else _format_estimate(chance))
        rows.append(row)
    return format_table([*header, "rank correlation", "better than the first"], rows)


def _format_seeds(task: TaskSummary) -> str:
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


def _format_last_and_best(task: TaskSummary) -> str:
    """Return the last and the best score of the trainings, each at its best target."""
    has_reference = task.planned.reference is not None
    rows = []
    for arm in task.arms:
        row = [arm.variant, arm.memory]
        for scores in (arm.last_scores, arm.best_scores):
            shown = task.normalize(scores) if has_reference else scores
            row.append(_format_estimate(estimate(shown[:, None])))
        rows.append(row)
    unit = " (normalised)" if has_reference else ""
    return format_table(["variant", "memory", f"last{unit}", f"best{unit}"], rows)


def _format_published(summary: ExperimentSummary, published: Mapping[str, Any]) -> str:
    """Return the last and best scores of the first memory's arms beside what others report."""
    scores_of_others = published["scores"]
    others = list(dict.fromkeys(name for row in scores_of_others.values() for name in row))
    variants = list(summary.record.settings["variants"])
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
                shown = task.normalize(scores) if published["is_normalized"] else scores
                strata.setdefault(f"{name}, {when}", []).append(shown[:, None])
                row.append(_format_estimate(estimate(shown[:, None])))
        rows.append(
            [*row, *(scores_of_others.get(task.planned.name, {}).get(o, "-") for o in others)]
        )
    if published["is_normalized"] and len(summary.tasks) > 1:
        together = [estimate(strata[column]) if column in strata else None for column in header[1:]]
        cells = ["-" if value is None else _format_estimate(value) for value in together]
        rows.append(["all (interquartile mean)", *cells, *("" for _ in others)])
    return format_table([*header, *others], rows)


# --- Words ---------------------------------------------------------------------------------------


def format_number(value: float) -> str:
    """Return a number with as many digits as it bears: 2,484, 24.8, 0.61."""
    if value != value:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _format_estimate(value: Estimate) -> str:
    """Return a value and its interval."""
    if value.low != value.low:
        return format_number(value.value)
    return f"{format_number(value.value)} [{format_number(value.low)}, {format_number(value.high)}]"


def _format_count(n: int, what: str) -> str:
    """Return a number of things, in the plural where there are several."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _describe_answer(summary: ExperimentSummary) -> str:
    """Return a paragraph a task: what was compared, and whether the intervals are separate."""
    paragraphs = [_describe_task(task) for task in summary.tasks]
    if not summary.is_complete:
        done, planned = summary.n_done, summary.n_planned
        paragraphs.insert(0, f"{done} of {planned} trainings are done; these are their figures.")
    paragraphs.append(
        "An interval holds for this recipe, data and number of updates; overlapping intervals "
        "leave open which is better, and do not show that the two are alike."
    )
    return "\n\n".join(paragraphs)


def _describe_task(task: TaskSummary) -> str:
    target = task.planned.headline
    first = task.arms[0]
    own = first.targets[target]
    episodes = own.returns.shape[1]
    sentences = [
        f"**{task.planned.name}**, asked {format_number(target)}"
        f"{_why_headline(task)}: {_name(first)} reached {_describe_estimate(own.estimate)}, "
        f"over {_format_count(len(first.seeds), 'seed')} of {_format_count(episodes, 'episode')}."
    ]
    for arm in task.arms[1:]:
        other = task.reference_arm(arm)
        assert other is not None
        sentences.append(_compare(arm, other, target))
    sentences.append(_describe_following(task))
    return " ".join(filter(None, sentences))


def _why_headline(task: TaskSummary) -> str:
    if not task.planned.targets_in_range:
        return " (the data reaches none of the targets)"
    return " (the highest target that the data reaches)"


def _name(arm: ArmSummary) -> str:
    return f"`{arm.variant}` in {arm.memory} memory"


def _describe_estimate(value: Estimate) -> str:
    if value.low != value.low:
        return f"an interquartile mean of {format_number(value.value)}"
    ends = f"{format_number(value.low)} to {format_number(value.high)}"
    kind = "95 % interval" if value.n_seeds > 1 else "95 % interval over episodes alone"
    return f"an interquartile mean of {format_number(value.value)} ({kind} {ends})"


def _compare(arm: ArmSummary, other: ArmSummary, target: float) -> str:
    ours, theirs = arm.targets[target].estimate, other.targets[target].estimate
    against = f"`{other.variant}`" if other.variant != arm.variant else f"{other.memory} memory"
    if min(ours.n_seeds, theirs.n_seeds) < 2:
        relation = f"one seed cannot tell it from {against}"
    elif ours.is_above(theirs):
        relation = f"above {against}, the intervals separate"
    elif theirs.is_above(ours):
        relation = f"below {against}, the intervals separate"
    else:
        relation = f"not told apart from {against}, the intervals overlap"
    chance = arm.improvement(other, target)
    pairs = len(arm.seeds) * len(other.seeds)
    return (
        f"{_name(arm)}: {_describe_estimate(ours)}; {relation} (its training is the better one in "
        f"{chance.value * pairs:g} of {pairs} pairs of seeds)."
    )


def _describe_following(task: TaskSummary) -> str:
    targets = task.planned.targets_in_range
    found = [(arm, arm.rank_correlation) for arm in task.arms]
    known = [f"{_name(arm)} {value.value:.2f}" for arm, value in found if value is not None]
    if not known:
        return ""
    return (
        f"Rank correlation of asked and achieved over the {len(targets)} targets within the "
        f"data's range: {', '.join(known)}."
    )


if __name__ == "__main__":
    main()
