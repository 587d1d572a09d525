"""What the numbers say, in words that claim no more."""

from __future__ import annotations

from sb3_dmamba.experiments.reports.summary import ArmSummary, ExperimentSummary, TaskSummary
from sb3_dmamba.experiments.statistics import Estimate

__all__ = ["describe_answer", "format_count", "format_estimate", "format_number"]


def format_number(value: float) -> str:
    """Return a number with as many digits as it bears: 2,484, 24.8, 0.61."""
    if value != value:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_estimate(value: Estimate) -> str:
    """Return a value and its interval."""
    if value.low != value.low:
        return format_number(value.value)
    return f"{format_number(value.value)} [{format_number(value.low)}, {format_number(value.high)}]"


def format_count(n: int, what: str) -> str:
    """Return a number of things, in the plural where there are several."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def describe_answer(summary: ExperimentSummary) -> str:
    """Return a paragraph a task: what was compared, and whether the intervals are separate."""
    paragraphs = [_describe_task(task) for task in summary.tasks]
    if not summary.is_complete:
        done, planned = summary.n_done, len(summary.plan.cells)
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
        f"over {format_count(len(first.seeds), 'seed')} of {format_count(episodes, 'episode')}."
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
