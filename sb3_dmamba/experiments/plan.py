"""Plan of an experiment: its tasks with their data, and its runs.

:func:`make_plan` resolves each ``--data``, loads the data once, and prepares a folder for each
task, variant and seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.checks import check_number
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data.sources import find_source, load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import is_atari
from sb3_dmamba.errors import ConfigError, UnknownTaskError
from sb3_dmamba.experiments import catalogue, runs
from sb3_dmamba.experiments.catalogue import Experiment, Variant
from sb3_dmamba.experiments.models import measure_update_seconds
from sb3_dmamba.experiments.runs import DataSource, EvaluationPlan, Run, RunFolder
from sb3_dmamba.tasks import Task, get_reference_scores, get_task
from sb3_dmamba.training.updater import resolve_config

_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Request:
    """The user's options of an experiment; None or empty takes the experiment's own.

    Args:
        cells: Folder of the runs.
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
        processor_seconds: Processor time of each training instead of a number of updates: a
            variant gets as many as this buys, at a cost measured once and kept in ``cells``.
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
    processor_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class PlannedTask:
    """One task of a plan, and its data."""

    task: Task
    source: str
    fingerprint: str  # with the first seed's options and without a variant's
    returns: NDArray[np.float64]  # (E,)
    n_steps: int
    target_returns: tuple[float, ...]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def targets_in_range(self) -> tuple[float, ...]:
        """The targets between the lowest and the highest return of the data."""
        low, high = float(self.returns.min()), float(self.returns.max())
        return tuple(each for each in self.target_returns if low <= each <= high)

    @property
    def headline(self) -> float:
        """The target that variants are compared at: the highest that the data has reached."""
        return max(self.targets_in_range, default=min(self.target_returns))


@dataclass(frozen=True)
class PlannedRun:
    """A run, its folder, and its place in the experiment."""

    task: str
    variant: str
    seed: int
    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class Plan:
    """An experiment's runs."""

    experiment: Experiment
    tasks: tuple[PlannedTask, ...]
    variants: Mapping[str, Variant]
    runs: tuple[PlannedRun, ...]
    processor_seconds: float | None = None  # of each training


def make_plan(
    experiment: Experiment, request: Request, say: Callable[[str], None] | None = None
) -> Plan:
    """Load the data, plan every run, and write its description into its folder.

    Args:
        experiment: The experiment.
        request: Data, seeds and other options.
        say: Given a line of text before and after each cost is measured; None says nothing.

    Raises:
        DecisionMambaError: An option is invalid, or data cannot be loaded.
    """
    budget = _choose_budget(experiment, request)
    variants = catalogue.choose_variants(experiment.name, experiment.variants, request.variants)
    seeds = request.seeds or experiment.seeds
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {seeds}: give each once", setting="seeds", value=seeds)
    tasks: list[PlannedTask] = []
    planned_runs: list[PlannedRun] = []
    for text in request.data or experiment.tasks:
        task, source = resolve_data(text)
        loaded = LoadedData(source, request.cells / "data" if experiment.keep_data else None)
        name = task.name if task else source
        options = {**experiment.data_options(name, source, seeds[0]), **request.data_options}
        task = task or generic_task(source, loaded.get(options))
        planned = _plan_task(task, loaded, options, request.target_returns)
        if any(planned.name == each.name for each in tasks):
            message = f"--data names {planned.name!r} twice"
            raise ConfigError(message, setting="data", value=request.data)
        tasks.append(planned)
        for name, variant in variants.items():
            first = loaded.describe({**options, **variant.data_options, **request.data_options})
            template = _Template(planned, experiment, variant, request)
            n_updates = request.n_updates
            if budget is not None:
                probe = template.plan(_PROBE_UPDATES, first, loaded.get(options))
                label = f"{planned.name}, {name}"
                seconds = _find_update_seconds(probe, label, request.cells, say)
                n_updates = max(1, round(budget / seconds))
            common = template.plan(n_updates, first, loaded.get(options))
            for seed in seeds:
                own = experiment.data_options(planned.name, source, seed)
                data = loaded.describe({**own, **variant.data_options, **request.data_options})
                label = f"{planned.name}, {name}, seed {seed}"
                run = dataclasses.replace(common, data=data, seed=seed, label=label)
                folder = RunFolder.prepare(request.cells, run)
                planned_runs.append(PlannedRun(planned.name, name, seed, run, folder))
    return Plan(experiment, tuple(tasks), variants, tuple(planned_runs), budget)


