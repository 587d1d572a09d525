"""Decision Mamba as a Stable-Baselines3 algorithm: the face, and nothing but the face."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import (
    DatasetInfo,
    Trajectories,
    WindowSampler,
    compute_observation_statistics,
    load_trajectories,
)
from sb3_dmamba.environments import Environment, Surroundings, check_spaces, make_factory, wrap
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    MissingDependencyError,
    NotFittedError,
    UnknownTaskError,
)
from sb3_dmamba.evaluation import EvaluationReport, ReportDetails, StatefulActor, evaluate_targets
from sb3_dmamba.evaluation.wrappers.base import conditioned_space
from sb3_dmamba.files import COUNTERS, SavedModel
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.tasks import Task, get_task
from sb3_dmamba.training.callbacks import as_callbacks
from sb3_dmamba.training.loop import run_updates
from sb3_dmamba.training.seeding import draw_seed
from sb3_dmamba.training.updater import Updater

__all__ = ["DecisionMamba"]

Self = TypeVar("Self", bound="DecisionMamba")


class DecisionMamba(BaseAlgorithm):
    """Offline reinforcement learning by sequence modelling, with Mamba in place of attention.

    Args:
        task: A task name (:func:`sb3_dmamba.list_tasks`), a Minari or Gymnasium id, an
            environment, or None: the spaces then come from the dataset.
        config: Settings; None takes the task's recipe, or the paper's defaults.
        env: Environment to act in, where it is not the task's.
        seed: Seed of the weights, the batches and dropout; None draws one. Two runs with one
            seed, dataset and machine give the same weights.
        device: ``"auto"`` is CUDA where there is one.
        verbose: 0 is silent, 1 prints the log.
        tensorboard_log: Folder for TensorBoard.
        **overrides: Fields of :class:`~sb3_dmamba.DecisionMambaConfig` to change.

    Raises:
        UnknownTaskError: The name is unknown; suggests close ones.
        ConfigError: A setting is unknown or out of range.

    Source: Ota 2024 (arXiv:2403.19925).
    """

    policy: DecisionMambaPolicy

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
        **overrides: Any,
    ) -> None:
        self.task = get_task(task) if isinstance(task, str) else None
        if isinstance(task, Task):
            self.task = task
        elif task is not None and not isinstance(task, str):
            if env is not None:
                raise ConfigError("the task is an environment already: leave env out")
            env = task
        if config is not None:
            self.config = config.replace(**overrides)
        elif self.task is not None:
            self.config = self.task.config(**overrides)
        else:
            self.config = DecisionMambaConfig().replace(**overrides)
        super().__init__(
            DecisionMambaPolicy,
            env=None,
            learning_rate=self.config.learning_rate,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=draw_seed() if seed is None else _check_count("seed", seed, 0),
        )
        self.n_envs = 1
        self._surroundings = Surroundings(env, self.task)
        self._trajectories: Trajectories | None = None
        self._updater: Updater | None = None

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

        Args:
            dataset: Anything :func:`~sb3_dmamba.load_trajectories` takes; None is the last one,
                or the task's own.
            n_steps: Updates to run; None finishes a run that was interrupted, and otherwise
                takes the config's ``n_updates``.
            callback: Stable-Baselines3 callbacks; ``on_step`` fires once an update.
            eval_env: Environment to evaluate in during training; None is the model's own.
            eval_freq: Updates between two evaluations; 0 is never.
            n_eval_episodes: Episodes of each.
            log_interval: Updates between two lines of the log.
            tb_log_name: Name of the run in TensorBoard.
            progress_bar: Whether to show one, with loss, updates per second and time left.
            reset_num_timesteps: Whether the learning-rate schedule starts again from zero.

        Returns:
            The model itself.

        Raises:
            ConfigError: ``n_steps``, ``eval_freq`` or ``log_interval`` is out of range.
            DatasetError: There is no dataset, or it cannot be used.
            SpaceError: It does not fit the model or its environment.
            UnknownTaskError: An environment is needed for ``eval_freq`` or a callback, and none
                is known.
            ConditioningError: A callback evaluates in an environment without return-to-go.
            DivergenceError: The loss stopped being finite; the message says when.
        """
        log_interval = _check_count("log_interval", log_interval, 1)
        eval_freq = _check_count("eval_freq", eval_freq, 0)
        if n_steps is not None:
            n_steps = _check_count("n_steps", n_steps, 1)
        trajectories = self._resolve_dataset(dataset)
        self._set_up(trajectories)
        if reset_num_timesteps:
            self.num_timesteps = self._total_timesteps = 0
        if n_steps is None:
            unfinished = self._total_timesteps - self.num_timesteps
            n_steps = unfinished if unfinished > 0 else self.config.n_updates
        self._total_timesteps = self.num_timesteps + n_steps
        if eval_freq > 0:
            evaluation = self._make_eval_callback(eval_env, eval_freq, n_eval_episodes)
            callback = [*as_callbacks(callback), evaluation]
        assert self._updater is not None
        assert self.seed is not None
        sampler = WindowSampler(
            trajectories, self.config.context_length, self.config.batch_size, self.seed
        )
        run_updates(self, self._updater, sampler, callback, log_interval, tb_log_name, progress_bar)
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
        """Stable-Baselines3's name for :meth:`fit` on the last dataset, or the task's.

        For an offline algorithm a timestep is an update.
        """
        return self.fit(
            None,
            total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _resolve_dataset(self, dataset: Any) -> Trajectories:
        if dataset is not None:
            return load_trajectories(dataset)
        if self._trajectories is not None:
            return self._trajectories
        if self.task is not None and self.task.dataset is not None:
            return load_trajectories(self.task.dataset)
        raise DatasetError(
            "there is no dataset to fit: pass one, model.fit(dataset), or name a task that has one"
        )

    def _set_up(self, trajectories: Trajectories) -> None:
        """Build the networks at the first call; check that the dataset fits them at every one."""
        if self._updater is None:
            assert self.seed is not None
            statistics = None
            if self.config.normalize_observations:
                statistics = compute_observation_statistics(trajectories)
            spaces_ = trajectories.observation_space, trajectories.action_space
            self._adopt(Updater.create(*spaces_, self.config, statistics, self.seed, self.device))
        self._check(trajectories, "the dataset")
        if trajectories is not self._trajectories:
            self._trajectories = trajectories
            self._surroundings.remember(DatasetInfo.of(trajectories))
        try:
            self.get_env()
        except (MissingDependencyError, UnknownTaskError):
            if self._surroundings.given is not None:
                raise
            # Learning needs no environment; whoever needs it will be told.

    def _adopt(self, updater: Updater) -> None:
        self._updater = updater
        self.policy = updater.policy
        self.observation_space = conditioned_space(updater.policy.observation_space)
        self.action_space = updater.policy.action_space

    def _setup_model(self) -> None:
        """Stable-Baselines3's hook; the networks are built when the spaces are known, in fit."""

    def _check(self, environment: Any, what: str) -> None:
        check_spaces(self.policy.observation_space, self.action_space, environment, what)

    def _make_eval_callback(
        self, env: Environment | None, eval_freq: int, n_episodes: int
    ) -> EvalCallback:
        _check_count("n_eval_episodes", n_episodes, 1)
        environment = self._surroundings.require() if env is None else env
        venv = wrap(environment, self.target_return)
        self._check(venv, "the environment")
        return EvalCallback(
            venv, eval_freq=eval_freq, n_eval_episodes=n_episodes, verbose=self.verbose
        )

    # --- Acting --------------------------------------------------------------------------------

    @property
    def target_return(self) -> float:
        """Return that :meth:`get_env` asks for at the start of an episode; may be set.

        By default the highest of the task's targets that the dataset has reached (else the
        lowest), or without a task the dataset's best return. None goes back to that.

        Raises:
            ConfigError: There is no default, or a value is not finite.
        """
        return self._surroundings.target_return

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        self._surroundings.target_return = value

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions; see :meth:`DecisionMambaPolicy.predict`."""
        return self._built_policy().predict(observation, state, episode_start, deterministic)

    def as_stateful_wrapper(
        self, target_return: float, *, memory: Memory | None = None, deterministic: bool = True
    ) -> StatefulActor:
        """Return an actor for one environment whose caller passes the rewards itself.

        Args:
            target_return: Return to ask for at the start of each episode.
            memory: ``"window"`` or ``"stream"``; None is the config's.
            deterministic: Whether a discrete action is the likeliest one, or drawn.

        Returns:
            An actor with d3rlpy's protocol: ``predict(x, reward)`` and ``reset()``.
        """
        return StatefulActor(self._built_policy(), target_return, memory, deterministic)

    def get_env(self) -> VecEnv | None:
        """Return the environment to act in, conditioned on ``target_return``; None if unknown.

        Raises:
            UnknownTaskError: Its name is not known here.
            MissingDependencyError: Its package is not installed.
            SpaceError: Its spaces are not the model's.
            ConfigError: Nothing says which return to ask for.
        """
        venv = self._surroundings.make()
        if venv is not None and venv is not self.env and self._updater is not None:
            self._check(venv, "the environment")
        self.env = venv
        self.n_envs = 1 if venv is None else venv.num_envs
        return venv

    def set_env(self, env: Environment, force_reset: bool = True) -> None:
        """Set the environment to act in; it is vectorised and conditioned where it is not.

        Args:
            env: A Gymnasium id, an environment (``VecEnv`` included), or a function that makes
                one. One that shows the return-to-go already keeps its own target.
            force_reset: Stable-Baselines3's; learning holds no observation that could be stale.

        Raises:
            SpaceError: Its spaces are not the model's; the model keeps the one it had.
            UnknownTaskError: Its name is not known.
        """
        before = self._surroundings.given
        self._surroundings.give(env)
        if self._updater is None:
            return  # made and checked when the spaces are known
        try:
            self.get_env()
        except Exception:
            self._surroundings.give(before)
            raise

    def set_random_seed(self, seed: int | None = None) -> None:
        """Change the seed of later batches and dropout, and of the environment.

        Args:
            seed: A non-negative integer; None changes nothing. Global generators, which this
                algorithm does not use, stay as they are.

        Raises:
            ConfigError: It is no non-negative integer.
        """
        if seed is None:
            return
        self.seed = _check_count("seed", seed, 0)
        if self._updater is not None:
            self._updater.seed = self.seed
            self.action_space.seed(self.seed)
        if self.env is not None:
            self.env.seed(self.seed)

    @property
    def dataset(self) -> DatasetInfo:
        """What the model was fitted to last."""
        return self._surroundings.dataset

    def _built_policy(self) -> DecisionMambaPolicy:
        if self._updater is None:
            raise NotFittedError("the model has no weights yet: call fit, or DecisionMamba.load")
        return self.policy

    # --- Evaluation ----------------------------------------------------------------------------

    def evaluate(
        self,
        target_returns: float | Sequence[float] | None = None,
        n_episodes: int = 10,
        *,
        env: Environment | None = None,
        memory: Memory | None = None,
        deterministic: bool = True,
        seed: int | None = None,
        n_envs: int | None = None,
        n_workers: int | None = None,
    ) -> EvaluationReport:
        """Act for whole episodes, every target and episode together, and report the returns.

        Args:
            target_returns: Returns to ask for; None takes the task's, or the dataset's median,
                90th percentile and best.
            n_episodes: Episodes of each target.
            env: Where to act; None is the model's environment.
            memory: ``"window"`` or ``"stream"``; None is the config's.
            deterministic: Whether a discrete action is the likeliest one, or drawn.
            seed: Episode k of every target starts from environment seed ``seed + k``; None is
                the model's seed.
            n_envs: Environments that live at once; None decides.
            n_workers: Subprocesses that step them; None decides.

        Returns:
            The report: print it, ``.plot(path)`` it, or ``.to_pandas()`` it.

        Raises:
            NotFittedError: The model has no weights yet.
            UnknownTaskError: No environment is known, or it cannot be made again.
            SpaceError: The environment's spaces are not the model's.
        """
        policy = self._built_policy()
        assert self.seed is not None
        if target_returns is None:
            target_returns = self._surroundings.target_returns()
        return evaluate_targets(
            policy,
            make_factory(self._surroundings.require() if env is None else env),
            target_returns,
            n_episodes,
            n_envs=n_envs,
            n_workers=n_workers,
            seed=self.seed if seed is None else seed,
            memory=memory,
            deterministic=deterministic,
            reference=None if env is not None else self._surroundings.reference_scores(),
            details=ReportDetails(
                task=None if self.task is None else self.task.name,
                dataset=self.dataset.source or None,
                dataset_returns=self.dataset.returns if len(self.dataset.returns) else None,
                mixer=self.config.mixer,
                training_seed=self.seed,
                n_updates=self._n_updates,
                weights="last",
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
            exclude: ``["optimizer"]`` leaves out the optimiser's state, two thirds of the file.
            include: Stable-Baselines3's; everything that a model holds is written anyway.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: ``exclude`` names something else.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy = self._built_policy()
        assert self._updater is not None
        assert self.seed is not None
        excluded = {exclude} if isinstance(exclude, str) else set(exclude or ())
        if not excluded <= {"optimizer"}:
            raise ConfigError(f"exclude={exclude!r}: only 'optimizer' can be left out")
        SavedModel(
            config=self.config,
            task=self.task,
            dataset=self.dataset,
            observation_space=policy.observation_space,
            action_space=self.action_space,
            target_return=self._surroundings.given_target_return,
            seed=self.seed,
            counters={name: getattr(self, name) for name in COUNTERS},
            policy=policy.state_dict(),
            optimizer={} if excluded else self._updater.state(),
        ).write(path)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: str | os.PathLike[str] | BinaryIO,
        env: Environment | None = None,
        device: torch.device | str = "auto",
        *,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> Self:
        """Read a model that :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file; ``.zip`` may be left off.
            env: Environment to act in; None is the one the model was made for, which is not
                made before it is needed.
            device: Where to put the model.
            verbose: As in the constructor.
            tensorboard_log: As in the constructor.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
            SpaceError: ``env`` has other spaces than the model.
        """
        saved = SavedModel.read(path)
        model = cls(
            saved.task,
            config=saved.config,
            seed=saved.seed,
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
        )
        model._surroundings.remember(saved.dataset)
        model.target_return = saved.target_return
        model._adopt(saved.restore(model.device))
        for name in COUNTERS:
            setattr(model, name, saved.counters[name])
        if env is not None:
            model.set_env(env)
        return model

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over weights and optimiser state, from :meth:`get_parameters` or a model file.

        Args:
            load_path_or_dict: State dictionaries by name, or what :meth:`load` takes.
            exact_match: Whether everything must be given; needs to be True for a file.
            device: Stable-Baselines3's; the model stays where it is.

        Raises:
            NotFittedError: The model has no weights that could be replaced.
            ModelFileError: The file is damaged, or holds another kind of model.
        """
        self._built_policy()
        if isinstance(load_path_or_dict, dict):
            # Copied: torch's optimisers would share their moments with the giver's.
            super().set_parameters(copy.deepcopy(load_path_or_dict), exact_match, device)
            return
        saved = SavedModel.read(load_path_or_dict)
        assert self._updater is not None
        saved.restore_into(self._updater)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        self._built_policy()
        return ["policy", "policy.optimizer"], []


def _check_count(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ConfigError(f"{name}={value!r}: give an integer of at least {minimum}")
    return int(value)
