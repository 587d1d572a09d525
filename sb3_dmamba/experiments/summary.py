"""Summary of an experiment: everything that its report says, computed once from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.evaluation import compute_normalized_score
from sb3_dmamba.evaluation.statistics import Estimate, estimate
from sb3_dmamba.experiments.record import Record, Row
from sb3_dmamba.experiments.statistics import (
    compute_probability_of_improvement,
    compute_rank_correlation,
    find_winner,
)
from sb3_dmamba.tasks import ReferenceScores

__all__ = [
    "ArmSummary",
    "ExperimentSummary",
    "ReportedTask",
    "TargetSummary",
    "TaskSummary",
    "summarize",
]

_FEWEST_TARGETS = 3  # of a rank correlation


@dataclass(frozen=True)
class ReportedTask:
    """One task of a report, with what its data holds.

    Args:
        name: The task's.
        env_id: Its environment.
        source: What was learned from.
        fingerprint: Of the data.
        n_episodes: The data's episodes.
        n_steps: Its steps.
        mean_return: Mean return of its episodes.
        lowest_return: The lowest of them.
        highest_return: The highest.
        target_returns: The returns asked for.
        targets_in_range: Those that the data has episodes on both sides of, or at.
        headline: The target that variants are compared at, decided before anything is trained.
        reference: The returns that the normalised scores 0 and 100 stand for, or None.
        deterministic: Whether discrete actions were the likeliest ones, or drawn.
        settings: Fields of ``DecisionMambaConfig`` that all variants share.
    """

    name: str
    env_id: str
    source: str
    fingerprint: str
    n_episodes: int
    n_steps: int
    mean_return: float
    lowest_return: float
    highest_return: float
    target_returns: tuple[float, ...]
    targets_in_range: tuple[float, ...]
    headline: float
    reference: ReferenceScores | None
    deterministic: bool
    settings: Mapping[str, Any]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ReportedTask:
        """Build one from the ``settings.json`` of a report."""
        reference = fields["reference"]
        changed = {
            "target_returns": tuple(fields["target_returns"]),
            "targets_in_range": tuple(fields["targets_in_range"]),
            "reference": None if reference is None else ReferenceScores(**reference),
        }
        return cls(**{**fields, **changed})


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """Returns of the last weights of an arm for one target (seeds, episodes)."""

    returns: NDArray[np.float64]

    @cached_property
    def estimate(self) -> Estimate:
        """The interquartile mean over seeds and episodes."""
        return estimate(self.returns)

    @property
    def seed_means(self) -> NDArray[np.float64]:
        """Each training's mean return (seeds,)."""
        means: NDArray[np.float64] = self.returns.mean(axis=1)
        return means


@dataclass(frozen=True, eq=False)
class ArmSummary:
    """A variant acting with one memory.

    Args:
        variant: The variant.
        memory: The memory.
        seeds: The training seeds that are done.
        targets: By target, for the last weights.
        history: By update and target, each seed's mean return (seeds,), where there were several
            evaluations; the last weights are in it too.
        losses: Each seed's loss curve (points, 2): update and loss; of a report without
            ``losses.csv``, no points.
        n_parameters: Of the model.
        rank_correlation: Spearman's of asked and achieved, over the targets within the data's
            range; None where these are fewer than three.
    """

    variant: str
    memory: str
    seeds: tuple[int, ...]
    targets: Mapping[float, TargetSummary]
    history: Mapping[int, Mapping[float, NDArray[np.float64]]]
    losses: tuple[NDArray[np.float64], ...]
    n_parameters: int
    rank_correlation: Estimate | None

    @property
    def name(self) -> str:
        """The variant and the memory."""
        return f"{self.variant}, {self.memory}"

    def improvement(self, other: ArmSummary, target: float) -> Estimate:
        """Return how often a training of this arm is above one of another, at a target."""
        own, theirs = self.targets[target].returns, other.targets[target].returns
        return compute_probability_of_improvement(own, theirs)

    @property
    def last_scores(self) -> NDArray[np.float64]:
        """Each seed's mean return at its best target, last weights (seeds,)."""
        scores: NDArray[np.float64] = np.max(
            [each.seed_means for each in self.targets.values()], axis=0
        )
        return scores

    @property
    def best_scores(self) -> NDArray[np.float64]:
        """Each seed's best mean return over targets and evaluations: the paper's way (seeds,)."""
        rows = [means for by_target in self.history.values() for means in by_target.values()]
        scores: NDArray[np.float64] = np.max(rows, axis=0)
        return scores


