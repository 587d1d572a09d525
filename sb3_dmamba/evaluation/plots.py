"""The picture of a report: achieved against asked, beside the dataset's returns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sb3_dmamba.evaluation.report import EvaluationReport

__all__ = ["plot_report"]

# Okabe and Ito's palette, told apart by colour-blind readers too
_ACHIEVED = "#0072B2"
_DATASET = "#E69F00"
_IDENTITY = "#555555"
_LOG_RANGE = 8.0  # targets spread over more than this factor go on a logarithmic axis


def plot_report(
    report: EvaluationReport, path: str | Path | None = None, ax: Axes | None = None
) -> Figure:
    """Plot mean returns with their 95 % intervals, and every episode, against the target.

    Args:
        report: The report.
        path: Where to save the figure; None does not save it.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ConfigError: The suffix is not a format.
    """
    figure: Figure
    if ax is None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as NewFigure

        figure = NewFigure(figsize=(8.0, 5.4), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
    else:
        figure = ax.get_figure(root=True)  # type: ignore[assignment]
    low, high = _limit_returns(report, ax)
    _draw_targets(report, ax)
    if report.dataset_returns is not None:
        _draw_dataset(report.dataset_returns, ax, (low, high))
    ax.set_xlabel("return asked for")
    ax.set_ylabel("return achieved")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title(_describe(report), loc="left", fontsize=9, color="0.35")
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=min(3, len(handles)),
        frameon=False,
        fontsize=9,
    )
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(path)
        except ValueError as error:  # matplotlib's, of a format that it does not know
            raise ConfigError(f"{path}: {error}") from error
    return figure


def _limit_returns(report: EvaluationReport, ax: Axes) -> tuple[float, float]:
    """Choose the axes: all returns show, and targets far above them do not squeeze them."""
    achieved = np.concatenate([result.returns for result in report.results])
    seen = achieved if report.dataset_returns is None else np.r_[achieved, report.dataset_returns]
    targets = _sorted_targets(report)
    room = 0.06 * (np.ptp(seen) or abs(seen[0]) or 1.0)
    low, high = seen.min() - room, seen.max() + room
    near = targets[(targets > low - 5 * room) & (targets < high + 5 * room)]
    low, high = min([low, *(near - room)]), max([high, *(near + room)])
    ax.set_ylim(low, high)
    if high - low > 10.0:
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_major_formatter("{x:,.0f}")
    if targets[0] > 0 and targets[-1] > _LOG_RANGE * targets[0]:
        ax.set_xscale("log")
        ax.set_xlim(targets[0] / 1.35, targets[-1] * 1.35)
        ax.set_xticks(targets, [f"{target:,.0f}" for target in targets])
        ax.minorticks_off()
    else:
        span = (targets[-1] - targets[0]) or high - low
        ax.set_xlim(targets[0] - 0.12 * span, targets[-1] + 0.12 * span)
    return low, high


def _draw_targets(report: EvaluationReport, ax: Axes) -> None:
    results = sorted(report.results, key=lambda result: result.target_return)
    targets = np.array([result.target_return for result in results])
    means = np.array([result.mean for result in results])
    bounds = np.array([result.confidence_interval for result in results])
    bounds = np.where(np.isnan(bounds), means[:, None], bounds)
    left, right = ax.get_xlim()
    is_log = ax.get_xscale() == "log"
    line = np.geomspace(left, right, 200) if is_log else np.array([left, right])
    ax.plot(line, line, "--", color=_IDENTITY, linewidth=1.2, label="achieved = asked", zorder=2)

    random = np.random.default_rng(0)
    place = _to_unit(targets, left, right, is_log)
    width = 0.25 * min([0.08, *np.diff(np.unique(place))])
    episodes = "single episodes"
    for at, result in zip(place, results, strict=True):
        jitter = at + random.uniform(-width, width, result.n_episodes)
        ax.scatter(
            _from_unit(jitter, left, right, is_log),
            result.returns,
            s=9,
            color=_ACHIEVED,
            alpha=max(0.1, min(0.35, 12.0 / result.n_episodes)),
            linewidths=0,
            label=episodes,
            zorder=3,
        )
        episodes = "_nolegend_"
    ax.fill_between(targets, bounds[:, 0], bounds[:, 1], color=_ACHIEVED, alpha=0.15, zorder=3)
    ax.errorbar(
        targets,
        means,
        yerr=np.abs(bounds - means[:, None]).T,
        color=_ACHIEVED,
        marker="o",
        markersize=6,
        markeredgecolor="white",
        linewidth=1.8,
        capsize=3,
        label="mean, 95 % interval",
        zorder=4,
    )


def _draw_dataset(returns: NDArray[np.float64], ax: Axes, limits: tuple[float, float]) -> None:
    """Draw the dataset's returns beside the axes, on the same scale."""
    side = ax.inset_axes((1.02, 0.0, 0.17, 1.0), sharey=ax)
    edges = np.linspace(returns.min(), returns.max(), 41)
    if edges[0] == edges[-1]:
        edges = np.linspace(*limits, 41)
    side.hist(returns, bins=edges.tolist(), orientation="horizontal", color=_DATASET, alpha=0.6)
    for value, style, name in (
        (returns.mean(), "-", "dataset's mean"),
        (returns.max(), ":", "dataset's highest"),
    ):
        ax.axhline(value, color=_DATASET, linestyle=style, linewidth=1.4, label=name, zorder=1)
        side.axhline(value, color=_DATASET, linestyle=style, linewidth=1.4)
    side.set_ylim(*limits)
    side.tick_params(labelleft=False, left=False)
    side.set_xticks([])
    side.set_xlabel("dataset's\nepisodes", fontsize=9, color="0.35")
    side.spines[["top", "right", "bottom"]].set_visible(False)
    side.spines["left"].set_color("0.8")


def _to_unit(
    values: NDArray[np.float64], left: float, right: float, is_log: bool
) -> NDArray[np.float64]:
    """Map positions on the axis to 0..1 of its width."""
    if is_log:
        return np.asarray(np.log(values / left) / np.log(right / left))
    return (values - left) / (right - left)


def _from_unit(
    places: NDArray[np.float64], left: float, right: float, is_log: bool
) -> NDArray[np.float64]:
    if is_log:
        return left * (right / left) ** places
    return left + places * (right - left)


def _sorted_targets(report: EvaluationReport) -> NDArray[np.float64]:
    return np.unique([result.target_return for result in report.results])


def _describe(report: EvaluationReport) -> str:
    first = [report.task or report.env_id, report.mixer]
    second = [f"memory {report.memory}", f"{report.weights} weights"]
    if report.n_updates is not None:
        second.append(f"{report.n_updates:,} updates")
    n = report.n_episodes
    second.append(f"{n} episode{'s' if n > 1 else ''} a target")
    return ", ".join([*filter(None, first), *second])
