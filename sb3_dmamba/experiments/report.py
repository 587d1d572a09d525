"""Report of an experiment: Markdown and pictures, made from the files of its record.

``python -m sb3_dmamba.experiments.report FOLDER...`` makes the reports in these folders again from
their CSV and JSON files.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.evaluation.statistics import Estimate, compute_interquartile_mean, estimate
from sb3_dmamba.experiments import record as records
from sb3_dmamba.experiments.catalogue import list_measurements
from sb3_dmamba.experiments.plan import Plan
from sb3_dmamba.experiments.record import ArmSummary, ExperimentSummary, Record, TaskSummary
from sb3_dmamba.experiments.runs import write_text
from sb3_dmamba.experiments.statistics import compute_performance_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MACHINE_HEADING = "## Machine and time"
"""The sections above it depend on nothing but the runs' results."""

_HOW_TO_READ = """\
Numbers are interquartile means over all seeds and episodes of the last weights, with 95 %
intervals ({intervals}). A number is bold where its interval lies above all others of its column.
*Rank correlation* is Spearman's, between asked and achieved, over the targets within the data's
range. *Better than the first* is how often a training is above one of the first variant under the
same memory (of the first memory, for the first variant itself), asked {headlines}.
*Distance* is between the return asked for and a training's mean return, averaged over the targets
within the data's range and over trainings, in percent of that range. *Spread between seeds* is the
standard deviation of the trainings' mean returns, at the target of the comparison."""
_HOW_TO_READ_IMPORTANCE = """ *Return's importance* is the loss
with returns-to-go permuted among windows, as a multiple of the loss: at 1 the return says nothing
about the data's actions that the rest of the window does not."""


_INTERVALS = (
    "a bootstrap over seeds and the episodes within them, with Student's t for how few the\n"
    "seeds are"
)
_INTERVALS_OF_ONE_SEED = "percentiles of a bootstrap over the episodes of the one seed"


