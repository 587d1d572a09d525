"""Everything that a report says, computed once from the cells' results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.evaluation import compute_normalized_score
from sb3_dmamba.experiments.grid import CellResult
from sb3_dmamba.experiments.planning import Plan, PlannedTask
from sb3_dmamba.experiments.statistics import (
    Estimate,
    compute_probability_of_improvement,
    compute_rank_correlation,
    estimate,
    find_winner,
)

__all__ = ["ArmSummary", "ExperimentSummary", "TargetSummary", "TaskSummary", "summarize"]

_FEWEST_TARGETS = 3  # of a rank correlation


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """What an arm achieved for one target.

    Args:
        returns: (seeds, episodes).
        mean_length: Mean steps of an episode.
    """

    returns: NDArray[np.float64]
    mean_length: float

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
        losses: Each seed's loss curve (points, 2): update and loss.
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

    planned: PlannedTask
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
        reference = self.planned.task.reference
        if reference is None:
            return None
        return compute_normalized_score(returns, reference.minimum, reference.maximum)


@dataclass(frozen=True, eq=False)
class ExperimentSummary:
    """All of an experiment.

    Args:
        plan: What was planned.
        tasks: The tasks with at least one training that is done.
        n_done: Cells that are done.
    """

    plan: Plan
    tasks: tuple[TaskSummary, ...]
    n_done: int

    @property
    def is_complete(self) -> bool:
        """Whether every cell is done."""
        return self.n_done == len(self.plan.cells)

    @property
    def n_evaluations(self) -> int:
        """Evaluations of each training."""
        return max(len(arm.history) for task in self.tasks for arm in task.arms)


def summarize(plan: Plan) -> ExperimentSummary:
    """Read the results of the cells that are done.

    Raises:
        ExperimentError: None is.
    """
    results: dict[tuple[str, str], dict[int, CellResult]] = {}
    n_done = 0
    for planned in plan.cells:
        if planned.folder.is_done:
            by_seed = results.setdefault((planned.task, planned.variant), {})
            by_seed[planned.seed] = planned.folder.read_result()
            n_done += 1
    if not n_done:
        raise ExperimentError("no cell is done: there is nothing to report")
    tasks = []
    for task in plan.tasks:
        arms = [
            _summarize_arm(task, variant, memory, results[task.name, variant])
            for variant in plan.variants
            if (task.name, variant) in results
            for memory in _memories(results[task.name, variant])
        ]
        if arms:
            tasks.append(TaskSummary(task, tuple(arms)))
    return ExperimentSummary(plan, tuple(tasks), n_done)


def _memories(by_seed: Mapping[int, CellResult]) -> list[str]:
    first = next(iter(by_seed.values()))
    return list(dict.fromkeys(each.memory for each in first.evaluations))


def _summarize_arm(
    task: PlannedTask, variant: str, memory: str, by_seed: Mapping[int, CellResult]
) -> ArmSummary:
    results = list(by_seed.values())
    evaluations = [[e for e in result.evaluations if e.memory == memory] for result in results]
    last = results[0].last_update
    targets: dict[float, TargetSummary] = {}
    history: dict[int, dict[float, NDArray[np.float64]]] = {}
    for position, example in enumerate(evaluations[0]):
        same = [each[position] for each in evaluations]
        returns = np.stack([each.returns for each in same])
        history.setdefault(example.update, {})[example.target_return] = returns.mean(axis=1)
        if example.update == last:
            length = float(np.mean([each.lengths.mean() for each in same]))
            targets[example.target_return] = TargetSummary(returns, length)
    within = task.targets_in_range
    correlation = None
    if len(within) >= _FEWEST_TARGETS:
        correlation = compute_rank_correlation(within, [targets[each].returns for each in within])
    return ArmSummary(
        variant=variant,
        memory=memory,
        seeds=tuple(by_seed),
        targets=targets,
        history=history,
        losses=tuple(np.array(result.losses).reshape(-1, 2) for result in results),
        n_parameters=results[0].n_parameters,
        rank_correlation=correlation,
    )
