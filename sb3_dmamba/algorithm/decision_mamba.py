"""Decision Mamba as a Stable-Baselines3 algorithm: the face, and nothing but the face."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import torch
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import get_system_info

from sb3_dmamba.algorithm.fitted import FittedAlgorithm
from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import (
    DatasetInfo,
    Trajectories,
    compute_observation_statistics,
    load_trajectories,
)
from sb3_dmamba.environments import Environment, Surroundings, check_dataset
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    MissingDependencyError,
    UnknownTaskError,
)
from sb3_dmamba.files import COUNTERS, SavedModel
from sb3_dmamba.tasks import Task, get_task
from sb3_dmamba.training.callbacks import as_callbacks
from sb3_dmamba.training.carrying import make_sampler
from sb3_dmamba.training.distributed import join_processes, local_device
from sb3_dmamba.training.loop import run_updates
from sb3_dmamba.training.schedule import plan_schedule
from sb3_dmamba.training.seeding import draw_seed
from sb3_dmamba.training.updater import Updater

__all__ = ["DecisionMamba"]

Self = TypeVar("Self", bound="DecisionMamba")


class DecisionMamba(FittedAlgorithm):
    """Offline reinforcement learning by sequence modelling, with Mamba in place of attention.

    Args:
        task: A task name (:func:`sb3_dmamba.list_tasks`), a Minari or Gymnasium id, an
            environment, or None: the spaces then come from the dataset.
        config: Settings; None takes the task's recipe, or the paper's defaults.
        env: Environment to act in, where it is not the task's.
        seed: Seed of the weights, the batches and dropout; None draws one. Two runs with one
            seed and dataset give the same weights on one machine with one number of threads.
        device: ``"auto"`` is CUDA where there is one; under torchrun each process's own GPU.
        verbose: 0 is silent, 1 prints the log.
        tensorboard_log: Folder for TensorBoard.
        policy_kwargs: As Stable-Baselines3's: ``features_extractor_class`` and
            ``features_extractor_kwargs``, an encoder of observations that learns with the model
            (:class:`~sb3_dmamba.networks.ExtractorEncoder`).
        **overrides: Fields of :class:`~sb3_dmamba.DecisionMambaConfig` to change.

    Raises:
        UnknownTaskError: The name is unknown; suggests close ones.
        ConfigError: A setting is unknown or out of range, or ``policy_kwargs`` has something else.

    Source: Ota 2024 (arXiv:2403.19925).
    """

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
            self.config,
            Surroundings(env, self.task),
            draw_seed() if seed is None else check_integer("seed", seed, 0),
            local_device(device),
            verbose,
            tensorboard_log,
            policy_kwargs,
        )
        self._trajectories: Trajectories | None = None
        self._recipe: Callable[..., DecisionMambaConfig] | None = None
        if config is None and self.task is not None:
            given = {name: value for name, value in overrides.items() if name != "n_updates"}
            self._recipe = functools.partial(self.task.config, **given)

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
        callbacks, log, progress bar and evaluations are the first one's.

        Args:
            dataset: Anything :func:`~sb3_dmamba.load_trajectories` takes; None is the last one,
                or the task's own.
            n_steps: Updates to run; None finishes a run that was interrupted, and otherwise
                takes the config's ``n_updates``. A task's warm-up and decay are shortened or
                lengthened with a new run; one that goes on does not warm up again.
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
            DistributedError: Processes differ in what they train, or one of them is gone.
        """
        log_interval = check_integer("log_interval", log_interval, 1)
        eval_freq = check_integer("eval_freq", eval_freq, 0)
        if n_steps is not None:
            n_steps = check_integer("n_steps", n_steps, 1)
        with join_processes(self.device) as processes:
            with processes.leader_first():
                trajectories = self._resolve_dataset(dataset)
            if (seed := processes.from_leader(self.seed)) != self.seed:
                self.set_random_seed(seed)
            self._set_up(trajectories)
            if eval_freq > 0 and processes.is_leader:
                evaluation = self._make_eval_callback(eval_env, eval_freq, n_eval_episodes)
                callback = [*as_callbacks(callback), evaluation]
            if reset_num_timesteps:
                self.num_timesteps = self._total_timesteps = 0
            if n_steps is None:
                unfinished = self._total_timesteps - self.num_timesteps
                n_steps = unfinished if unfinished > 0 else self.config.n_updates
            self._total_timesteps = self.num_timesteps + n_steps
            if self.num_timesteps == 0 or self._schedule is None:
                # A recipe's is of its own number of updates: another run has it in proportion.
                n_updates, recipe = self._total_timesteps, self._recipe
                config = self.config if recipe is None else recipe(n_updates=n_updates)
                self._schedule = plan_schedule(config, n_updates)
            assert self._updater is not None
            self._updater.schedule = self.config.replace(**self._schedule)
            rows = processes.rows(self.config.batch_size)
            sampler = make_sampler(trajectories, self.config, self.seed, rows)
            log = log_interval, tb_log_name, progress_bar
            run_updates(self, self._updater, sampler, processes, callback, *log)
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
        """Build the networks at the first call; check that the dataset fits them at every one.

        Learning needs no environment: the dataset's own is made when somebody asks for it. One
        that the user or the task names is looked at, since it may be another.
        """
        is_new = trajectories is not self._trajectories
        dataset = DatasetInfo.of(trajectories) if is_new else self.dataset
        self._surroundings.check_dataset(dataset)
        if self._updater is None:
            statistics = None
            if self.config.normalize_observations:
                statistics = compute_observation_statistics(trajectories)
            updater = Updater.create(
                trajectories.observation_space,
                trajectories.action_space,
                self.config,
                statistics,
                self.seed,
                self.device,
                self.policy_kwargs,
            )
            self._adopt(updater)
        check_dataset(self.policy.observation_space, self.action_space, trajectories)
        if is_new:
            self._trajectories = trajectories
            self._surroundings.remember(dataset)
        if not self._surroundings.is_doubtful:
            return
        try:
            self.get_env()
        except (MissingDependencyError, UnknownTaskError):
            if self._surroundings.given is not None:
                raise  # where the task's cannot be made, whoever needs it will be told

    # --- Files ---------------------------------------------------------------------------------

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
            env: Environment to act in; None is the one the model was made for, which is not
                made before it is needed.
            device: Where to put the model.
            custom_objects: Stable-Baselines3's, which replaces what cannot be unpickled. Nothing
                is, so ``{"policy_kwargs": ...}`` alone changes something.
            print_system_info: Whether to print the versions in use.
            force_reset: Stable-Baselines3's; learning holds no observation that could be stale.
            verbose: As in the constructor.
            tensorboard_log: As in the constructor.
            seed: As :meth:`set_random_seed` takes it; None keeps the file's.
            target_return: Return that :meth:`get_env` asks for; None keeps the file's.
            policy_kwargs: The features extractor that the model was made with, if any. A file has
                its weights and not its code.
            **overrides: Settings to change that leave the weights as they are, such as
                ``memory="stream"`` or ``learning_rate``.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
            SpaceError: ``env`` has other spaces than the model.
            ConfigError: A setting is unknown, out of range, or makes another network; or the model
                has a features extractor and is given none, or another.
        """
        if print_system_info:
            get_system_info()
        policy_kwargs = policy_kwargs or (custom_objects or {}).get("policy_kwargs")
        saved = SavedModel.read(path).with_extractor(policy_kwargs, path).with_settings(**overrides)
        model = cls(
            saved.task,
            config=saved.config,
            seed=saved.seed,
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
        )
        model._surroundings.remember(saved.dataset)
        model.target_return = saved.target_return if target_return is None else target_return
        model._adopt(saved.restore(model.device))
        for name in COUNTERS:
            setattr(model, name, saved.counters[name])
        model._schedule = saved.schedule
        if env is not None:
            model.set_env(env)
        model.set_random_seed(seed)
        return model
