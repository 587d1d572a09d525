"""What a fitted model does: act, in an environment of Stable-Baselines3's making."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.environments import Environment, Surroundings, check_spaces
from sb3_dmamba.errors import NotFittedError
from sb3_dmamba.evaluation import StatefulActor
from sb3_dmamba.evaluation.wrappers.base import conditioned_space
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.features import check_policy_kwargs
from sb3_dmamba.tasks import Task
from sb3_dmamba.training.updater import Updater

__all__ = ["ActingAlgorithm"]


class ActingAlgorithm(BaseAlgorithm):
    """A Stable-Baselines3 algorithm as far as it does not learn: policy and environment.

    Args:
        config: Settings.
        surroundings: Where it acts and what for.
        seed: Seed of the weights, the batches and dropout.
        device: ``"auto"`` is CUDA where there is one.
        verbose: 0 is silent, 1 prints the log.
        tensorboard_log: Folder for TensorBoard.
        policy_kwargs: A features extractor in place of the config's encoder, if any.
    """

    policy: DecisionMambaPolicy
    seed: int
    task: Task | None

    def __init__(
        self,
        config: DecisionMambaConfig,
        surroundings: Surroundings,
        seed: int,
        device: torch.device | str,
        verbose: int,
        tensorboard_log: str | None,
        policy_kwargs: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(
            DecisionMambaPolicy,
            env=None,
            learning_rate=config.learning_rate,
            policy_kwargs=check_policy_kwargs(policy_kwargs),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.config = config
        self.task = surroundings.task
        self.n_envs = 1
        self._surroundings = surroundings
        self._updater: Updater | None = None
        self._schedule: dict[str, int | None] | None = None  # of the run, once it has begun

    # --- The policy ----------------------------------------------------------------------------

    def _setup_model(self) -> None:
        """Stable-Baselines3's hook; the networks are built when the spaces are known, in fit."""

    def _adopt(self, updater: Updater) -> None:
        self._updater = updater
        self.policy = updater.policy
        self.observation_space = conditioned_space(updater.policy.observation_space)
        self.action_space = updater.policy.action_space

    def _built_policy(self) -> DecisionMambaPolicy:
        if self._updater is None:
            raise NotFittedError("the model has no weights yet: call fit, or DecisionMamba.load")
        return self.policy

    def _check(self, environment: Any, what: str) -> None:
        check_spaces(self.policy.observation_space, self.action_space, environment, what)

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
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions; see :meth:`DecisionMambaPolicy.predict`."""
        return self._built_policy().predict(observation, state, episode_start, deterministic)

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
            memory: ``"window"`` or ``"stream"``; None is the config's.
            deterministic: Whether a discrete action is the likeliest one, or drawn.
            clip_rewards: Whether the return-to-go counts rewards clipped to [-1, 1]; None is as
                in the dataset, or the task.
            delayed_rewards: Whether the return-to-go stays at the target until an episode's end;
                None is as in the dataset.

        Returns:
            An actor with d3rlpy's protocol: ``predict(x, reward)`` and ``reset()``.
        """
        policy, counting = self._built_policy(), self._counts(clip_rewards, delayed_rewards)
        return StatefulActor(policy, target_return, memory, deterministic, **counting)

    def condition_env(self, env: Any, target_return: float | None = None) -> Any:
        """Wrap an environment so that it shows the return-to-go, counted as in the dataset.

        Args:
            env: A Gymnasium environment, vector environment or ``VecEnv``, with the model's
                spaces.
            target_return: Return to ask for at the start of each episode; None is
                :attr:`target_return`.

        Returns:
            A :class:`~sb3_dmamba.ReturnToGo` of the same kind.
        """
        return self._surroundings.condition(env, target_return)

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
            self._check(venv, self._surroundings.describe())
        self.env = venv
        self.n_envs = 1 if venv is None else venv.num_envs
        self._vec_normalize_env = None if venv is None else unwrap_vec_normalize(venv)
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
            ConfigError: It is not a non-negative integer.
        """
        if seed is None:
            return
        self.seed = check_integer("seed", seed, 0)
        if self._updater is not None:
            self._updater.seed = self.seed
            self.action_space.seed(self.seed)
        self._surroundings.seed(self.seed)

    @property
    def dataset(self) -> DatasetInfo:
        """What the model was fitted to last."""
        return self._surroundings.dataset

    def _counts(self, clip_rewards: bool | None, delayed_rewards: bool | None) -> dict[str, Any]:
        """Return how rewards are taken off the return-to-go: as asked, else as in the dataset."""
        known, asked = self._surroundings, {"clip_rewards": clip_rewards}
        asked["delayed_rewards"] = delayed_rewards
        return {name: getattr(known, name) if how is None else how for name, how in asked.items()}
