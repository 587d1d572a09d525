"""Evaluation report: achieved returns by target, with table, plot and JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation.actors import ReferenceScore
from sb3_dmamba.evaluation.statistics import (
    compute_confidence_interval,
    compute_normalized_score,
    compute_standard_error,
)
from sb3_dmamba.tasks import ReferenceScores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMAT = 1
_TEXT_WIDTH = 100

# Okabe and Ito's palette, told apart by colour-blind readers too
_ACHIEVED = "#0072B2"
_DATASET = "#E69F00"
_IDENTITY = "#555555"
_LOG_RANGE = 8.0  # targets spread over more than this factor go on a logarithmic axis


@dataclass(frozen=True, eq=False)
class TargetResult:
    """The episodes in which one return was asked for.

    Args:
        target_return: The return asked for, in the environment's units.
        returns: The returns achieved, undiscounted, an entry an episode (n,) float64.
        lengths: Steps of each episode (n,) int64.
        reference: The returns that the normalised scores 0 and 100 stand for, or None.

    Raises:
        ConfigError: There is no episode, or ``returns`` and ``lengths`` differ in length.
    """

    target_return: float
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    reference: ReferenceScore | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "returns", np.array(self.returns, dtype=np.float64))
        object.__setattr__(self, "lengths", np.array(self.lengths, dtype=np.int64))
        if self.returns.ndim != 1 or not len(self.returns):
            message = f"returns has shape {self.returns.shape}: give one for each episode"
            raise ConfigError(message, setting="returns", value=self.returns.shape)
        if self.lengths.shape != self.returns.shape:
            message = (
                f"{len(self.returns)} returns and lengths of shape {self.lengths.shape}: give one "
                f"of each for each episode"
            )
            raise ConfigError(message, setting="lengths", value=self.lengths.shape)

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return achieved."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (n - 1); NaN for one episode."""
        return float(self.returns.std(ddof=1)) if self.n_episodes > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`; NaN for one episode."""
        return compute_standard_error(self.returns)

    @cached_property
    def confidence_interval(self) -> tuple[float, float]:
        """Bootstrapped 95 % confidence interval of :attr:`mean`; NaN for one episode."""
        return compute_confidence_interval(self.returns)

    @property
    def mean_length(self) -> float:
        """Mean number of steps in an episode."""
        return float(self.lengths.mean())

    @property
    def normalized_score(self) -> float | None:
        """:attr:`mean` on D4RL's scale (0 random, 100 expert); None without a reference."""
        if self.reference is None:
            return None
        limits = self.reference.minimum, self.reference.maximum
        return float(compute_normalized_score(self.mean, *limits))

    def summary(self) -> dict[str, float | int | None]:
        """Return the target's statistics by name, a row of the table; NaN where unknown."""
        low, high = self.confidence_interval
        before = ("target_return", "mean", "std", "standard_error")
        after = ("normalized_score", "mean_length", "n_episodes")
        return {
            **{name: getattr(self, name) for name in before},
            "ci_low": low,
            "ci_high": high,
            **{name: getattr(self, name) for name in after},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, the returns and the lengths as JSON-compatible values."""
        figures = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in self.summary().items()
        }
        return {**figures, "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @classmethod
    def from_dict(
        cls, fields: Mapping[str, Any], reference: ReferenceScore | None = None
    ) -> TargetResult:
        """Build a result from what :meth:`to_dict` returned; statistics are computed again."""
        return cls(fields["target_return"], fields["returns"], fields["lengths"], reference)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportDetails:
    """What a report says about the model and its training.

    Args:
        task: The task's name.
        dataset: What the model learned from (``Trajectories.source``).
        dataset_returns: The returns of the dataset's episodes (E,), for the plot.
        mixer: ``"mamba"``, ``"attention"`` or ``"convolution"``.
        training_seed: The seed of the training run.
        weights: ``"last"`` for the weights at the end of training, ``"best"`` for those picked by
            their scores in evaluations during training (an optimistic estimate), ``"ema"`` for the
            moving average of the weights at the end.
        n_updates: Updates the weights had.
    """

    task: str | None = None
    dataset: str | None = None
    dataset_returns: NDArray[np.float64] | None = None
    mixer: str | None = None
    training_seed: int | None = None
    weights: Literal["last", "best", "ema"] = "last"
    n_updates: int | None = None

    def __post_init__(self) -> None:
        choices = ("last", "best", "ema")
        if self.weights not in choices:
            message = f"weights={self.weights!r}: choose one of {', '.join(map(repr, choices))}"
            raise ConfigError(message, setting="weights", value=self.weights, choices=choices)
        if self.dataset_returns is not None:
            values = np.array(self.dataset_returns, dtype=np.float64)
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
                message = (
                    f"dataset_returns has shape {values.shape}: give one finite return for each "
                    f"episode, or None"
                )
                raise ConfigError(message, setting="dataset_returns", value=values.shape)
            object.__setattr__(self, "dataset_returns", values)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationReport(ReportDetails):
    """The returns achieved for each target return, and the conditions they were achieved in.

    Printing it gives a table; see also :meth:`plot`, :meth:`to_pandas`, :meth:`to_json`.

    Args:
        results: One for each target, in the order asked.
        env_id: The environment's id, or None.
        memory: ``"window"`` or ``"stream"``.
        deterministic: Whether actions were the most likely ones rather than drawn.
        clip_rewards: Whether targets (and the dataset's returns) count rewards clipped to [-1, 1];
            the returns achieved never do.
        delayed_rewards: Whether the return-to-go stayed at the target until an episode's end.
        max_episode_steps: Episodes were cut after this many steps; None left it to the environment.
        eval_seed: The environment seed of each target's first episode; episode k has this + k.
        seconds: Time that the evaluation took.

    Raises:
        ConfigError: There are no results.
    """

    results: tuple[TargetResult, ...] = field(default=())
    env_id: str | None = None
    memory: str = "window"
    deterministic: bool = True
    clip_rewards: bool = False
    delayed_rewards: bool = False
    max_episode_steps: int | None = None
    eval_seed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "results", tuple(self.results))
        if not self.results:
            raise ConfigError(
                "results is empty: a report needs at least one target", setting="results", value=()
            )

    @classmethod
    def from_results(
        cls, results: tuple[TargetResult, ...], details: ReportDetails, **conditions: Any
    ) -> EvaluationReport:
        """Join results, details of the model, and the conditions of the evaluation."""
        known = {each.name for each in dataclasses.fields(ReportDetails)}
        return cls(
            results=results, **{name: getattr(details, name) for name in known}, **conditions
        )

    @property
    def best(self) -> TargetResult:
        """The target with the highest mean return (the best of several, so slightly optimistic)."""
        return max(self.results, key=lambda result: result.mean)

    @property
    def n_episodes(self) -> int:
        """Episodes for each target."""
        return self.results[0].n_episodes

    @property
    def reference(self) -> ReferenceScore | None:
        """The returns that the normalised scores 0 and 100 stand for."""
        return self.results[0].reference

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row a target; what does not vary is in its ``attrs``."""
        import pandas as pd

        frame = pd.DataFrame([result.summary() for result in self.results])
        frame.attrs.update(self._conditions())
        return frame

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON, every episode included, and write it to ``path`` if given."""
        fields = {"format": _FORMAT, **self._conditions()}
        if self.dataset_returns is not None:
            fields["dataset_returns"] = self.dataset_returns.tolist()
        fields["results"] = [result.to_dict() for result in self.results]
        text = json.dumps(fields, indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> EvaluationReport:
        """Build a report from what :meth:`to_json` returned, or from the file it wrote.

        Args:
            source: JSON text (a string that starts with ``{``), or the path of a file.

        Raises:
            ConfigError: It is not a report, or one of a newer format.
            OSError: The file cannot be read.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        try:
            fields = json.loads(text)
            version = fields.pop("format")
            if version != _FORMAT:
                message = (
                    f"the report has format {version!r} and this version reads {_FORMAT}: upgrade "
                    f"sb3-dmamba"
                )
                raise ConfigError(message, setting="format", value=version)
            reference = fields.pop("reference")
            reference = None if reference is None else ReferenceScores(**reference)
            results = tuple(
                TargetResult.from_dict(result, reference) for result in fields.pop("results")
            )
            fields.pop("n_episodes")
            return cls(results=results, **fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"not an evaluation report ({error!r}): {text[:60]!r}...") from error

    def plot(self, path: str | Path | None = None, ax: Axes | None = None) -> Figure:
        """Plot what was achieved against what was asked, beside the dataset's returns.

        Args:
            path: Where to save the figure (the suffix picks the format); None does not save it.
            ax: Axes to draw in; None makes a figure (nothing of pyplot's state changes).

        Returns:
            The figure.

        Raises:
            ConfigError: The suffix is not a format that matplotlib knows.
        """
        return _plot(self, path, ax)

    def __rich__(self) -> Group:
        """Return the table that rich prints."""
        subject = self.task or self.env_id or "evaluation"
        where = f" on {self.env_id}" if self.env_id and self.env_id != subject else ""
        title = Text(f"{subject}{where}: achieved against asked", style="bold")
        return Group(title, self._table(), Text(self._caption(), style="dim"))

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        score = [] if self.reference is None else ["normalised"]
        for name in ["asked", "mean return", "95 % interval", *score, "std", "steps", "episodes"]:
            table.add_column(name, justify="right", no_wrap=True)
        best = self.best if len(self.results) > 1 else None
        for result in self.results:
            low, high = result.confidence_interval
            score = [] if self.reference is None else [f"{result.normalized_score:.1f}"]
            table.add_row(
                _number(result.target_return),
                _number(result.mean),
                "-" if np.isnan(low) else f"{_number(low)} to {_number(high)}",
                *score,
                "-" if np.isnan(result.std) else _number(result.std),
                _number(result.mean_length),
                str(result.n_episodes),
                style="bold" if result is best else None,
            )
        return table

    def __str__(self) -> str:
        # In a notebook rich would display it, and return nothing.
        plain: dict[str, Any] = {"color_system": None, "force_terminal": False}
        console = Console(file=io.StringIO(), width=_TEXT_WIDTH, force_jupyter=False, **plain)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def _caption(self) -> str:
        updates = None if self.n_updates is None else f"{self.n_updates:,} updates"
        training = None if self.training_seed is None else f"training seed {self.training_seed}"
        last = self.eval_seed + self.n_episodes - 1
        seeds = f" {last}" if self.n_episodes == 1 else f"s {self.eval_seed} to {last}"
        cut = self.max_episode_steps
        model = [self.mixer, f"memory {self.memory}", f"{self.weights} weights", updates, training]
        run = [
            f"episode seed{seeds}",
            "most likely actions" if self.deterministic else "actions drawn",
            None if cut is None else f"episodes cut after {cut:,} steps",
            f"{self.seconds:.1f} s",
        ]
        lines = [", ".join(filter(None, model)), ", ".join(filter(None, run))]
        dataset, returns = self.dataset, self.dataset_returns
        if returns is not None:
            mean, highest = _number(returns.mean()), _number(returns.max())
            dataset = f"{dataset or 'unnamed'} (mean return {mean}, highest {highest})"
        if dataset is not None:
            lines.insert(0, f"dataset {dataset or 'unnamed'}")
        if self.clip_rewards:
            lines.append("asked (and the dataset's) in rewards clipped to [-1, 1], achieved in raw")
        if self.delayed_rewards:
            lines.append("asked for the whole return until the end, as rewards come in the data")
        if self.reference is not None:
            low, high = self.reference.minimum, self.reference.maximum
            lines.append(f"normalised: 0 is {low:g}, 100 is {high:g} ({self.reference.source})")
        return "\n".join(lines)

    def _conditions(self) -> dict[str, Any]:
        """Return all but the results and the dataset's returns, JSON-compatible."""
        skipped = ("results", "dataset_returns")
        names = [each.name for each in dataclasses.fields(self) if each.name not in skipped]
        scores, keys = self.reference, ("minimum", "maximum", "source")
        return {
            **{name: getattr(self, name) for name in names},
            "n_episodes": self.n_episodes,
            "reference": None if scores is None else {key: getattr(scores, key) for key in keys},
        }


def _number(value: float) -> str:
    """Format a return or a length: whole where it is large, three digits where it is small."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _plot(report: EvaluationReport, path: str | Path | None, ax: Axes | None) -> Figure:
    """Plot mean returns with their 95 % intervals, and every episode, against the target."""
    figure: Figure
    if ax is None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as NewFigure

        figure = NewFigure(figsize=(8.0, 5.4), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
    else:
        figure = ax.get_figure(root=True)  # type: ignore[assignment]
    limits = _set_limits(report, ax)
    _draw_targets(report, ax)
    if report.dataset_returns is not None:
        _draw_dataset(report.dataset_returns, ax, limits)
    ax.set_xlabel("return asked for")
    ax.set_ylabel("return achieved")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title(_plot_title(report), loc="left", fontsize=9, color="0.35")
    n_columns = min(3, len(ax.get_legend_handles_labels()[0]))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
    ax.legend(ncols=n_columns, frameon=False, fontsize=9, **place)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(path)
        except ValueError as error:  # matplotlib's, of a format that it does not know
            raise ConfigError(f"{path}: {error}", setting="path", value=str(path)) from error
    return figure


def _plot_title(report: EvaluationReport) -> str:
    updates = None if report.n_updates is None else f"{report.n_updates:,} updates"
    n = report.n_episodes
    parts = [report.task or report.env_id, report.mixer, f"memory {report.memory}"]
    parts += [f"{report.weights} weights", updates, f"{n} episode{'s' if n > 1 else ''} a target"]
    return ", ".join(filter(None, parts))


def _set_limits(report: EvaluationReport, ax: Axes) -> tuple[float, float]:
    """Choose the axes: all returns show, and targets far above them do not squeeze them."""
    achieved = np.concatenate([result.returns for result in report.results])
    seen = achieved if report.dataset_returns is None else np.r_[achieved, report.dataset_returns]
    targets = np.unique([result.target_return for result in report.results])
    margin = 0.06 * (np.ptp(seen) or abs(seen[0]) or 1.0)
    low, high = seen.min() - margin, seen.max() + margin
    near = targets[(targets > low - 5 * margin) & (targets < high + 5 * margin)]
    low, high = min([low, *(near - margin)]), max([high, *(near + margin)])
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
    scale, unscale = (np.log, np.exp) if ax.get_xscale() == "log" else (np.asarray, np.asarray)
    left, right = scale(ax.get_xlim())
    line = unscale(np.linspace(left, right, 200))
    ax.plot(line, line, "--", color=_IDENTITY, linewidth=1.2, label="achieved = asked", zorder=2)

    random = np.random.default_rng(0)
    centres = scale(targets)
    width = 0.25 * min([0.08 * (right - left), *np.diff(np.unique(centres))])
    for index, (centre, result) in enumerate(zip(centres, results, strict=True)):
        ax.scatter(
            unscale(centre + random.uniform(-width, width, result.n_episodes)),
            result.returns,
            s=9,
            color=_ACHIEVED,
            alpha=max(0.1, min(0.35, 12.0 / result.n_episodes)),
            linewidths=0,
            label="_nolegend_" if index else "single episodes",
            zorder=3,
        )
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
