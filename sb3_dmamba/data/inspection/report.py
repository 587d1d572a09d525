"""A dataset described, in bounded memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from sb3_dmamba.data._checks import tolerate_non_finite
from sb3_dmamba.data.inspection.oddities import Oddity, find_oddities, find_whole_episodes
from sb3_dmamba.data.load import load_trajectories
from sb3_dmamba.data.returns import compute_returns
from sb3_dmamba.data.summary import TrajectoriesSummary

if TYPE_CHECKING:
    from rich.console import Group

    from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["DatasetReport", "Histogram", "inspect_dataset"]

_N_BINS = 12
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Histogram:
    """Episodes by return.

    Args:
        edges: Bounds of the bins, in the environment's units, one more than there are bins.
        counts: Episodes in each.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, returns: Float64[ndarray, "E"]) -> Histogram:
        """Count returns in bins of one width; equal ones are one bin."""
        if not len(returns):
            return cls((), ())
        low, high = float(returns.min()), float(returns.max())
        n_bins = 1 if low == high else _N_BINS
        counts, edges = np.histogram(returns, n_bins, (low, high))
        if low == high:
            edges = np.array([low, high])
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))

    def lines(self) -> list[str]:
        """Return a bar of text for each bin."""
        most = max(self.counts, default=1)
        digits = 1 if max(map(abs, self.edges), default=0) >= 10 else 3
        labels = [f"{edge:,.{digits}f}" for edge in self.edges]
        width = max(map(len, labels), default=0)
        return [
            f"{labels[i]:>{width}} to {labels[i + 1]:>{width}}  "
            f"{'█' * round(_BAR_WIDTH * count / most) or '▏' * bool(count)} {count:,}".rstrip()
            for i, count in enumerate(self.counts)
        ]


@dataclass(frozen=True)
class DatasetReport:
    """A dataset described; prints as text, and as tables in rich.

    Args:
        summary: Counts, spaces and spreads; spreads leave out what is not finite.
        returns: Episodes by return.
        oddities: What is odd; empty where nothing is.
    """

    summary: TrajectoriesSummary
    returns: Histogram
    oddities: tuple[Oddity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [str(self.summary), "Returns", *self.returns.lines(), "Oddities"]
        return "\n".join([*parts, *(f"* {line}" for line in self._messages())])

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        style = "yellow" if self.oddities else "green"
        lines = [Text(f"• {line}", style=style) for line in self._messages()]
        return Group(
            self.summary,
            Text("Returns", style="italic"),
            Padding(Text("\n".join(self.returns.lines()), no_wrap=True), (0, 0, 1, 1)),
            Text("Oddities", style="italic"),
            Padding(Group(*lines), (0, 0, 0, 1)),
        )

    def _messages(self) -> list[str]:
        return [oddity.message for oddity in self.oddities] or ["none found"]


def inspect_dataset(source: Any, **options: Any) -> DatasetReport:
    """Describe a dataset; one with values that are not finite, which cannot be learnt, too.

    Args:
        source: Whatever ``load_trajectories`` takes.
        options: As ``load_trajectories`` takes them.

    Raises:
        DatasetError: As ``load_trajectories``, but for values that are not finite.
        SpaceError: As ``load_trajectories``.
    """
    with tolerate_non_finite():
        data = load_trajectories(source, **options)
        oddities = find_oddities(data)
        with np.errstate(invalid="ignore"):  # an infinity less another
            returns = compute_returns(data.rewards, data.episode_offsets)
    returns = returns[find_whole_episodes(data)]
    return DatasetReport(_summarise(data, returns), Histogram.of(returns), oddities)


def _summarise(data: Trajectories, returns: Float64[ndarray, "E"]) -> TrajectoriesSummary:
    summary = TrajectoriesSummary.from_arrays(
        returns=returns if len(returns) else np.zeros(1),
        lengths=data.lengths,
        terminated=data.terminated,
        truncated=data.truncated,
        observation_space=str(data.observation_space),
        action_space=str(data.action_space),
        env_id=data.env_id,
        source=data.source,
    )
    return dataclasses.replace(summary, episodes=len(data))
