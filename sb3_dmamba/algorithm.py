"""Decision Mamba as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, get_system_info
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import DecisionMambaConfig, Memory, Recipe
from sb3_dmamba.context import Environment, RunContext, check_spaces, make_factory
from sb3_dmamba.data import DatasetInfo, Trajectories, load_trajectories
from sb3_dmamba.data import compute_observation_statistics as compute_statistics
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    MissingDependencyError,
    NotFittedError,
    ParametersError,
    UnknownTaskError,
)
from sb3_dmamba.evaluation import EvaluationReport, ReportDetails, StatefulActor, evaluate_targets
from sb3_dmamba.export import ExportedPolicy, export_policy
from sb3_dmamba.io import warn_caller
from sb3_dmamba.machine import check_precision, choose_precision, describe_device
from sb3_dmamba.model_file import ATTRIBUTES, COUNTERS, SavedModel, check_parameters
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import check_policy_kwargs, name_extractor
from sb3_dmamba.ops.dispatch import compile_ahead
from sb3_dmamba.spaces import check_dataset_fits, flatten_for
from sb3_dmamba.tasks import Task, get_task
from sb3_dmamba.training.batches import make_sampler
from sb3_dmamba.training.distributed import join_processes, local_device
from sb3_dmamba.training.loop import Evaluations, UpdateLog, as_callbacks, run_updates
from sb3_dmamba.training.updater import (
    Updater,
    compute_learning_rate,
    draw_seed,
    plan_schedule,
    resolve_config,
)

# Of a model file: what may be left out, and attributes without which there is no model.
_OPTIONAL = ("optimizer", "target_return", *ATTRIBUTES, *COUNTERS)
_REQUIRED = (
    *("policy", "config", "task", "dataset", "seed", "learning_rate", "policy_kwargs"),
    *("observation_space", "action_space", "_schedule"),
)

Self = TypeVar("Self", bound="DecisionMamba")


class DecisionMamba(BaseAlgorithm):
    """Offline reinforcement learning by sequence modelling, with Mamba in place of attention.

    Args:
        task: A task name (:func:`sb3_dmamba.list_tasks`), a Minari or Gymnasium id, an
            environment, or None: the spaces then come from the dataset.
        config: Settings; None takes the recipe's.
        env: Environment to act in, where it is not the task's.
        seed: Seed of the weights, the batches and dropout; None draws one. Two runs with one
            seed and dataset give the same weights on one machine with one number of threads.
        device: ``"auto"`` is CUDA where there is one; under torchrun each process's own GPU.
        verbose: 0 is silent, 1 prints the log.
        tensorboard_log: Folder for TensorBoard.
        policy_kwargs: Stable-Baselines3's ``features_extractor_class`` and
            ``features_extractor_kwargs`` (:class:`~sb3_dmamba.networks.ExtractorEncoder`).
        recipe: ``"default"``, which measures best on small data, or ``"paper"``; None is the
            task's: the paper's for the tasks of the paper.
        stats_window_size: Length of ``ep_info_buffer`` and ``ep_success_buffer``, which only
            callbacks of your own fill: learning from a dataset plays no episodes.
        **overrides: Fields of :class:`~sb3_dmamba.DecisionMambaConfig` to change.

    Raises:
        UnknownTaskError: The name is unknown; suggests close ones.
        ConfigError: A setting is unknown or out of range, ``policy_kwargs`` has something else, or
            the task is one of Stable-Baselines3's policies.

    Source: Ota 2024 (arXiv:2403.19925).
    """

    policy: DecisionMambaPolicy
    seed: int

    def __init__(
        self,
        task: str | Task | Environment | None = None,
        env: Environment | None = None,
        *,
        config: DecisionMambaConfig | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        recipe: Recipe | None = None,
        stats_window_size: int = 100,
        **overrides: Any,
    ) -> None:
        if _is_policy(task) or "policy" in overrides:
            task = overrides.get("policy", task)
            message = (
                f"{task!r} is a policy, and the first argument is what to learn: a task's name, an "
                f"environment or None. Write DecisionMamba(env) or DecisionMamba(None, env=env); "
                f"the network has settings, such as hidden_size=256"
            )
            raise ConfigError(message, setting="task", value=task)
        self.task = get_task(task) if isinstance(task, str) else None
        if isinstance(task, Task):
            self.task = task
        elif task is not None and not isinstance(task, str):
            if env is not None:
                message = "the task is an environment already: leave env out"
                raise ConfigError(message, setting="env", value=env)
            env = task
        if config is not None and recipe is not None:
            message = f"recipe={recipe!r} and a config are given: leave one of them out"
            raise ConfigError(message, setting="recipe", value=recipe)
        chosen = (self.task or Task("")).with_recipe(recipe)
        self.task = chosen if self.task is not None else None
        self.config = chosen.config(**overrides) if config is None else config.replace(**overrides)
        super().__init__(
            DecisionMambaPolicy,
            env=None,
            learning_rate=self.config.learning_rate,
            policy_kwargs=check_policy_kwargs(policy_kwargs),
            stats_window_size=check_integer("stats_window_size", stats_window_size, 1),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=local_device(device),
            support_multi_env=True,
            seed=draw_seed() if seed is None else check_integer("seed", seed, 0),
        )
        self.n_envs = getattr(env, "num_envs", 1)
        self._context = RunContext(env, self.task)
        self._updater: Updater | None = None  # policy and optimiser, once the spaces are known
        self._trajectories: Trajectories | None = None
        self._schedule: dict[str, int | None] | None = None  # of the run, once it has begun
        self._computed: dict[str, Any] = {}  # how: precision asked for, threads, device
        self._lr_function: Schedule | None = None  # in place of the config's schedule
        self._prints_evaluations = False  # although verbose is 0
        self._update_log: UpdateLog | None = None  # since fit
        self._recipe: Callable[..., DecisionMambaConfig] | None = None
        if config is None:
            given = {name: value for name, value in overrides.items() if name != "n_updates"}
            self._recipe = functools.partial(chosen.config, **given)

    # --- Training ------------------------------------------------------------------------------

    def fit(
        self: Self,
        dataset: Any = None,
        n_steps: int | None = None,
        *,
        callback: MaybeCallback = None,
        eval_env: Environment | None = None,
        eval_freq: int = 0,
        n_eval_episodes: int = 5,
        log_interval: int = 100,
        tb_log_name: str = "DecisionMamba",
        progress_bar: bool = False,
        reset_num_timesteps: bool = False,
    ) -> Self:
        """Learn from a dataset; called again, continue.

        Under torchrun, or with ``torch.distributed`` initialised, the processes share every batch;
        only rank 0 calls callbacks, logs, evaluates and shows a progress bar.

        Args:
            dataset: Anything :func:`~sb3_dmamba.load_trajectories` takes; None is the last one,
                or the task's own.
            n_steps: Updates to run; None finishes an interrupted run, else takes the config's
                ``n_updates``. A task's warm-up and decay follow in proportion for a new run.
            callback: Stable-Baselines3 callbacks; ``on_step`` fires once an update.
            eval_env: Environment to evaluate in during training; None is the model's own.
            eval_freq: Updates between two evaluations; 0 is never.
            n_eval_episodes: Episodes of each.
            log_interval: Updates between two lines of the log.
            tb_log_name: Name of the run in TensorBoard.
            progress_bar: Whether to show one.
            reset_num_timesteps: Whether the learning-rate schedule starts again from zero.

        Raises:
            ConfigError: ``n_steps``, ``eval_freq`` or ``log_interval`` is out of range, or the
                device does not have the precision.
            DatasetError: There is no dataset, or it cannot be used.
            SpaceError: It does not fit the model or its environment.
            UnknownTaskError: ``eval_freq`` or a callback needs an environment; none is known.
            ConditioningError: A callback evaluates in an environment without return-to-go.
            DivergenceError: The loss stopped being finite; the message says when.
            DistributedError: Processes differ in what they train, or one of them is gone.
        """
        log_interval = check_integer("log_interval", log_interval, 1)
        eval_freq = check_integer("eval_freq", eval_freq, 0)
        if n_steps is not None:
            n_steps = check_integer("n_steps", n_steps, 1)
        with join_processes(self.device) as processes:
            self._compile_ahead()
            with processes.leader_first():
                trajectories = self._load_dataset(dataset)
            if (seed := processes.from_leader(self.seed)) != self.seed:
                self.set_random_seed(seed)
            updater = self._set_up(trajectories)
            if eval_freq > 0 and processes.is_leader:
                evaluations = self._make_evaluations(eval_env, eval_freq, n_eval_episodes)
                callback = [*as_callbacks(callback), evaluations]
            if reset_num_timesteps:
                self.num_timesteps = self._total_timesteps = 0
            self._note_machine()
            if n_steps is None:
                unfinished = self._total_timesteps - self.num_timesteps
                n_steps = unfinished if unfinished > 0 else self.config.resolved_n_updates
            self._total_timesteps = self.num_timesteps + n_steps
            if self.num_timesteps == 0 or self._schedule is None:
                # A recipe's schedule is of its own number of updates: another is in proportion.
                n_updates, recipe = self._total_timesteps, self._recipe
                config = self.config if recipe is None else recipe(n_updates=n_updates)
                self._schedule = plan_schedule(config, n_updates)
            updater.schedule = self.config.replace(**self._schedule)
            updater.lr_schedule = self._lr_function
            self.start_time, self._num_timesteps_at_start = time.time_ns(), self.num_timesteps
            if self.ep_info_buffer is None or reset_num_timesteps:
                self.ep_info_buffer = deque(maxlen=self._stats_window_size)
                self.ep_success_buffer = deque(maxlen=self._stats_window_size)
            rows = processes.rows(self.config.batch_size)
            sampler = make_sampler(trajectories, self.config, self.seed, rows)
            log = log_interval, tb_log_name, progress_bar
            run_updates(self, updater, sampler, processes, callback, *log)
        return self

    def _compile_ahead(self) -> None:
        """Compile the kernels of an update, in a thread, while a dataset is loaded."""
        if self.config.mixer == "mamba":
            compile_ahead(self.config.backend, self.device)

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "DecisionMamba",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Stable-Baselines3's name for :meth:`fit` on the last dataset; a timestep is an update."""
        log: dict[str, Any] = {"log_interval": log_interval, "tb_log_name": tb_log_name}
        log |= {"progress_bar": progress_bar, "reset_num_timesteps": reset_num_timesteps}
        return self.fit(None, total_timesteps, callback=callback, **log)

    def _load_dataset(self, dataset: Any) -> Trajectories:
        if dataset is not None:
            return load_trajectories(dataset)
        if self._trajectories is not None:
            return self._trajectories
        if self.task is not None and self.task.dataset is not None:
            return load_trajectories(self.task.dataset)
        fix = "pass one, model.fit(dataset), or name a task that has one"
        raise DatasetError(f"there is no dataset to fit: {fix}", setting="dataset")

    def _set_up(self, trajectories: Trajectories) -> Updater:
        """Build the networks at the first call; check that dataset and environment fit them."""
        is_new = trajectories is not self._trajectories
        dataset = DatasetInfo.of(trajectories) if is_new else self.dataset
        self._context.check_dataset(dataset)
        theirs = trajectories.observation_space, trajectories.action_space
        if self._updater is None:
            normalize = self.config.normalize_observations
            statistics = compute_statistics(trajectories) if normalize else None
            self._computed["precision"] = asked = self.config.precision
            precision = choose_precision(asked, self.device)
            self.config = resolve_config(self.config, trajectories).replace(precision=precision)
            seed, device, kwargs = self.seed, self.device, self.policy_kwargs
            self._adopt(Updater.create(*theirs, self.config, statistics, seed, device, kwargs))
        check_dataset_fits(*theirs, self.policy.flat_space, self.action_space)
        if is_new:
            self._trajectories = trajectories
            self._context.set_dataset(dataset)
        if self._context.env_may_differ:
            try:
                self.get_env()
            except (MissingDependencyError, UnknownTaskError):
                if self._context.env is not None:
                    raise  # one that only the task names is made when it is needed, and raises then
        assert self._updater is not None
        return self._updater

    def _note_machine(self) -> None:
        """Check the precision, and record what a training computes with."""
        check_precision(self.config.precision, self.device)
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        before = self._computed.get("threads")
        if self.num_timesteps and None not in (before, threads) and before != threads:
            warn_caller(
                f"this training has run on {before} threads and goes on with {threads}: matrix "
                f"products round differently then, so that its weights are not exactly those of a "
                f"run on {before} throughout (OMP_NUM_THREADS={before})"
            )
        self._computed.setdefault("precision", self.config.precision)  # of an older file
        self._computed |= {"threads": threads, "device": describe_device(str(self.device))}

    def _adopt(self, updater: Updater) -> None:
        self._updater = updater
        self.policy = updater.policy
        self._context.observation_space = updater.policy.flat_space
        self.observation_space = updater.policy.observation_space
        self.action_space = updater.policy.action_space

    def _make_evaluations(
        self, env: Environment | None, eval_freq: int, n_episodes: int
    ) -> Evaluations:
        n_episodes = check_integer("n_eval_episodes", n_episodes, 1)
        venv = self._context.wrap(self._context.require_env() if env is None else env)
        self._check_spaces(venv, "the environment")
        return Evaluations(venv, eval_freq, n_episodes, self.verbose or self._prints_evaluations)

    @property
    def dataset(self) -> DatasetInfo:
        """What the model was fitted to last."""
        return self._context.dataset

    # --- Acting --------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions; see :meth:`DecisionMambaPolicy.predict`.

        An observation of the space that was flattened is flattened here, parts matched by name.
        Actions have the action space's dtype.
        """
        policy = self._built_policy()
        if isinstance(observation, Mapping) and "observation" in observation:
            flat = flatten_for(policy.flat_space, observation["observation"])
            observation = {**observation, "observation": flat}
        return policy.predict(observation, state, episode_start, deterministic)

    @property
    def trained_policy(self) -> DecisionMambaPolicy:
        """The policy whose weights training changes: ``policy`` itself, unless these are averaged.

        With ``ema_decay`` the weights of ``policy`` are the moving average of this one's, and
        ``policy`` acts, during training too: in ``predict``, ``evaluate``, ``export``,
        ``policy.save`` and callbacks. Weights written into it by other means than
        :meth:`set_parameters` do not reach this one.

        Raises:
            NotFittedError: The model has no weights yet.
        """
        self._built_policy()
        assert self._updater is not None
        return self._updater.trained

    def as_stateful_wrapper(
        self,
        target_return: float,
        *,
        memory: Memory | None = None,
        deterministic: bool = True,
        clip_rewards: bool | None = None,
        delayed_rewards: bool | None = None,
    ) -> StatefulActor:
        """Return an actor for one environment whose caller passes the rewards itself.

        Args:
            target_return: Return to ask for at the start of each episode.
            memory: As in :meth:`evaluate`, and so are the options after it.

        Returns:
            An actor with d3rlpy's protocol: ``predict(x, reward)`` and ``reset()``.
        """
        policy, options = self._built_policy(), self._reward_options(clip_rewards, delayed_rewards)
        return StatefulActor(policy, target_return, memory, deterministic, **options)

    def condition_env(self, env: Any, target_return: float | None = None) -> Any:
        """Wrap an environment in :class:`~sb3_dmamba.ReturnToGo`, counted as in the dataset.

        It may be a vector environment or ``VecEnv``; None is :attr:`target_return`.
        """
        return self._context.condition(env, target_return)

    @property
    def target_return(self) -> float:
        """Return that :meth:`get_env` asks for at the start of an episode; may be set.

        By default the highest of the task's targets that the dataset has reached (else the
        lowest), or without a task the dataset's best return. None goes back to that.

        Raises:
            ConfigError: There is no default, or a value is not finite.
        """
        return self._context.target_return

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        self._context.target_return = value

    def _built_policy(self) -> DecisionMambaPolicy:
        if self._updater is None:
            raise _no_weights()
        return getattr(self.policy, "_orig_mod", self.policy)  # where torch.compile wraps it

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Before fit: the spaces of the environment, and a NotFittedError for the policy."""
            if name == "policy":
                raise _no_weights()
            if name not in ("observation_space", "action_space"):
                message = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(message, name=name, obj=self)
            try:
                env = self._context.wrap(self._context.require_env(), 0.0)
            except (MissingDependencyError, UnknownTaskError) as error:
                message = f"{name} is not known before the model is fitted: {error}"
                raise NotFittedError(message) from error
            self.observation_space, self.action_space = env.observation_space, env.action_space
            return vars(self)[name]

    def _reward_options(
        self, clip_rewards: bool | None, delayed_rewards: bool | None
    ) -> dict[str, Any]:
        """Return how the return-to-go counts rewards; None is as in the dataset."""
        given = {"clip_rewards": clip_rewards, "delayed_rewards": delayed_rewards}
        return {k: getattr(self._context, k) if v is None else v for k, v in given.items()}

    # --- Evaluation ----------------------------------------------------------------------------

    def evaluate(
        self,
        target_returns: float | Sequence[float] | None = None,
        n_episodes: int = 10,
        *,
        env: Environment | None = None,
        memory: Memory | None = None,
        weights: Literal["ema", "last"] | None = None,
        deterministic: bool = True,
        clip_rewards: bool | None = None,
        delayed_rewards: bool | None = None,
        max_episode_steps: int | None = None,
        seed: int | None = None,
        n_envs: int | None = None,
        n_workers: int | None = None,
    ) -> EvaluationReport:
        """Act for whole episodes, every target and episode together, and report the returns.

        Args:
            target_returns: Returns to ask for; None takes the task's, or the dataset's median,
                90th percentile and best.
            n_episodes: Episodes of each target.
            env: Environment to act in; None is the model's.
            memory: ``"window"`` or ``"stream"``; None is the config's.
            weights: ``"ema"`` (averaged) or ``"last"`` (raw); None is what acts: the average if the
                config has ``ema_decay``.
            deterministic: Whether a discrete action is the likeliest one, or drawn.
            clip_rewards: Whether targets count rewards clipped to [-1, 1] (scores never do); None
                is as in the dataset, or the task.
            delayed_rewards: Whether the return-to-go stays at the target until an episode's end;
                None is as in the dataset.
            max_episode_steps: Episodes are cut after this many steps; None leaves it to the
                environment, which may wait long: a game of Breakout without FIRE lasts 27,000.
            seed: Episode k of every target has environment seed ``seed + k``; None is the model's.
            n_envs: Environments that live at once; None is one an episode, at most 128.
            n_workers: Subprocesses that step them, which changes no result; None or 0 is none. One
                a core is faster where a step is slow and episodes are long.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: ``weights`` names some that the model does not have.
            UnknownTaskError: No environment is known, or it cannot be made again.
            SpaceError: The environment's spaces are not the model's.
        """
        self._built_policy()
        assert self._updater is not None
        policy, weights = self._updater.choose(weights)
        if target_returns is None:
            target_returns = self._context.target_returns()
        return evaluate_targets(
            policy,
            make_factory(self._context.require_env() if env is None else env),
            target_returns,
            n_episodes,
            n_envs=n_envs,
            n_workers=n_workers,
            seed=self.seed if seed is None else seed,
            memory=memory,
            deterministic=deterministic,
            **self._reward_options(clip_rewards, delayed_rewards),
            max_episode_steps=max_episode_steps,
            reference=None if env is not None else self._context.reference_scores(),
            details=ReportDetails(
                task=None if self.task is None else self.task.name,
                dataset=self.dataset.source or None,
                dataset_returns=self.dataset.returns if len(self.dataset.returns) else None,
                mixer=self.config.mixer,
                training_seed=self.seed,
                n_updates=self._n_updates,
                weights=weights,
            ),
        )

    # --- Files ---------------------------------------------------------------------------------

    def save(  # type: ignore[override]  # any path, and files that are only writable
        self,
        path: str | os.PathLike[str] | BinaryIO,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write the model to a zip of JSON and safetensors, from which training continues exactly.

        Args:
            path: File to write, atomically; ``.zip`` is added to a name without a suffix.
            exclude: Names of what to leave out; loading takes the defaults for it.
                ``"optimizer"`` is two thirds of the file (with ``ema_decay`` the raw weights too:
                training then continues from the average); others are ``"verbose"``,
                ``"tensorboard_log"``, ``"target_return"`` and counters such as
                ``"num_timesteps"``. Attributes that no file holds may be named too.
            include: Names to write although ``exclude`` has them.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: ``exclude`` names something unknown, or that every model needs; or
                ``include`` something that is no data, such as ``"env"``.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy = self._built_policy()
        assert self._updater is not None
        excluded = self._read_excluded(exclude, include)
        counters = {name: 0 if name in excluded else getattr(self, name) for name in COUNTERS}
        target_return = self._context.chosen_target_return
        SavedModel(
            config=self.config,
            task=self.task,
            dataset=self.dataset,
            observation_space=policy.flat_space,
            action_space=self.action_space,
            target_return=None if "target_return" in excluded else target_return,
            seed=self.seed,
            counters=counters,
            policy=policy.state_dict(),
            optimizer={} if "optimizer" in excluded else self._updater.state(),
            extractor=name_extractor(self.policy_kwargs),
            schedule=self._schedule,
            computed=self._computed,
            attributes=self._attributes_to_save(excluded),
        ).write(path)

    def _read_excluded(
        self, exclude: Iterable[str] | None, include: Iterable[str] | None
    ) -> set[str]:
        """Return what a model file is to leave out, after a check of the names."""
        left_out, kept = (
            {"optimizer" if name == "policy.optimizer" else name for name in names}
            for names in map(_as_names, (exclude, include))
        )
        # What no file holds, of this algorithm and Stable-Baselines3's, is left out in any case.
        absent = {*vars(self), *self._excluded_save_params()} - {*_OPTIONAL, *_REQUIRED}
        if unknown := sorted(map(str, left_out - {*_OPTIONAL, *absent})):
            message = f"exclude={unknown}: what can be left out is {', '.join(_OPTIONAL)}"
            raise ConfigError(message, setting="exclude", value=unknown, choices=_OPTIONAL)
        if objects := sorted(map(str, kept - {*_OPTIONAL, *_REQUIRED})):
            message = (
                f"include={objects}: a model file holds data and no objects; pass what you need "
                f"again, such as env= to DecisionMamba.load"
            )
            raise ConfigError(message, setting="include", value=objects, choices=_OPTIONAL)
        return left_out - kept

    def _attributes_to_save(self, excluded: set[str]) -> dict[str, Any]:
        log = self.tensorboard_log
        values = {
            "verbose": int(self.verbose),
            "tensorboard_log": None if log is None else os.fspath(log),
            "_stats_window_size": self._stats_window_size,
        }
        names = [name for name in values if name not in excluded]
        return {name: values[name] for name in names if values[name] != ATTRIBUTES[name]}

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: str | os.PathLike[str] | BinaryIO,
        env: Environment | None = None,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        verbose: int | None = None,
        tensorboard_log: str | None = None,
        seed: int | None = None,
        target_return: float | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Self:
        """Read a model that :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file; ``.zip`` may be left off.
            env: Environment to act in; None is the one the model was made for, made on demand.
            device: Where to put the model.
            custom_objects: Values in place of the file's: settings, ``"policy_kwargs"``,
                ``"seed"``, ``"verbose"``, ``"tensorboard_log"``, ``"target_return"``, counters; an
                ``"lr_schedule"`` or ``"learning_rate"`` that is a function or 0 becomes
                :attr:`lr_schedule`. Spaces are checked. As in Stable-Baselines3, names that the
                file does not have are ignored.
            print_system_info: Whether to print the versions in use.
            force_reset: As in :meth:`set_env`.
            verbose: As in the constructor; None keeps the file's.
            tensorboard_log: As in the constructor; None keeps the file's.
            seed: As :meth:`set_random_seed` takes it; None keeps the file's.
            target_return: Return that :meth:`get_env` asks for; None keeps the file's.
            policy_kwargs: The features extractor that the model was made with; a file has no code.
            **overrides: Settings to change that leave the weights as they are, such as ``memory``.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
            SpaceError: ``env`` or ``custom_objects`` has other spaces than the model.
            ConfigError: A setting is unknown, out of range, or makes another network; or the
                features extractor is missing, or another.
        """
        if print_system_info:
            get_system_info()
        custom = dict(custom_objects or {})
        rates = {name: custom.pop(name) for name in _RATES if _is_no_setting(custom.get(name))}
        named = {field.name for field in dataclasses.fields(DecisionMambaConfig)}
        settings = {name: value for name, value in custom.items() if name in named}
        policy_kwargs = policy_kwargs or custom.get("policy_kwargs")
        saved = SavedModel.read(path).with_extractor(policy_kwargs, path)
        saved = saved.with_settings(**{**settings, **overrides})
        given = {"verbose": verbose, "tensorboard_log": tensorboard_log}
        values = {**ATTRIBUTES, **saved.attributes, **saved.counters, "seed": saved.seed, **custom}
        values |= {name: value for name, value in given.items() if value is not None}
        model = cls(
            saved.task,
            config=saved.config,
            seed=values["seed"],
            device=device,
            verbose=values["verbose"],
            tensorboard_log=values["tensorboard_log"],
            policy_kwargs=policy_kwargs,
            stats_window_size=values["_stats_window_size"],
        )
        precision = choose_precision(saved.config.precision, model.device)
        model.config = saved.config.replace(precision=precision)
        saved = dataclasses.replace(saved, config=model.config)
        model._computed = saved.computed
        model._context.set_dataset(saved.dataset)
        if target_return is None:
            target_return = custom.get("target_return", saved.target_return)
        model.target_return = target_return
        model._adopt(saved.restore(model.device))
        for name in COUNTERS:
            setattr(model, name, check_integer(name, values[name], 0))
        model._schedule = saved.schedule
        if rates and "learning_rate" not in {**settings, **overrides}:
            rate: Any = rates.get("learning_rate", rates.get("lr_schedule"))
            model.learning_rate, model.lr_schedule = rate, FloatSchedule(rate)
        own = {name: getattr(model, name) for name in ("observation_space", "action_space")}
        if own.keys() & custom.keys():
            spaces = {name: custom.get(name, space) for name, space in own.items()}
            model._check_spaces(SimpleNamespace(**spaces), "custom_objects")
        if env is not None:
            model.set_env(env)
        model.set_random_seed(custom.get("seed") if seed is None else seed)
        return model

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        memory: Memory | None = None,
        device: torch.device | str = "cpu",
        verify: bool = True,
    ) -> ExportedPolicy:
        """Write the policy as a graph that acts without this package, and in ONNX without torch.

        The graph is one step: from ``observation``, ``return_to_go`` and a state (zeros start an
        episode) to ``action`` (for discrete ones ``logits`` too) and the next state.

        Args:
            path: File to write, atomically: ``.onnx`` or ``.pt2`` (``torch.export``).
            memory: ``"window"`` or ``"stream"``; None is the config's.
            device: Where a ``.pt2`` is to run; ONNX decides that when it is opened.
            verify: Whether to run the result beside the model first (ONNX: with onnxruntime).

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: The suffix is neither of these, or the memory cannot be used.
            MissingDependencyError: onnx is not installed.
            ExportError: The graph does not act as the model does; nothing was written.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy, about = self._built_policy(), self._context.to_dict()
        return export_policy(policy, path, memory=memory, about=about, device=device, verify=verify)

    # --- Stable-Baselines3 ---------------------------------------------------------------------

    def get_env(self) -> VecEnv | None:
        """Return the environment to act in, conditioned on ``target_return``; None if unknown.

        Raises:
            UnknownTaskError: Its name is not known here.
            MissingDependencyError: Its package is not installed.
            SpaceError: Its spaces are not the model's.
            ConfigError: No target return is known.
        """
        venv = self._context.make_venv()
        if venv is not None and venv is not self.env and self._updater is not None:
            self._check_spaces(venv, self._context.env_name)
        self.env = venv
        self.n_envs = 1 if venv is None else venv.num_envs
        return venv

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """Return the ``VecNormalize`` among the wrappers of the environment given; else None."""
        env = self._context.env
        return unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None

    @property
    def lr_schedule(self) -> Schedule:
        """Learning rate as a function of the remaining share of a run, from 1 to 0.

        It may be set to another function, which :meth:`fit` follows in place of the config's
        schedule; a model file holds no functions, so a loaded model has the config's again.
        """
        if self._lr_function is not None:
            return self._lr_function
        n_updates = self._total_timesteps or self.config.n_updates or 1000  # before fit
        config = self.config.replace(**(self._schedule or plan_schedule(self.config, n_updates)))

        def rate(progress_remaining: float) -> float:
            update = round((1.0 - progress_remaining) * n_updates)
            return compute_learning_rate(config, update, n_updates)

        return rate

    @lr_schedule.setter
    def lr_schedule(self, schedule: Schedule) -> None:
        self._lr_function = schedule

    def dump_logs(self) -> None:
        """Write a line of the log now: means over the updates since the last one.

        Raises:
            NotFittedError: The model has not been fitted since it was made or loaded.
            DivergenceError: A loss or gradient is not finite.
        """
        if self._update_log is None:
            raise NotFittedError("there are no updates to log yet: call fit")
        self._update_log.write(self)

    def set_env(self, env: Environment, force_reset: bool = True) -> None:
        """Set the environment to act in; it is vectorised and conditioned where it is not.

        Args:
            env: A Gymnasium id, an environment (``VecEnv`` included), or a function that makes
                one. One that shows the return-to-go already keeps its own target.
            force_reset: Stable-Baselines3's; changes nothing.

        Raises:
            SpaceError: Its spaces are not the model's; the model keeps the one it had.
            UnknownTaskError: Its name is not known.
        """
        before = self._context.env
        self._context.set_env(env)
        if self._updater is None:  # made and checked when the spaces are known
            self.n_envs = getattr(env, "num_envs", 1)
            for name in ("observation_space", "action_space"):
                vars(self).pop(name, None)
            return
        try:
            self.get_env()
        except Exception:
            self._context.set_env(before)
            raise

    def set_random_seed(self, seed: int | None = None) -> None:
        """Change the seed of later batches and dropout, and of the environment.

        None changes nothing; global generators stay as they are.

        Raises:
            ConfigError: It is not a non-negative integer.
        """
        if seed is not None:
            self.seed = check_integer("seed", seed, 0)
            if self._updater is not None:
                self._updater.seed = self.seed
                self.action_space.seed(self.seed)
            self._context.seed(self.seed)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Take over weights and optimiser state, from :meth:`get_parameters` or a model file.

        Args:
            load_path_or_dict: State dictionaries of ``"policy"`` and ``"policy.optimizer"`` (and
                of ``"trained_policy"`` with ``ema_decay``, by default the policy's), or what
                :meth:`load` takes.
            exact_match: Whether everything must be given; a file always gives everything.
            device: Stable-Baselines3's; the model stays where it is.

        Raises:
            NotFittedError: The model has no weights yet.
            ModelFileError: The file is damaged, or another model's; this one is as it was.
            ParametersError: A dictionary lacks a tensor, or has one of another shape.
            ConfigError: A dictionary has unknown names, or lacks some.
        """
        policy = self._built_policy()
        assert self._updater is not None
        if isinstance(load_path_or_dict, dict):
            given, names = load_path_or_dict, self._get_torch_save_params()[0]
            if "trained_policy" in names and "policy" in given:
                given = {"trained_policy": given["policy"], **given}
            check_parameters(given, policy, names, exact_match)
            # Copied: torch's optimisers would share their moments with the giver's.
            given = copy.deepcopy(given)
            if "policy.optimizer" in given:  # first: torch checks it before it changes anything
                try:
                    policy.optimizer.load_state_dict(given["policy.optimizer"])
                except (KeyError, TypeError, ValueError) as error:
                    message = f"the optimiser's state is not of this model: {error}"
                    raise ParametersError(message, setting="policy.optimizer") from error
            for name, module in (("policy", policy), ("trained_policy", self.trained_policy)):
                if name in given:
                    module.load_state_dict(given[name], strict=exact_match)
            self._updater.has_trained |= "trained_policy" in given
            return
        SavedModel.read(load_path_or_dict).restore_into(self._updater)

    def _setup_model(self) -> None:
        """Do nothing: the networks are built when the spaces are known, in fit."""

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        policy, names = self._built_policy(), ["policy", "policy.optimizer"]
        return names if self.trained_policy is policy else [*names, "trained_policy"], []

    def _check_spaces(self, env: Any, name: str) -> None:
        check_spaces(self.policy.flat_space, self.action_space, env, name)


def _as_names(names: Iterable[str] | None) -> set[str]:
    return {names} if isinstance(names, str) else set(names or ())


_RATES = ("learning_rate", "lr_schedule")


def _is_no_setting(rate: Any) -> bool:
    """Whether a learning rate is a function of Stable-Baselines3's, or the 0 RL Zoo loads with."""
    return callable(rate) or (isinstance(rate, (int, float)) and rate == 0)


def _is_policy(task: Any) -> bool:
    if isinstance(task, type):
        return issubclass(task, BasePolicy)
    return isinstance(task, str) and task.endswith("Policy")


def _no_weights() -> NotFittedError:
    return NotFittedError("the model has no weights yet: call fit, or DecisionMamba.load")
