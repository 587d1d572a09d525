"""Plan of an experiment: its runs, from the catalogue and the user's options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.envs import is_atari
from sb3_dmamba.errors import ConfigError, UnknownTaskError
from sb3_dmamba.experiments.catalogue import Experiment, Variant
from sb3_dmamba.experiments.runs import Cell, CellFolder, EvaluationPlan
from sb3_dmamba.experiments.sources import LoadedData, generic_task, resolve_data
from sb3_dmamba.tasks import Task

_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Request:
    """What the user asks for; None leaves it to the experiment.

    Args:
        data: Tasks: a task's name, ``NAME=SOURCE`` for its recipe on data that lies elsewhere, or
            anything ``load_trajectories`` takes.
        seeds: Training seeds.
        variants: The variants to run.
        n_updates: Updates of each training.
        settings: Fields of ``DecisionMambaConfig`` for all variants.
        target_returns: Returns to ask for.
        n_episodes: Episodes of each target.
        memories: The memories to act with.
        evaluations: How often each training is evaluated, evenly spread.
        deterministic: Whether a discrete action is the likeliest one, or drawn.
        max_episode_steps: Episodes are cut after this many steps.
        data_options: Options of ``load_trajectories`` for all data, over the experiment's own.
        cells: Folder of the cells.
    """

    cells: Path
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    n_updates: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    target_returns: tuple[float, ...] = ()
    n_episodes: int | None = None
    memories: tuple[Memory, ...] = ()
    evaluations: int | None = None
    deterministic: bool | None = None
    max_episode_steps: int | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PlannedTask:
    """One task of a plan, with what its data holds.

    Args:
        task: Environment, recipe, reference.
        source: What was loaded.
        fingerprint: Of the data, without a variant's options (and as the first seed has it).
        returns: The returns of its episodes (E,).
        n_steps: Its steps.
        target_returns: The returns asked for.
    """

    task: Task
    source: str
    fingerprint: str
    returns: NDArray[np.float64]
    n_steps: int
    target_returns: tuple[float, ...]

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def targets_in_range(self) -> tuple[float, ...]:
        """The targets that the data has episodes on both sides of, or at."""
        low, high = float(self.returns.min()), float(self.returns.max())
        return tuple(each for each in self.target_returns if low <= each <= high)

    @property
    def headline(self) -> float:
        """The target that variants are compared at, decided before anything is trained.

        The highest that the data has reached, as for :attr:`DecisionMamba.target_return`.
        """
        return max(self.targets_in_range, default=min(self.target_returns))


@dataclass(frozen=True)
class PlannedCell:
    """A cell and its place in the experiment."""

    task: str
    variant: str
    seed: int
    cell: Cell
    folder: CellFolder


@dataclass(frozen=True)
class Plan:
    """An experiment's cells.

    Args:
        experiment: The experiment.
        tasks: Its tasks.
        variants: Those that run.
        cells: One for each task, variant and seed.
    """

    experiment: Experiment
    tasks: tuple[PlannedTask, ...]
    variants: Mapping[str, Variant]
    cells: tuple[PlannedCell, ...]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))


def make_plan(experiment: Experiment, request: Request) -> Plan:
    """Load the data, decide every cell, and write its description into its folder.

    Args:
        experiment: The experiment.
        request: What the user asks for.

    Raises:
        ConfigError: A setting, a variant or a count is unknown or out of range.
        DatasetError: Data is missing or malformed.
        UnknownTaskError: Data names no environment.
        ExperimentError: A cell's folder holds something else.
    """
    variants = _choose_variants(experiment, request.variants)
    tasks: list[PlannedTask] = []
    cells: list[PlannedCell] = []
    seeds = request.seeds or experiment.seeds
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {seeds}: give each once")
    for text in request.data or experiment.tasks:
        task, source = resolve_data(text)
        loaded = LoadedData(source, request.cells / "data" if experiment.keep_data else None)
        name = task.name if task else source
        given = {**experiment.data_options(name, source, seeds[0]), **request.data_options}
        if task is None:
            task = generic_task(source, loaded.get(given))
        planned = _plan_task(task, source, loaded, given, request)
        if any(planned.name == each.name for each in tasks):
            raise ConfigError(f"--data names {planned.name!r} twice")
        tasks.append(planned)
        for name, variant in variants.items():
            config = _make_config(planned.task, experiment, variant, request)
            evaluation = _plan_evaluation(planned, experiment, request, config)
            for seed in seeds:
                given = experiment.data_options(planned.name, source, seed)
                data = loaded.describe({**given, **variant.data_options, **request.data_options})
                label = f"{planned.name}, {name}, seed {seed}"
                cell = Cell(data, planned.task, config, seed, evaluation, label)
                folder = CellFolder.prepare(request.cells, cell)
                cells.append(PlannedCell(planned.name, name, seed, cell, folder))
    return Plan(experiment, tuple(tasks), variants, tuple(cells))


def _plan_task(
    task: Task, source: str, loaded: LoadedData, options: Mapping[str, Any], request: Request
) -> PlannedTask:
    data = loaded.get(options)
    if task.env_id is None:
        if data.env_id is None:
            raise UnknownTaskError(
                f"{source} does not say in which environment to act: give it as NAME={source} "
                "with the name of a task or of a Gymnasium environment"
            )
        task = dataclasses.replace(task, env_id=data.env_id, env_kwargs=data.env_kwargs)
    targets = request.target_returns or task.target_returns
    if not targets:
        quantiles = np.quantile(data.returns, _QUANTILES)
        targets = tuple(dict.fromkeys(float(f"{each:.4g}") for each in quantiles))
    return PlannedTask(
        task=task,
        source=source,
        fingerprint=loaded.describe(options).fingerprint,
        returns=np.asarray(data.returns, dtype=np.float64),
        n_steps=data.n_steps,
        target_returns=tuple(map(float, targets)),
    )


def _make_config(
    task: Task, experiment: Experiment, variant: Variant, request: Request
) -> DecisionMambaConfig:
    relative = {} if variant.relative is None else variant.relative(task.config())
    settings = {**experiment.settings, **relative, **variant.settings, **request.settings}
    if request.n_updates is not None:
        settings["n_updates"] = request.n_updates
    return task.config(**settings)


def _plan_evaluation(
    planned: PlannedTask,
    experiment: Experiment,
    request: Request,
    config: DecisionMambaConfig,
) -> EvaluationPlan:
    evaluations = request.evaluations or experiment.evaluations
    memories = request.memories or experiment.memories
    if config.time_encoding == "global":  # says the place in the window, which stream has not
        memories = tuple(each for each in memories if each == "window") or ("window",)
    return EvaluationPlan(
        target_returns=planned.target_returns,
        n_episodes=request.n_episodes or experiment.n_episodes,
        memories=memories,
        every=math.ceil(config.n_updates / evaluations) if evaluations > 1 else 0,
        deterministic=_is_deterministic(planned.task, experiment, request),
        max_episode_steps=request.max_episode_steps,
    )


def _is_deterministic(task: Task, experiment: Experiment, request: Request) -> bool:
    """Draw a game's actions, as is published: the likeliest may never be the one it starts with."""
    if request.deterministic is not None:
        return request.deterministic
    return experiment.deterministic and not is_atari(task.env_id)


def _choose_variants(experiment: Experiment, names: Sequence[str]) -> dict[str, Variant]:
    for name in names:
        if name not in experiment.variants:
            known = ", ".join(map(repr, experiment.variants))
            raise ConfigError(f"{experiment.name} has no variant {name!r}: it has {known}")
    return {name: each for name, each in experiment.variants.items() if not names or name in names}