@dataclass(frozen=True, eq=False)
class TaskSummary:
    """One task's arms.

    Args:
        planned: The task and its data.
        arms: Variants under memories; what is compared with is the first.
    """

    planned: ReportedTask
    arms: tuple[ArmSummary, ...]

    def winner(self, target: float) -> ArmSummary | None:
        """Return the arm whose interval is above all others at a target; None if none is."""
        by_name = {arm.name: arm.targets[target].estimate for arm in self.arms}
        name = find_winner(by_name)
        return next((arm for arm in self.arms if arm.name == name), None)

    def reference_arm(self, arm: ArmSummary) -> ArmSummary | None:
        """Return what an arm is compared with: the baseline under the same memory.

        The baseline's other memories are compared with its first one.
        """
        first = self.arms[0]
        if arm is first:
            return None
        same = [a for a in self.arms if a.variant == first.variant and a.memory == arm.memory]
        return same[0] if same and same[0] is not arm else first

    def normalize(self, returns: Any) -> Any:
        """Return scores between 0 and 100 of the task's reference; None without one."""
        reference = self.planned.reference
        if reference is None:
            return None
        return compute_normalized_score(returns, reference.minimum, reference.maximum)


@dataclass(frozen=True, eq=False)
class ExperimentSummary:
    """All of an experiment.

    Args:
        record: What the report is made from.
        tasks: The tasks with at least one training that is done.
    """

    record: Record
    tasks: tuple[TaskSummary, ...]

    @property
    def n_done(self) -> int:
        """Trainings that are done."""
        rows = self.record.evaluations
        return len({(row["task"], row["variant"], row["seed"]) for row in rows})

    @property
    def n_planned(self) -> int:
        """Trainings of the experiment."""
        return int(self.record.settings["n_trainings"])

    @property
    def is_complete(self) -> bool:
        """Whether every training is done."""
        return self.n_done == self.n_planned

    @property
    def n_evaluations(self) -> int:
        """Evaluations of each training."""
        return max(len(arm.history) for task in self.tasks for arm in task.arms)


def summarize(record: Record) -> ExperimentSummary:
    """Compute what a report says.

    Raises:
        ExperimentError: The record has no evaluations, or its files do not fit together.
    """
    by_arm: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in record.evaluations:
        by_memory = by_arm.setdefault((row["task"], row["variant"]), {})
        by_memory.setdefault(row["memory"], []).append(row)
    losses: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in record.losses:
        curve = losses.setdefault((row["task"], row["variant"], row["seed"]), [])
        curve.append((float(row["update"]), float(row["loss"])))
    try:
        tasks = []
        for task in map(ReportedTask.from_dict, record.settings["tasks"]):
            arms = [
                _summarize_arm(task, rows, losses)
                for variant in record.settings["variants"]
                for rows in by_arm.get((task.name, variant), {}).values()
            ]
            if arms:
                tasks.append(TaskSummary(task, tuple(arms)))
    except (KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"the files of the report do not fit together: {error!r}") from error
    if not tasks:
        raise ExperimentError("no training is done: there is nothing to report")
    return ExperimentSummary(record, tuple(tasks))


def _summarize_arm(
    task: ReportedTask,
    rows: Sequence[Row],
    losses: Mapping[tuple[str, str, str], Sequence[tuple[float, float]]],
) -> ArmSummary:
    variant, memory = rows[0]["variant"], rows[0]["memory"]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    last = max(int(row["update"]) for row in rows)
    returns: dict[float, list[NDArray[np.float64]]] = {}  # of the last weights, a seed each
    means: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        update, target = int(row["update"]), float(row["target_return"])
        mean = float(row["mean"])
        if update == last:
            episodes = np.array(row["returns"].split(), dtype=np.float64)
            returns.setdefault(target, []).append(episodes)
            mean = float(episodes.mean())
        means.setdefault(update, {}).setdefault(target, []).append(mean)
    targets = {target: TargetSummary(np.stack(each)) for target, each in returns.items()}
    within = task.targets_in_range
    correlation = None
    if len(within) >= _FEWEST_TARGETS:
        correlation = compute_rank_correlation(within, [targets[each].returns for each in within])
    curves = [losses.get((task.name, variant, seed), ()) for seed in seeds]
    return ArmSummary(
        variant=variant,
        memory=memory,
        seeds=tuple(map(int, seeds)),
        targets=targets,
        history={
            update: {target: np.array(each) for target, each in by_target.items()}
            for update, by_target in means.items()
        },
        losses=tuple(np.array(curve, dtype=np.float64).reshape(-1, 2) for curve in curves),
        n_parameters=int(rows[0]["n_parameters"]),
        rank_correlation=correlation,
    )
