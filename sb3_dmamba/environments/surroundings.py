"""Where a model acts and what for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmamba.atari import MINIMAL_ACTIONS, is_atari
from sb3_dmamba.checks import check_number
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.environments.making import Environment, conditions_itself, set_target_return, wrap
from sb3_dmamba.errors import ConfigError, DatasetError, UnknownTaskError
from sb3_dmamba.evaluation import ReturnToGo
from sb3_dmamba.tasks import ReferenceScores, Task, get_reference_scores

__all__ = ["Surroundings"]

_ALE = "ALE/"  # Gymnasium's names of the same games, with other observations
_NAMED_GAMES = {game.lower() for game in MINIMAL_ACTIONS}  # which are tasks
_DEFAULT_TARGET_QUANTILES = (0.5, 0.9, 1.0)


class Surroundings:
    """Where a model acts and what for: what the user gave, else its task's, else its dataset's.

    Nothing is made before it is needed.

    Args:
        given: Environment that the user passed.
        task: The model's task.
    """

    def __init__(self, given: Environment | None, task: Task | None) -> None:
        self.given = given
        self.task = task
        self.dataset = DatasetInfo()
        self._target_return: float | None = None
        self._venv: VecEnv | None = None
        self._seed: int | None = None

    def check_dataset(self, dataset: DatasetInfo) -> None:
        """Check that a dataset can be the task's: Atari games are told apart by their names.

        Raises:
            DatasetError: It is of another Atari game, or one of the two is none at all.
        """
        if self.task is None or None in (self.task.env_id, dataset.env_id):
            return
        game, theirs = _game_of(self.task), _game_of(dataset)
        if game != theirs and not f"{self.task.env_id}{dataset.env_id}".count(_ALE):
            kwargs = dataset.env_kwargs
            name = f"the game {kwargs.get('game')!r}" if theirs else f"{dataset.env_id}"
            own = theirs if theirs in _NAMED_GAMES else dataset.env_id
            raise DatasetError(
                f"the dataset is of {name}, and the task {self.task.name!r} is not: use "
                f"DecisionMamba({own!r}), or another dataset",
                setting="env_id",
                value=theirs or dataset.env_id,
                choices=[game or self.task.env_id],
            )

    def remember(self, dataset: DatasetInfo) -> None:
        """Note what the model was fitted to; where and for what it acts may depend on it.

        Raises:
            DatasetError: As :meth:`check_dataset`.
        """
        self.check_dataset(dataset)
        self.dataset = dataset
        self._venv = None

    def give(self, environment: Environment | None) -> None:
        """Act in another environment from now on; None is the task's, or the dataset's."""
        self.given = environment
        self._venv = None

    def find(self) -> Environment | None:
        """Return the environment to act in, not made yet; None where nobody names one."""
        if self.given is not None:
            return self.given
        if self.task is not None and self.task.env_id is not None:
            return self._task_as_recorded(self.task).make_env
        if self.dataset.env_id is not None:
            env_id, env_kwargs = self.dataset.env_id, self.dataset.env_kwargs
            return Task(name=env_id, env_id=env_id, env_kwargs=env_kwargs).make_env
        return None

    def require(self) -> Environment:
        """Return the environment to act in, not made yet.

        Raises:
            UnknownTaskError: Nobody names one.
        """
        environment = self.find()
        if environment is None:
            raise UnknownTaskError(
                "neither the task nor the dataset names an environment: pass one with env=, or "
                "model.set_env",
                setting="env",
            )
        return environment

    def make(self) -> VecEnv | None:
        """Return the environment to act in, made at the first call; None where nobody names one.

        Raises:
            UnknownTaskError: The environment is not known here.
            MissingDependencyError: Its package is not installed.
            ConfigError: No target return is known.
        """
        environment = self.find()
        if self._venv is None and environment is not None:
            target = np.nan if conditions_itself(environment) else self.target_return
            self._venv = self.wrap(environment, target)
            if self._seed is not None:
                self._venv.seed(self._seed)
        return self._venv

    def wrap(self, environment: Environment, target_return: float | None = None) -> VecEnv:
        """Make an environment ready to act in, as :func:`wrap` does, for the model.

        Args:
            environment: As :func:`wrap` takes it.
            target_return: Return to ask for; None is the model's.
        """
        target = self.target_return if target_return is None else target_return
        return wrap(environment, target, self.clip_rewards, self.delayed_rewards)

    def condition(self, env: Any, target_return: float | None = None) -> Any:
        """Wrap an environment in ``ReturnToGo``, for the model; arguments as :meth:`wrap`."""
        target = self.target_return if target_return is None else target_return
        return ReturnToGo(env, target, self.clip_rewards, self.delayed_rewards)

    def seed(self, seed: int) -> None:
        """Seed the environment, now or when it is made."""
        self._seed = seed
        if self._venv is not None:
            self._venv.seed(seed)

    @property
    def is_doubtful(self) -> bool:
        """Whether the environment may have other spaces than the dataset.

        Not where it is the dataset's own: learning needs none, and it is made when it is needed.
        """
        if self.given is not None:
            return True
        return self.task is not None and self.task.env_id not in (None, self.dataset.env_id)

    def describe(self) -> str:
        """Return what the environment is called in messages."""
        named = self.task.env_id if self.task is not None else None
        if self.given is not None or named is None:
            return "the environment"
        theirs = self.dataset.env_id
        note = f" (the dataset is of {theirs})" if theirs not in (None, named) else ""
        return f"the task's environment {named}{note}"

    @property
    def clip_rewards(self) -> bool:
        """Whether the return-to-go counts clipped rewards: as in the dataset, else as the task."""
        if self.dataset.clip_rewards is not None:
            return self.dataset.clip_rewards
        return self.task is not None and self.task.clip_rewards

    @property
    def delayed_rewards(self) -> bool:
        """Whether the return-to-go stays at the target until an episode's end, as in the data."""
        return self.dataset.delayed_rewards

    @property
    def target_return(self) -> float:
        """Return asked for at the start of an episode; may be set, or set to None.

        By default the highest of the task's targets that the dataset has reached (else the
        lowest), or without a task the dataset's best return.
        """
        if self._target_return is not None:
            return self._target_return
        best = self.dataset.returns.max(initial=-np.inf)
        if self.task is not None and self.task.target_returns:
            targets = sorted(self.task.target_returns)
            return max((target for target in targets if target <= best), default=targets[0])
        if not np.isfinite(best):
            raise _no_target_is_known()
        return float(best)

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        self._target_return = None if value is None else check_number("target_return", value)
        if self._venv is not None:
            set_target_return(self._venv, self.target_return)

    @property
    def given_target_return(self) -> float | None:
        """The target return that was set, if one was."""
        return self._target_return

    def target_returns(self) -> tuple[float, ...]:
        """Return the targets worth asking for: the task's, or quantiles of the dataset's returns.

        Raises:
            ConfigError: There is neither.
        """
        if self.task is not None and self.task.target_returns:
            return self.task.target_returns
        if not len(self.dataset.returns):
            raise _no_target_is_known()
        quantiles = np.quantile(self.dataset.returns, _DEFAULT_TARGET_QUANTILES)
        return tuple(dict.fromkeys(float(f"{target:.4g}") for target in quantiles))

    def reference_scores(self) -> ReferenceScores | None:
        """Return what scores are normalised by; an environment that was given has none."""
        if self.given is not None:
            return None
        if self.task is not None and self.task.reference is not None:
            return self.task.reference
        return get_reference_scores(self.dataset.env_id or "")

    def _task_as_recorded(self, task: Task) -> Task:
        """Return the task; an Atari game with the sticky actions and so on of the dataset."""
        if not (is_atari(task.env_id) and is_atari(self.dataset.env_id)):
            return task
        return dataclasses.replace(task, env_kwargs={**task.env_kwargs, **self.dataset.env_kwargs})


def _no_target_is_known() -> ConfigError:
    return ConfigError(
        "no target return is known, neither from the task nor from a dataset: pass one, or "
        "set model.target_return",
        setting="target_return",
    )


def _game_of(described: Task | DatasetInfo | None) -> str | None:
    if described is None or not is_atari(described.env_id):
        return None
    return str(described.env_kwargs.get("game")).replace("_", "").lower()
