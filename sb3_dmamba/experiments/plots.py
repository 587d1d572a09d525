"""Pictures of an experiment's report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.evaluation.statistics import compute_interquartile_mean
from sb3_dmamba.experiments.statistics import compute_performance_profile
from sb3_dmamba.experiments.summary import ArmSummary, TaskSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "new_figure",
    "plot_achieved",
    "plot_learning",
    "plot_profile",
    "save_figure",
    "variant_colour",
]

# Okabe and Ito's palette, told apart by colour-blind readers too; a colour a variant
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = {"window": "-", "stream": "--"}
_DATA = "#E69F00"
_LOG_RANGE = 20.0  # targets spread over more than this factor are drawn by their place
_N_THRESHOLDS = 101


def new_figure(width: float = 7.5, height: float = 4.6) -> tuple[Figure, Axes]:
    """Return a figure of its own and its axes; pyplot's state is left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def variant_colour(index: int) -> str:
    """Return the colour of the n-th variant."""
    return _COLOURS[index % len(_COLOURS)]


def plot_achieved(task: TaskSummary, path: Path) -> None:
    """Draw what was achieved against what was asked, with intervals over seeds and episodes."""
    figure, axes = new_figure()
    targets = np.sort(np.array(task.planned.target_returns))
    is_even = targets[0] <= 0 or targets[-1] <= _LOG_RANGE * targets[0]
    places = targets if is_even else np.arange(float(len(targets)))
    room = 0.012 * (np.ptp(places) or 1.0)
    n_arms = len(task.arms)
    tops = [0.0]
    for index, (arm, colour, style) in enumerate(_arms(task)):
        values = [arm.targets[float(target)].estimate for target in targets]
        centre = np.array([each.value for each in values])
        reach = np.array([[each.low, each.high] for each in values])
        reach = np.where(np.isnan(reach), centre[:, None], reach)
        tops.extend(centre.tolist())
        axes.errorbar(
            places + room * (index - (n_arms - 1) / 2),
            centre,
            yerr=np.abs(reach - centre[:, None]).T,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4.5,
            markerfacecolor="white" if arm.memory == "stream" else colour,
            capsize=2.5,
            linewidth=1.5,
            label=arm.name,
        )
    highest, mean = task.planned.highest_return, task.planned.mean_return
    axes.plot(places, targets, ":", color="0.4", linewidth=1.2, label="achieved = asked")
    axes.axhline(highest, color=_DATA, linewidth=1.0, label="highest of the data")
    axes.axhline(mean, color=_DATA, linewidth=1.0, linestyle="--", label="mean of the data")
    _limit(axes, [*tops, highest, mean])
    axes.set_xticks(places, [f"{target:,.0f}" for target in targets])
    axes.set_xlabel("return asked for")
    axes.set_ylabel("return achieved")
    save_figure(figure, axes, f"{task.planned.name}: interquartile mean, 95 % interval", path)


def plot_learning(task: TaskSummary, path: Path) -> None:
    """Draw returns at the headline target, where several were measured, else the training loss.

    Without losses (a report made before there was ``losses.csv``) the picture that is there stays.
    """
    has_returns = max(len(arm.history) for arm in task.arms) > 1
    if not has_returns and not all(len(curve) for arm in task.arms for curve in arm.losses):
        return
    figure, axes = new_figure()
    if has_returns:
        _draw_returns(task, axes)
        axes.set_ylabel(f"return, asked {task.planned.headline:,.0f}")
    else:
        _draw_losses(task, axes)
        axes.set_ylabel("training loss")
        axes.set_yscale("log")
        axes.grid(which="minor", color="0.95", linewidth=0.5)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set_xlabel("updates")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save_figure(figure, axes, f"{task.planned.name}: learning", path)


def _draw_returns(task: TaskSummary, axes: Axes) -> None:
    for arm, colour, style in _arms(task):
        updates = sorted(arm.history)
        seeds = np.stack([arm.history[update][task.planned.headline] for update in updates])
        centre = compute_interquartile_mean(seeds)
        axes.plot(updates, centre, color=colour, linestyle=style, marker="o", label=arm.name)
        axes.plot(updates, seeds, color=colour, linestyle=style, linewidth=0.6, alpha=0.5)


def _draw_losses(task: TaskSummary, axes: Axes) -> None:
    drawn = set()
    for arm, colour, _ in _arms(task):
        if arm.variant in drawn:  # a training is the same under every memory
            continue
        drawn.add(arm.variant)
        curves = np.stack([curve[:, 1] for curve in arm.losses])
        updates = arm.losses[0][:, 0]
        axes.plot(updates, np.median(curves, axis=0), color=colour, label=arm.variant)
        axes.fill_between(
            updates, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )


def plot_profile(task: TaskSummary, path: Path) -> None:
    """Draw the share of episodes above each return, asked the headline target."""
    figure, axes = new_figure()
    target = task.planned.headline
    everything = np.concatenate([arm.targets[target].returns.reshape(-1) for arm in task.arms])
    room = 0.03 * (np.ptp(everything) or 1.0)
    thresholds = np.linspace(everything.min() - room, everything.max() + room, _N_THRESHOLDS)
    for arm, colour, style in _arms(task):
        profile = compute_performance_profile(arm.targets[target].returns, thresholds)
        axes.plot(thresholds, profile.shares, color=colour, linestyle=style, label=arm.name)
        axes.fill_between(
            thresholds, profile.low, profile.high, color=colour, alpha=0.12, linewidth=0
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("return")
    axes.set_ylabel("share of episodes above it")
    save_figure(figure, axes, f"{task.planned.name}: all episodes, asked {target:,.0f}", path)


def _arms(task: TaskSummary) -> Iterator[tuple[ArmSummary, str, str]]:
    """Yield every arm with its colour and line."""
    variants = list(dict.fromkeys(arm.variant for arm in task.arms))
    for arm in task.arms:
        yield arm, variant_colour(variants.index(arm.variant)), _STYLES.get(arm.memory, "-.")


def _limit(axes: Axes, values: list[float] | NDArray[np.float64]) -> None:
    """Show the values with some room: intervals of few seeds may reach far beyond them."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.25 * ((high - low) or 1.0)
    axes.set_ylim(low - room, high + room)
    if high - low > 10:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def save_figure(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    """Add title and legend, and write the picture; the same one has the same bytes."""
    axes.set_title(title, loc="left", fontsize=9, color="0.35")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
