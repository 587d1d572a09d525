"""Decision Mamba as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import DecisionMambaConfig, Memory, Recipe
from sb3_dmamba.context import Environment, RunContext, check_spaces, make_factory
from sb3_dmamba.data import DatasetInfo, Trajectories, load_trajectories
from sb3_dmamba.data import compute_observation_statistics as compute_statistics
from sb3_dmamba.envs.return_to_go import conditioned_space
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    MissingDependencyError,
    NotFittedError,
    UnknownTaskError,
)
from sb3_dmamba.evaluation import EvaluationReport, ReportDetails, StatefulActor, evaluate_targets
from sb3_dmamba.export import ExportedPolicy, export_policy
from sb3_dmamba.model_file import COUNTERS, SavedModel, check_parameters
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.encoders import check_policy_kwargs, name_extractor
from sb3_dmamba.spaces import check_dataset_fits, flatten_for
from sb3_dmamba.tasks import Task, get_task
from sb3_dmamba.training.batches import make_sampler
from sb3_dmamba.training.distributed import join_processes, local_device
from sb3_dmamba.training.loop import Evaluations, as_callbacks, run_updates
from sb3_dmamba.training.updater import Updater, draw_seed, plan_schedule, resolve_config

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
        **overrides: Fields of :class:`~sb3_dmamba.DecisionMambaConfig` to change.

    Raises:
        UnknownTaskError: The name is unknown; suggests close ones.
        ConfigError: A setting is unknown or out of range, or ``policy_kwargs`` has something else.

    Source: Ota 2024 (arXiv:2403.19925).
    """

    policy: DecisionMambaPolicy
    seed: int

    def __init__(
        self,
        task: str | Task | Environment | None,
        *,
        config: DecisionMambaConfig | None = None,
        env: Environment | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        recipe: Recipe | None = None,
        **overrides: Any,
    ) -> None:
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
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=local_device(device),
            support_multi_env=True,
            seed=draw_seed() if seed is None else check_integer("seed", seed, 0),
        )
        self.n_envs = 1
        self._context = RunContext(env, self.task)
        self._updater: Updater | None = None  # policy and optimiser, once the spaces are known
        self._trajectories: Trajectories | None = None
        self._schedule: dict[str, int | None] | None = None  # of the run, once it has begun
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
            ConfigError: ``n_steps``, ``eval_freq`` or ``log_interval`` is out of range.
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
            rows = processes.rows(self.config.batch_size)
            sampler = make_sampler(trajectories, self.config, self.seed, rows)
            log = log_interval, tb_log_name, progress_bar
            run_updates(self, updater, sampler, processes, callback, *log)
        return self

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
            self.config = resolve_config(self.config, trajectories)
            seed, device, kwargs = self.seed, self.device, self.policy_kwargs
            self._adopt(Updater.create(*theirs, self.config, statistics, seed, device, kwargs))
        check_dataset_fits(*theirs, self.policy.observation_space, self.action_space)
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

    def _adopt(self, updater: Updater) -> None:
        self._updater = updater
        self.policy = updater.policy
        self._context.observation_space = updater.policy.observation_space
        self.observation_space = conditioned_space(updater.policy.observation_space)
        self.action_space = updater.policy.action_space

    def _make_evaluations(
        self, env: Environment | None, eval_freq: int, n_episodes: int
    ) -> Evaluations:
        n_episodes = check_integer("n_eval_episodes", n_episodes, 1)
        venv = self._context.wrap(self._context.require_env() if env is None else env)
        self._check_spaces(venv, "the environment")
        return Evaluations(venv, eval_freq, n_episodes, self.verbose)

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
            flat = flatten_for(policy.observation_space, observation["observation"])
            observation = {**observation, "observation": flat}
        actions, state = policy.predict(observation, state, episode_start, deterministic)
        return actions.astype(self.action_space.dtype, copy=False), state

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
            raise NotFittedError("the model has no weights yet: call fit, or DecisionMamba.load")
        return self.policy

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
            exclude: ``["optimizer"]`` leaves out the optimiser's state, two thirds of the file, and
                with ``ema_decay`` the raw weights: training then continues from the average.
            include: Stable-Baselines3's; everything that a model holds is written anyway.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: ``exclude`` names something else.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy = self._built_policy()
        assert self._updater is not None
        excluded = {exclude} if isinstance(exclude, str) else set(exclude or ())
        if not excluded <= {"optimizer"}:
            message = f"exclude={exclude!r}: only 'optimizer' can be left out"
            raise ConfigError(message, setting="exclude", value=exclude)
        SavedModel(
            config=self.config,
            task=self.task,
            dataset=self.dataset,
            observation_space=policy.observation_space,
            action_space=self.action_space,
            target_return=self._context.chosen_target_return,
            seed=self.seed,
            counters={name: getattr(self, name) for name in COUNTERS},
            policy=policy.state_dict(),
            optimizer={} if excluded else self._updater.state(),
            extractor=name_extractor(self.policy_kwargs),
            schedule=self._schedule,
        ).write(path)

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
        verbose: int = 0,
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
            custom_objects: Stable-Baselines3's; only its ``"policy_kwargs"`` changes something.
            print_system_info: Whether to print the versions in use.
            force_reset: As in :meth:`set_env`.
            verbose: As in the constructor.
            tensorboard_log: As in the constructor.
            seed: As :meth:`set_random_seed` takes it; None keeps the file's.
            target_return: Return that :meth:`get_env` asks for; None keeps the file's.
            policy_kwargs: The features extractor that the model was made with; a file has no code.
            **overrides: Settings to change that leave the weights as they are, such as ``memory``.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
            SpaceError: ``env`` has other spaces than the model.
            ConfigError: A setting is unknown, out of range, or makes another network; or the
                features extractor is missing, or another.
        """
        if print_system_info:
            get_system_info()
        policy_kwargs = policy_kwargs or (custom_objects or {}).get("policy_kwargs")
        saved = SavedModel.read(path).with_extractor(policy_kwargs, path).with_settings(**overrides)
        kept: dict[str, Any] = {"config": saved.config, "seed": saved.seed}
        log: dict[str, Any] = {"verbose": verbose, "tensorboard_log": tensorboard_log}
        model = cls(saved.task, **kept, device=device, **log, policy_kwargs=policy_kwargs)
        model._context.set_dataset(saved.dataset)
        model.target_return = saved.target_return if target_return is None else target_return
        model._adopt(saved.restore(model.device))
        for name in COUNTERS:
            setattr(model, name, saved.counters[name])
        model._schedule = saved.schedule
        if env is not None:
            model.set_env(env)
        model.set_random_seed(seed)
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
        self._vec_normalize_env = None if venv is None else unwrap_vec_normalize(venv)
        return venv

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
        if self._updater is None:
            return  # made and checked when the spaces are known
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
            super().set_parameters(copy.deepcopy(given), exact_match, device)
            self._updater.has_trained |= "trained_policy" in given
            return
        SavedModel.read(load_path_or_dict).restore_into(self._updater)

    def _setup_model(self) -> None:
        """Do nothing: the networks are built when the spaces are known, in fit."""

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        return names if self.trained_policy is self.policy else [*names, "trained_policy"], []

    def _check_spaces(self, env: Any, name: str) -> None:
        check_spaces(self.policy.observation_space, self.action_space, env, name)
