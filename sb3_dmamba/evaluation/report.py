"""What an evaluation found, and everything needed to compare it with another."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation.protocols import ReferenceScore
from sb3_dmamba.evaluation.results import TargetResult
from sb3_dmamba.tasks import ReferenceScores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EvaluationReport", "ReportDetails"]

_FORMAT = 1
_TEXT_WIDTH = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportDetails:
    """What a report says about the model, beyond what an evaluation can know.

    Args:
        task: The task's name.
        dataset: What the model learned from (``Trajectories.source``).
        dataset_returns: The returns of the dataset's episodes (E,), for the plot.
        mixer: ``"mamba"``, ``"attention"`` or ``"convolution"``.
        training_seed: The seed of the training run.
        weights: ``"last"`` for the weights at the end of training, ``"best"`` for those picked by
            their scores in evaluations along the way (an optimistic figure).
        n_updates: Updates the weights had.
    """

    task: str | None = None
    dataset: str | None = None
    dataset_returns: NDArray[np.float64] | None = None
    mixer: str | None = None
    training_seed: int | None = None
    weights: Literal["last", "best"] = "last"
    n_updates: int | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("last", "best"):
            raise ConfigError(f"weights={self.weights!r}: choose one of 'last', 'best'")
        if self.dataset_returns is not None:
            values = np.array(self.dataset_returns, dtype=np.float64)
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
                raise ConfigError(
                    f"dataset_returns has shape {values.shape}: give one finite return for each "
                    "episode, or None"
                )
            object.__setattr__(self, "dataset_returns", values)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationReport(ReportDetails):
    """The returns achieved for each return asked for, with all that a comparison needs.

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
            raise ConfigError("results is empty: a report needs at least one target")

    @classmethod
    def from_results(
        cls, results: tuple[TargetResult, ...], details: ReportDetails, **conditions: Any
    ) -> EvaluationReport:
        """Join results, details of the model, and the conditions of the evaluation."""
        known = {
            each.name: getattr(details, each.name) for each in dataclasses.fields(ReportDetails)
        }
        return cls(results=results, **known, **conditions)

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
                raise ConfigError(
                    f"the report has format {version!r} and this version reads {_FORMAT}: "
                    "upgrade sb3-dmamba"
                )
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
        """
        from sb3_dmamba.evaluation.plots import plot_report

        return plot_report(self, path=path, ax=ax)

    def __rich__(self) -> Group:
        """Return the table that rich prints."""
        subject = self.task or self.env_id or "evaluation"
        where = f" on {self.env_id}" if self.env_id and self.env_id != subject else ""
        title = Text(f"{subject}{where}: achieved against asked", style="bold")
        return Group(title, self._table(), Text(self._caption(), style="dim"))

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        has_scores = self.reference is not None
        names = ["asked", "mean return", "95 % interval", "std", "steps", "episodes"]
        for name in [*names[:3], *(["normalised"] if has_scores else []), *names[3:]]:
            table.add_column(name, justify="right", no_wrap=True)
        best = self.best
        for result in self.results:
            low, high = result.confidence_interval
            cells = [
                _number(result.target_return),
                _number(result.mean),
                "-" if np.isnan(low) else f"{_number(low)} to {_number(high)}",
                *([f"{result.normalized_score:.1f}"] if has_scores else []),
                "-" if np.isnan(result.std) else _number(result.std),
                _number(result.mean_length),
                str(result.n_episodes),
            ]
            is_best = result is best and len(self.results) > 1
            table.add_row(*cells, style="bold" if is_best else None)
        return table

    def __str__(self) -> str:
        console = Console(
            file=io.StringIO(),
            width=_TEXT_WIDTH,
            color_system=None,
            force_terminal=False,
            force_jupyter=False,  # in a notebook rich would display it, and return nothing
        )
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def _caption(self) -> str:
        model = [
            self.mixer,
            f"memory {self.memory}",
            f"{self.weights} weights",
            None if self.n_updates is None else f"{self.n_updates:,} updates",
            None if self.training_seed is None else f"training seed {self.training_seed}",
        ]
        n = self.n_episodes
        seeds = f"s {self.eval_seed} to {self.eval_seed + n - 1}" if n > 1 else f" {self.eval_seed}"
        runs = [
            f"episode seed{seeds}",
            "most likely actions" if self.deterministic else "actions drawn",
            None
            if self.max_episode_steps is None
            else f"episodes cut after {self.max_episode_steps:,} steps",
            f"{self.seconds:.1f} s",
        ]
        lines = [", ".join(filter(None, model)), ", ".join(filter(None, runs))]
        if self.dataset is not None or self.dataset_returns is not None:
            lines.insert(0, f"dataset {self.dataset or 'unnamed'}{self._dataset_summary()}")
        if self.clip_rewards:
            lines.append("asked (and the dataset's) in rewards clipped to [-1, 1], achieved in raw")
        if self.delayed_rewards:
            lines.append("asked for the whole return until the end, as the data was paid")
        if self.reference is not None:
            low, high = self.reference.minimum, self.reference.maximum
            lines.append(f"normalised: 0 is {low:g}, 100 is {high:g} ({self.reference.source})")
        return "\n".join(lines)

    def _dataset_summary(self) -> str:
        if self.dataset_returns is None:
            return ""
        mean, maximum = self.dataset_returns.mean(), self.dataset_returns.max()
        return f" (mean return {_number(mean)}, highest {_number(maximum)})"

    def _conditions(self) -> dict[str, Any]:
        """Return all but the results and the dataset's returns, JSON-compatible."""
        skipped = ("results", "dataset_returns")
        names = [each.name for each in dataclasses.fields(self) if each.name not in skipped]
        reference = self.reference
        return {
            **{name: getattr(self, name) for name in names},
            "n_episodes": self.n_episodes,
            "reference": None
            if reference is None
            else {
                "minimum": reference.minimum,
                "maximum": reference.maximum,
                "source": reference.source,
            },
        }


def _number(value: float) -> str:
    """Format a return or a length: whole where it is large, three digits where it is small."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