def write_report(plan: Plan, out: Path, command: str) -> list[Path]:
    """Write the record and the report of the runs that are done; return the files, report first."""
    record = Record.from_plan(plan, command)
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
    name = records.read_settings(folder)["experiment"]
    for measurement in list_measurements():
        if measurement.name == name:
            return measurement.rebuild(folder)
    return _write_markdown(Record.read(folder), folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the reports in some folders again."""
    parser = argparse.ArgumentParser(description="Make reports again from their files.")
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    for folder in parser.parse_args(arguments).folders:
        print(rebuild_report(folder))  # noqa: T201


def _write_markdown(record: Record, out: Path) -> Path:
    summary = records.summarize(record)
    for task in summary.tasks:
        for name, plot in _PLOTS.items():
            plot(task, out / _picture(task, name))
    write_text(out / "report.md", _compose(summary))
    return out / "report.md"


def _picture(task: TaskSummary, name: str) -> str:
    return f"{name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task.name)}.png"


# --- Sections ------------------------------------------------------------------------------------

_MAX_NAMED_TASKS = 3


def compose_title(settings: Mapping[str, Any]) -> str:
    """Return a report's title: experiment and datasets, such as "Mixers: Pendulum, CartPole"."""
    experiment = settings["experiment"].replace("-", " ").capitalize()
    tasks = settings.get("tasks", [])
    names = [_task_title(task["name"], task["env_id"]) for task in tasks]
    if len(names) > _MAX_NAMED_TASKS:
        names = [f"{len(names)} datasets"]
    return f"{experiment}: {', '.join(names)}" if names else experiment


def _task_title(name: str, env_id: str) -> str:
    """Write a task's name as its environment's is written: CartPole for cartpole."""
    environment = re.sub(r".*/|-v\d+$", "", env_id)
    if name.lower().startswith(environment.lower()):
        return environment + name[len(environment) :]
    return name[0].upper() + name[1:]


def _compose(summary: ExperimentSummary) -> str:
    settings, machine = summary.record.settings, summary.record.machine
    headlines = ", ".join(f"{format_number(t.headline)} on {t.name}" for t in summary.tasks)
    is_single = all(len(arm.seeds) == 1 for task in summary.tasks for arm in task.arms)
    intervals = _INTERVALS_OF_ONE_SEED if is_single else _INTERVALS
    how_to_read = _HOW_TO_READ.format(headlines=headlines, intervals=intervals)
    if any(map(_has_importance, summary.tasks)):
        how_to_read += _HOW_TO_READ_IMPORTANCE
    sections = [
        f"# {compose_title(settings)}",
        f"**{settings['title']}.** {settings['question']}",
        "## Answer",
        *_describe_answer(summary),
        "## Results",
        how_to_read,
        *_compose_published(summary),
        *_compose_aggregate(summary),
        *(part for task in summary.tasks for part in _compose_task(summary, task)),
        "## What was run",
        f"```bash\n{settings['command']}\n```",
        _describe_trainings(summary),
        _format_variants(settings["variants"]),
        *_compose_data(summary),
        MACHINE_HEADING,
        _format_costs(machine["costs"]),
        "\n".join(f"* {each}" for each in machine["machines"]),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _compose_published(summary: ExperimentSummary) -> list[str]:
    published = summary.record.settings["published"]
    if published is None:
        return []
    text = (
        f"Each training at its best target, {'normalised' if published['is_normalized'] else 'raw'}"
        " scores: interquartile means over seeds with 95 % intervals, of the last weights and of "
        f"the best evaluation. {published['notes']}"
    )
    return ["### Beside what others report", text, _format_published(summary, published)]


def _compose_aggregate(summary: ExperimentSummary) -> list[str]:
    if len(summary.tasks) < 2:
        return []
    text = (
        "Distances in percent of each dataset's range, their mean, and its ratio to the first "
        "variant's under the same memory; how often a training is above one of the first variant, "
        "averaged over the datasets at their targets of the comparison; the lowest of the rank "
        "correlations."
    )
    return ["### All tasks", text, _format_aggregates(summary)]


def _compose_task(summary: ExperimentSummary, task: TaskSummary) -> list[str]:
    sections = [f"### {task.name}", _format_achieved(task)]
    if summary.n_evaluations > 1:
        sections += [
            "The last weights, and the best of all evaluations (the paper's way, which is "
            "optimistic); each training at its best target.",
            _format_last_and_best(task),
        ]
    sections += [_format_distances(task)]
    sections += ["Mean return of each training, in the order of seeds:", _format_seeds(task)]
    sections += [f"![{name}]({_picture(task, name)})" for name in _PLOTS]
    return sections


def _describe_trainings(summary: ExperimentSummary) -> str:
    settings = summary.record.settings
    seeds = ", ".join(map(str, settings["seeds"]))
    drawn = " and ".join(each["name"] for each in settings["tasks"] if not each["deterministic"])
    limit = settings["max_episode_steps"]
    budget = settings.get("processor_seconds")
    return (
        f"Seeds {seeds}; {_count(settings['n_episodes'], 'episode')} of each target from "
        f"environment seed {settings['eval_seed']} on, the same for every training; "
        f"{_count(summary.n_evaluations, 'evaluation')} of each."
        + (f" Actions are drawn on {drawn}." if drawn else "")
        + ("" if limit is None else f" Episodes are cut after {limit:,} steps.")
        + ("" if budget is None else f" {_describe_budget(summary, budget)}")
    )


def _describe_budget(summary: ExperimentSummary, seconds: float) -> str:
    bought = "; ".join(
        f"on {task.name} "
        + ", ".join(f"{n:,} for {name}" for name, n in task.task["updates"].items())
        for task in summary.tasks
    )
    return (
        f"Each training has {_count_seconds(seconds)} of processor time, by the cost of an update "
        f"that was measured beforehand on one thread. This buys these updates: {bought}."
    )


def _count_seconds(seconds: float) -> str:
    return f"{seconds:g} second{'' if seconds == 1 else 's'}"


def _compose_data(summary: ExperimentSummary) -> list[str]:
    tasks = [each.task for each in summary.tasks]
    rows, shared = [], []
    for task in tasks:
        counts = [f"{task[name]:,}" for name in ("n_episodes", "n_steps")]
        mean, low, high = (
            format_number(task[f"{n}_return"]) for n in ("mean", "lowest", "highest")
        )
        data = [*counts, mean, f"{low} to {high}", task["fingerprint"]]
        rows.append([task["name"], task["source"], *data])
        settings = _list_settings(task["settings"])
        shared.append(f"* {task['name']}: {settings} (and the defaults of `DecisionMambaConfig`)")
    header = ["task", "data", "episodes", "steps", "mean return", "returns", "fingerprint"]
    return [format_table(header, rows), "Settings that all variants share:", "\n".join(shared)]


# --- Answer --------------------------------------------------------------------------------------


def _describe_answer(summary: ExperimentSummary) -> list[str]:
    """Return a paragraph a task: the comparisons, and whether the intervals are separate."""
    done, planned = summary.n_done, summary.record.settings["n_trainings"]
    incomplete = f"{done} of {planned} trainings are done; these are their figures."
    caution = (
        "An interval holds for this recipe, data and number of updates; overlapping intervals "
        "leave open which is better, and do not show that the two are alike."
    )
    return ["" if done == planned else incomplete, *map(_describe_task, summary.tasks), caution]


def _describe_task(task: TaskSummary) -> str:
    target, first = task.headline, task.arms[0]
    own = first.targets[target]
    within = task.task["targets_in_range"]
    why = "highest target that the data reaches" if within else "data reaches none of the targets"
    sentences = [
        f"**{task.name}**, asked {format_number(target)} (the {why}): {_name(first)} reached "
        f"{_describe_estimate(own.estimate)}, over {_count(len(first.seeds), 'seed')} of "
        f"{_count(own.returns.shape[1], 'episode')}."
    ]
    for arm in task.arms[1:]:
        other = task.reference_arm(arm)
        assert other is not None
        sentences.append(_compare(arm, other, target))
    known = [
        f"{_name(arm)} {arm.rank_correlation.value:.2f}"
        for arm in task.arms
        if arm.rank_correlation and arm.rank_correlation.value == arm.rank_correlation.value
    ]
    if known:
        sentences.append(
            f"Rank correlation of asked and achieved over the {len(within)} targets within the "
            f"data's range: {', '.join(known)}."
        )
    return " ".join(sentences)


def _name(arm: ArmSummary) -> str:
    return f"`{arm.variant}`" + ("" if arm.memory == "none" else f" in {arm.memory} memory")


def _describe_estimate(value: Estimate) -> str:
    mean = f"an interquartile mean of {format_number(value.value)}"
    if value.low != value.low:
        return mean
    kind = "95 % interval" if value.n_seeds > 1 else "95 % interval over episodes alone"
    return f"{mean} ({kind} {format_number(value.low)} to {format_number(value.high)})"


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
    pairs = len(arm.seeds) * len(other.seeds)
    n_better = arm.improvement(other, target).value * pairs
    return (
        f"{_name(arm)}: {_describe_estimate(ours)}; {relation} (its training is the better one in "
        f"{n_better:g} of {pairs} pairs of seeds)."
    )


# --- Tables --------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(texts) + " |" for texts in lines)


def format_number(value: float) -> str:
    """Return a number with about three digits: 2,484, 24.8, 0.61."""
    if value != value:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _format_estimate(value: Estimate | None) -> str:
    if value is None:
        return "-"
    interval = f" [{format_number(value.low)}, {format_number(value.high)}]"
    return format_number(value.value) + (interval if value.low == value.low else "")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _list_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _format_achieved(task: TaskSummary) -> str:
    """Return what each arm achieved for each target: interquartile mean and interval."""
    header = ["variant", "memory", *(f"asked {format_number(target)}" for target in task.targets)]
    winners = {target: task.winner(target) for target in task.targets}
    rows = []
    for arm in task.arms:
        row = [arm.variant, arm.memory]
        for target in task.targets:
            text = _format_estimate(arm.targets[target].estimate)
            row.append(f"**{text}**" if winners[target] is arm else text)
        other = task.reference_arm(arm)
        chance = None if other is None else arm.improvement(other, task.headline)
        rows.append([*row, _format_estimate(arm.rank_correlation), _format_estimate(chance)])
    return format_table([*header, "rank correlation", "better than the first"], rows)


def _format_distances(task: TaskSummary) -> str:
    """Return each arm's distance of asked and achieved, and the spread between its trainings."""
    rows = []
    for arm in task.arms:
        spread = (
            float(np.std(means, ddof=1)) if len(means := _headline_means(task, arm)) > 1 else np.nan
        )
        rows.append([arm.variant, arm.memory, _format_percent(arm.distance), format_number(spread)])
    target = format_number(task.headline)
    header = ["variant", "memory", "distance (%)", f"spread between seeds, asked {target}"]
    if _has_importance(task):
        header.append("return's importance")
        for row, arm in zip(rows, task.arms, strict=True):
            row.append(format_number(arm.return_importance))
    return format_table(header, rows)


def _has_importance(task: TaskSummary) -> bool:
    return not all(np.isnan(arm.return_importance) for arm in task.arms)


def _headline_means(task: TaskSummary, arm: ArmSummary) -> NDArray[np.float64]:
    return arm.targets[task.headline].seed_means


def _format_percent(value: Estimate | None) -> str:
    if value is None:
        return "-"
    ends = {name: 100 * getattr(value, name) for name in ("value", "low", "high")}
    return _format_estimate(dataclasses.replace(value, **ends))


def _format_aggregates(summary: ExperimentSummary) -> str:
    """Return each arm over all tasks."""
    header = ["variant", "memory", *(task.name for task in summary.tasks), "mean", "ratio"]
    rows = []
    for each in summary.aggregates:
        distances = [arm.distance.value if arm.distance else np.nan for arm in each.arms]
        shown = [format_number(100 * d) for d in (*distances, each.distance)]
        numbers = format_number(each.ratio), _format_estimate(each.improvement)
        arm = each.arms[0]
        rows.append(
            [arm.variant, arm.memory, *shown, *numbers, format_number(each.lowest_rank_correlation)]
        )
    return format_table([*header, "better than the first", "lowest rank correlation"], rows)


def _format_seeds(task: TaskSummary) -> str:
    """Return the mean returns of each arm's trainings, in the order of seeds."""
    header = ["variant", "memory", *(f"asked {format_number(target)}" for target in task.targets)]
    rows = []
    for arm in task.arms:
        means = [arm.targets[target].seed_means.tolist() for target in task.targets]
        rows.append([arm.variant, arm.memory, *(", ".join(map(format_number, m)) for m in means)])
    return format_table(header, rows)


def _format_last_and_best(task: TaskSummary) -> str:
    """Return the last and the best score of the trainings, each at its best target."""
    is_normalized = task.task["reference"] is not None
    rows = []
    for arm in task.arms:
        scores = [task.scores(arm, when, is_normalized) for when in ("last", "best")]
        rows.append([arm.variant, arm.memory, *(_format_estimate(estimate(s)) for s in scores)])
    unit = " (normalised)" if is_normalized else ""
    return format_table(["variant", "memory", f"last{unit}", f"best{unit}"], rows)


def _format_published(summary: ExperimentSummary, published: Mapping[str, Any]) -> str:
    """Return the last and best scores of the first memory's arms beside what others report."""
    scores_of_others = published["scores"]
    others = list(dict.fromkeys(name for row in scores_of_others.values() for name in row))
    variants = list(summary.record.settings["variants"])
    columns = [(variant, when) for variant in variants for when in ("last", "best")]
    strata: dict[tuple[str, str], list[NDArray[np.float64]]] = {column: [] for column in columns}
    rows = []
    for task in summary.tasks:
        first_memory = {arm.variant: arm for arm in reversed(task.arms)}
        row = [task.name]
        for variant, when in columns:
            arm = first_memory.get(variant)
            if arm is None:
                row.append("-")
                continue
            scores = task.scores(arm, when, published["is_normalized"])
            strata[variant, when].append(scores)
            row.append(_format_estimate(estimate(scores)))
        rows.append([*row, *(scores_of_others.get(task.name, {}).get(o, "-") for o in others)])
    if published["is_normalized"] and len(summary.tasks) > 1:
        pooled = [estimate(strata[each]) if strata[each] else None for each in columns]
        texts = map(_format_estimate, pooled)
        rows.append(["all (interquartile mean)", *texts, *("" for _ in others)])
    header = ["task", *(f"{variant}, {when}" for variant, when in columns), *others]
    return format_table(header, rows)


def _format_variants(variants: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, variant in variants.items():
        recipe, algorithm = variant.get("recipe"), variant.get("algorithm")
        base = [f"recipe {recipe}"] if recipe else [f"`{algorithm}`"] if algorithm else []
        settings = ", ".join([*base, *filter(None, [_list_settings(variant["settings"])])])
        texts = settings, _list_settings(variant["data_options"]), variant["description"]
        rows.append([name, *(text or "-" for text in texts)])
    return format_table(["variant", "settings", "data", "notes"], rows)


def _format_costs(costs: Sequence[Mapping[str, Any]]) -> str:
    """Return the time of an update and of a training, by task and variant."""
    columns = {
        "ms an update": "update_ms",
        "of it processor": "update_cpu_ms",
        "min training": "training_minutes",
        "processor s training": "training_cpu_seconds",
        "min evaluation": "evaluation_minutes",
    }
    # older files have fewer
    columns = {k: name for k, name in columns.items() if all(name in cost for cost in costs)}
    rows = [[c["task"], c["variant"], *(f"{c[n]:.1f}" for n in columns.values())] for c in costs]
    return format_table(["task", "variant", *columns], rows)


# --- Pictures ------------------------------------------------------------------------------------

# Okabe and Ito's palette, told apart by colour-blind readers too; a colour a variant
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#999999", "#882255", "#44AA99"),  # grey, and two of Tol's
)
_LINE_STYLES = {"window": "-", "stream": "--"}
_DATA_COLOUR = "#E69F00"
_LOG_RANGE = 20.0  # targets spread over more than this factor are drawn at equal distances
_N_THRESHOLDS = 101


def new_figure(width: float = 7.5, height: float = 4.6) -> tuple[Figure, Axes]:
    """Return a figure and its axes, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    """Add title and legend, and write the picture; the same figure gives the same bytes."""
    axes.set_title(title, loc="left", fontsize=9, color="0.35")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def variant_colour(index: int) -> str:
    """Return the colour of the n-th variant."""
    return _COLOURS[index % len(_COLOURS)]


def _marked(colour: str, style: str, label: str, is_open: bool) -> dict[str, Any]:
    marker = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white" if is_open else colour}
    return {"color": colour, "linestyle": style, "label": label, **marker}


def draw_lines(
    path: Path,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    n_styles: int = 1,
) -> None:
    """Draw lines through points, both axes logarithmic."""
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure()
    for index, (name, (places, values)) in enumerate(lines.items()):
        colour, is_dashed = variant_colour(index // n_styles), index % n_styles == 1
        style = _marked(colour, "--" if is_dashed else "-", name, is_open=is_dashed)
        axes.plot(places, values, **style)
    axes.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    ticks = sorted({place for places, _ in lines.values() for place in places})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    save_figure(figure, axes, title, path)


def _styled_arms(task: TaskSummary) -> list[tuple[ArmSummary, str, str]]:
    """Return every arm with its colour and line style."""
    variants = dict.fromkeys(arm.variant for arm in task.arms)
    colours = {variant: variant_colour(index) for index, variant in enumerate(variants)}
    return [(a, colours[a.variant], _LINE_STYLES.get(a.memory, "-.")) for a in task.arms]


def _plot_achieved(task: TaskSummary, path: Path) -> None:
    """Draw achieved against asked returns, with intervals over seeds and episodes."""
    figure, axes = new_figure()
    targets = np.sort(np.array(task.targets))
    is_even = targets[0] <= 0 or targets[-1] <= _LOG_RANGE * targets[0]
    places = targets if is_even else np.arange(float(len(targets)))
    offset = 0.012 * (np.ptp(places) or 1.0)
    shown = [0.0]
    for index, (arm, colour, style) in enumerate(_styled_arms(task)):
        values = [arm.targets[float(target)].estimate for target in targets]
        centre = np.array([each.value for each in values])
        ends = np.array([[each.low, each.high] for each in values])
        ends = np.where(np.isnan(ends), centre[:, None], ends)
        shown.extend(centre.tolist())
        axes.errorbar(
            places + offset * (index - (len(task.arms) - 1) / 2),
            centre,
            np.abs(ends - centre[:, None]).T,
            **_marked(colour, style, arm.name, is_open=arm.memory == "stream"),
            capsize=2.5,
            linewidth=1.5,
        )
    highest, mean = task.task["highest_return"], task.task["mean_return"]
    axes.plot(places, targets, ":", color="0.4", linewidth=1.2, label="achieved = asked")
    axes.axhline(highest, color=_DATA_COLOUR, linewidth=1.0, label="highest of the data")
    axes.axhline(mean, color=_DATA_COLOUR, linewidth=1.0, linestyle="--", label="mean of the data")
    # intervals of few seeds may reach far beyond these
    low, high = min(*shown, highest, mean), max(*shown, highest, mean)
    margin = 0.25 * ((high - low) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    if high - low > 10:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xticks(places, [f"{target:,.0f}" for target in targets])
    axes.set(xlabel="return asked for", ylabel="return achieved")
    save_figure(figure, axes, f"{task.name}: interquartile mean, 95 % interval", path)


def _plot_learning(task: TaskSummary, path: Path) -> None:
    """Draw returns at the headline target, or the loss where there is a single evaluation."""
    has_returns = max(len(arm.history) for arm in task.arms) > 1
    # a training has one loss, whatever memory it acts with; a peer's is not known
    known = [each for each in _styled_arms(task) if all(map(len, each[0].losses))]
    with_losses = {arm.variant: (arm, colour) for arm, colour, _ in known}
    if not has_returns and not with_losses:
        return  # a report older than losses.csv: an existing picture stays
    figure, axes = new_figure()
    budget = task.task["processor_seconds"]
    if has_returns:
        for arm, colour, style in _styled_arms(task):
            updates = sorted(arm.history)
            seeds = np.stack([arm.history[update][task.headline] for update in updates])
            if budget is not None:
                updates = [budget * update / updates[-1] for update in updates]
            centre = compute_interquartile_mean(seeds)
            axes.plot(updates, centre, color=colour, linestyle=style, marker="o", label=arm.name)
            axes.plot(updates, seeds, color=colour, linestyle=style, linewidth=0.6, alpha=0.5)
        axes.set_ylabel(f"return, asked {task.headline:,.0f}")
    else:
        for arm, colour in with_losses.values():
            curves = np.stack([curve[:, 1] for curve in arm.losses])
            low, high = curves.min(axis=0), curves.max(axis=0)
            points = arm.losses[0][:, 0]
            axes.plot(points, np.median(curves, axis=0), color=colour, label=arm.variant)
            axes.fill_between(points, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(ylabel="training loss", yscale="log")
        axes.grid(which="minor", color="0.95", linewidth=0.5)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
    is_timed = has_returns and budget is not None
    axes.set_xlabel("processor seconds of training" if is_timed else "updates")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save_figure(figure, axes, f"{task.name}: learning", path)


def _plot_profile(task: TaskSummary, path: Path) -> None:
    """Draw the share of episodes above each return, asked the headline target."""
    figure, axes = new_figure()
    everything = np.concatenate([arm.targets[task.headline].returns.ravel() for arm in task.arms])
    margin = 0.03 * (np.ptp(everything) or 1.0)
    thresholds = np.linspace(everything.min() - margin, everything.max() + margin, _N_THRESHOLDS)
    for arm, colour, style in _styled_arms(task):
        profile = compute_performance_profile(arm.targets[task.headline].returns, thresholds)
        axes.plot(thresholds, profile.shares, color=colour, linestyle=style, label=arm.name)
        band = profile.low, profile.high
        axes.fill_between(thresholds, *band, color=colour, alpha=0.12, linewidth=0)
    axes.set(ylim=(-0.02, 1.02), xlabel="return", ylabel="share of episodes above it")
    save_figure(figure, axes, f"{task.name}: all episodes, asked {task.headline:,.0f}", path)


_PLOTS = {"achieved": _plot_achieved, "learning": _plot_learning, "profile": _plot_profile}


if __name__ == "__main__":
    main()
