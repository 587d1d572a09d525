"""Figures of the reports, in the style of the experiments'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sb3_dmamba.experiments.report import new_figure, save_figure, variant_colour


def draw_bars(
    path: Path, title: str, label: str, bars: Mapping[str, tuple[float, float, float]]
) -> None:
    """Draw a horizontal bar each, with its spread.

    Args:
        path: Where to write.
        title: Above the figure.
        label: Of the axis, with the unit.
        bars: Value, and the ends of its spread, by name.
    """
    figure, axes = new_figure(height=0.8 + 0.38 * len(bars))
    names = list(bars)
    for index, name in enumerate(names):
        value, low, high = bars[name]
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(index, value, color=variant_colour(0 if name.startswith("ours") else 1))
        axes.errorbar(value, index, xerr=reach, color="0.2", capsize=2.5, linewidth=1.0)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    values = [value for value, _, _ in bars.values()]
    if max(values) > 30 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(label)
    save_figure(figure, axes, title, path)


def draw_shares(path: Path, title: str, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Draw what each whole is made of: a bar each, its parts one behind the other.

    Args:
        path: Where to write.
        title: Above the figure.
        shares: Milliseconds of each part, by whole and part.
    """
    figure, axes = new_figure(height=1.4 + 0.5 * len(shares))
    parts = list(dict.fromkeys(part for whole in shares.values() for part in whole))
    for row, whole in enumerate(shares.values()):
        left = 0.0
        for index, part in enumerate(parts):
            value = whole.get(part, 0.0)
            colour, dense = variant_colour(index), index < 7
            label = part if row == 0 else None
            hatch = None if dense else "//"
            axes.barh(row, value, left=left, color=colour, label=label, hatch=hatch)
            left += value
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms of an update")
    save_figure(figure, axes, title, path)