_PROBE_UPDATES = 1000  # of the training whose first updates are measured


def _choose_budget(experiment: Experiment, request: Request) -> float | None:
    seconds = request.processor_seconds
    if seconds is None:
        return experiment.processor_seconds if request.n_updates is None else None
    if request.n_updates is not None:
        message = f"n_updates={request.n_updates} and processor_seconds={seconds}: give one of them"
        raise ConfigError(message, setting="processor_seconds", value=seconds)
    return check_number("processor_seconds", seconds, 0.001, math.inf, "above 0")


def _find_update_seconds(
    run: Run, label: str, cells: Path, say: Callable[[str], None] | None
) -> float:
    """Return the processor time of an update: as measured before, or measured now."""
    path = cells / "costs" / f"{run.cost_key}.json"
    known = runs.read_json(path, None)
    if known is None:
        say = say or (lambda _: None)
        say(f"{label}: measuring the processor time of an update, once, before anything trains")
        started = time.monotonic()
        known = {"label": label, "update_seconds": measure_update_seconds(run)}
        runs.write_json(path, known)
        measured = f"{1000 * known['update_seconds']:.3g} ms an update"
        say(f"{label}: {measured}, measured in {time.monotonic() - started:.0f} s (kept in {path})")
    return float(known["update_seconds"])


@dataclass(frozen=True)
class _Template:
    """What the runs of a variant on a task have in common."""

    planned: PlannedTask
    experiment: Experiment
    variant: Variant
    request: Request

    def plan(self, n_updates: int | None, data: DataSource, trajectories: Trajectories) -> Run:
        """Return a run of some length, without its own seed."""
        variant = self.variant
        task = _with_recipe(self.planned.task, variant)
        settings: dict[str, Any] = {}
        if variant.algorithm:
            given = {} if n_updates is None else {"n_updates": n_updates}
            config = DecisionMambaConfig.from_recipe("paper", **given)
            relative = {} if variant.relative is None else variant.relative(config)
            settings = {**variant.settings, **relative}
        else:
            config = _make_config(task, self.experiment, variant, self.request, n_updates)
            config = resolve_config(config, trajectories)
        evaluation = _plan_evaluation(
            self.planned, self.experiment, self.request, config, variant.algorithm
        )
        peer = {"algorithm": variant.algorithm, "algorithm_settings": settings}
        return Run(data, task, config, 0, evaluation, **peer)  # type: ignore[arg-type]


def _plan_task(
    task: Task, loaded: LoadedData, options: Mapping[str, Any], targets: tuple[float, ...]
) -> PlannedTask:
    data = loaded.get(options)
    if task.env_id is None:
        if data.env_id is None:
            message = (
                f"{loaded.source} does not say in which environment to act: give it as "
                f"NAME={loaded.source} with the name of a task or of a Gymnasium environment"
            )
            raise UnknownTaskError(message, setting="data", value=loaded.source)
        task = dataclasses.replace(task, env_id=data.env_id, env_kwargs=data.env_kwargs)
    targets = targets or task.target_returns
    if not targets:
        quantiles = np.quantile(data.returns, _QUANTILES)
        targets = tuple(dict.fromkeys(float(f"{each:.4g}") for each in quantiles))
    fingerprint = loaded.describe(options).fingerprint
    returns = np.asarray(data.returns, dtype=np.float64)
    targets = tuple(map(float, targets))
    return PlannedTask(task, loaded.source, fingerprint, returns, data.n_steps, targets)


def _with_recipe(task: Task, variant: Variant) -> Task:
    """Return the task with the variant's recipe alone; ``Task.with_recipe`` keeps its own."""
    if variant.recipe is None:
        return task
    return dataclasses.replace(task, recipe=variant.recipe, overrides={})


def _make_config(
    task: Task, experiment: Experiment, variant: Variant, request: Request, n_updates: int | None
) -> DecisionMambaConfig:
    relative = {} if variant.relative is None else variant.relative(task.config())
    settings = {**experiment.settings, **relative, **variant.settings, **request.settings}
    if n_updates is not None:
        settings["n_updates"] = n_updates
    return task.config(**settings)


def _plan_evaluation(
    planned: PlannedTask,
    experiment: Experiment,
    request: Request,
    config: DecisionMambaConfig,
    algorithm: str = "",
) -> EvaluationPlan:
    evaluations = request.evaluations or experiment.evaluations
    memories: tuple[str, ...] = request.memories or experiment.memories
    if algorithm:
        memories = ("window" if algorithm == catalogue.D3RLPY_TRANSFORMER else "none",)
    elif config.time_encoding == "global":  # encodes the place in the window; stream has none
        memories = tuple(each for each in memories if each == "window") or ("window",)
    deterministic = request.deterministic
    if deterministic is None:  # published scores of Atari games are of drawn actions
        deterministic = experiment.deterministic and not is_atari(planned.task.env_id)
    return EvaluationPlan(
        target_returns=planned.target_returns,
        n_episodes=request.n_episodes or experiment.n_episodes,
        memories=memories,
        every=math.ceil(config.resolved_n_updates / evaluations) if evaluations > 1 else 0,
        deterministic=deterministic,
        max_episode_steps=request.max_episode_steps,
    )


# --- Tasks and data by name ----------------------------------------------------------------------


def resolve_data(text: str) -> tuple[Task | None, str]:
    """Parse one ``--data``."""
    small = {task.name: task for task in catalogue.list_small_tasks()}
    name, equals, source = text.partition("=")
    if equals and (task := small.get(name) or _find_task(name)) is not None:
        return task, source
    for task in small.values():
        if text in (task.name, task.dataset):
            return task, str(task.dataset)
    task = _find_task(text)
    if task is None:
        return None, text
    if task.dataset is None:
        message = f"{text} has no data of its own: say where it lies with --data {text}=PATH"
        raise UnknownTaskError(message, setting="data", value=text)
    return (task if task.target_returns else None), task.dataset


def _find_task(name: str) -> Task | None:
    if Path(name).exists():
        return None
    try:
        return get_task(name)
    except UnknownTaskError:
        return None


def generic_task(source: str, trajectories: Trajectories) -> Task:
    """Return a task for data without one: a small recipe, scaled by the data."""
    largest = float(np.abs(trajectories.returns).max()) or 1.0
    return Task(
        name=Path(source).stem if Path(source).exists() else source,
        env_id=trajectories.env_id,
        env_kwargs=trajectories.env_kwargs,
        dataset=source,
        reference=get_reference_scores(trajectories.env_id or ""),
        recipe="paper",
        overrides={
            **catalogue.SMALL_RECIPE,
            "return_scale": 10.0 ** math.floor(math.log10(largest)),
            "max_timestep": int(trajectories.lengths.max()),
        },
        description=f"data at {source}",
    )


class LoadedData:
    """A source under different options, each loaded and hashed once."""

    def __init__(self, source: str, stores: Path | None) -> None:
        self.source = source
        self._stores = stores
        self._described: dict[str, DataSource] = {}
        self._last: tuple[str, Trajectories] | None = None

    def get(self, options: Mapping[str, Any]) -> Trajectories:
        """Load the data; the data loaded last is kept."""
        key = _options_key(options)
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once may not fit into memory
            source, rest = self._locate(options)
            self._last = key, load_trajectories(source, **rest)
        return self._last[1]

    def describe(self, options: Mapping[str, Any]) -> DataSource:
        """Return where a run finds the data, and its fingerprint."""
        key = _options_key(options)
        if key not in self._described:
            fingerprint = runs.compute_fingerprint(self.get(options))
            self._described[key] = DataSource(*self._locate(options), fingerprint)
        return self._described[key]

    def _locate(self, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the source and its options, or the store that it was converted to."""
        kind = find_source(self.source) if self._stores else None
        if not self._stores or kind is None or "store" not in kind.option_names():
            return self.source, dict(options)
        name = f"{Path(self.source).resolve()} {_options_key(options)}"
        store = self._stores / hashlib.sha256(name.encode()).hexdigest()[:16]
        if not store.exists():
            load_trajectories(self.source, **options, store=store)
        return str(store), {}


def _options_key(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))
