"""What a user may mean by an environment, and what the model acts in."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dmamba.data import DatasetInfo, flat_space
from sb3_dmamba.errors import ConfigError, SpaceError, UnknownTaskError
from sb3_dmamba.evaluation import ReturnToGo
from sb3_dmamba.tasks import ReferenceScores, Task, get_reference_scores, get_task

__all__ = [
    "Environment",
    "MakeEnv",
    "Surroundings",
    "check_spaces",
    "make_factory",
    "set_target_return",
    "wrap",
]

MakeEnv = Callable[[], "gym.Env[Any, Any]"]
Environment = str | gym.Env[Any, Any] | VecEnv | MakeEnv

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

    def remember(self, dataset: DatasetInfo) -> None:
        """Note what the model was fitted to; where and for what it acts may depend on it."""
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
            return self.task.make_env
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
                "model.set_env"
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
            target = np.nan if _conditions_itself(environment) else self.target_return
            self._venv = wrap(environment, target)
        return self._venv

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
        self._target_return = None if value is None else _as_finite(value)
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


def _as_finite(value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"target_return={value!r}: give a finite number")
    return float(value)


def _no_target_is_known() -> ConfigError:
    return ConfigError(
        "no target return is known, neither from the task nor from a dataset: pass one, or "
        "set model.target_return"
    )


def is_conditioned(space: spaces.Space[Any]) -> bool:
    """Whether observations of this space carry a return-to-go."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "return_to_go"}


def _conditions_itself(environment: Environment) -> bool:
    if not isinstance(environment, (gym.Env, VecEnv)):
        return False
    return is_conditioned(environment.observation_space)


def make_factory(environment: Environment) -> MakeEnv:
    """Return a function that makes environments like the one given, unconditioned.

    Args:
        environment: A task name or Gymnasium id, a function, or an environment made by
            ``gymnasium.make``.

    Raises:
        UnknownTaskError: The environment cannot be made a second time, or its name is unknown.
    """
    if isinstance(environment, str):
        return get_task(environment).make_env
    if isinstance(environment, VecEnv):
        raise UnknownTaskError(
            "a VecEnv cannot be made again: give a Gymnasium id, an environment or a function that "
            "makes one; or evaluate in this one with stable_baselines3's evaluate_policy(model, "
            "ReturnToGo(venv, target_return))"
        )
    if isinstance(environment, gym.Env):
        while isinstance(environment, (ReturnToGo, Monitor)):  # ours, not the user's
            environment = environment.env
        return _remake(environment)
    if callable(environment):
        return environment
    raise UnknownTaskError(
        f"env={environment!r} is no environment: give a Gymnasium id, an environment, or a "
        f"function that makes one"
    )


def _remake(env: gym.Env[Any, Any]) -> MakeEnv:
    """Return a function that makes an environment again, its recorded wrappers included."""
    try:
        spec = env.spec
        # A wrapper that did not record its arguments has None there, and cannot be repeated.
        if spec is not None and all(w.kwargs is not None for w in spec.additional_wrappers):
            return partial(gym.make, spec)
    except (TypeError, ValueError):  # a wrapper whose arguments cannot be recorded
        pass
    name = type(env.unwrapped).__name__
    raise UnknownTaskError(
        f"{env} cannot be made again from what Gymnasium recorded of it, and evaluation needs one "
        f"for each episode: give a function that makes it, env=lambda: {name}(...)"
    )


def set_target_return(venv: VecEnv, target_return: float) -> None:
    """Ask for another return from the next episodes of a conditioned environment on."""
    if isinstance(venv, ReturnToGo):
        venv.set_target_return(target_return)
    else:
        venv.env_method("set_target_return", target_return)


def wrap(environment: Environment, target_return: float) -> VecEnv:
    """Make an environment ready to act in: vectorised, monitored, conditioned.

    Args:
        environment: A task name or Gymnasium id, a function, an environment, or a ``VecEnv``;
            one that is conditioned already stays as it is.
        target_return: Return to ask for at the start of each episode.

    Raises:
        UnknownTaskError: The name is unknown.
        SpaceError: The observations cannot be flattened.
    """
    if isinstance(environment, VecEnv):
        if is_conditioned(environment.observation_space):
            return environment
        return cast(VecEnv, ReturnToGo(environment, target_return))
    env = environment if isinstance(environment, gym.Env) else make_factory(environment)()
    if not is_conditioned(env.observation_space):
        env = cast("gym.Env[Any, Any]", ReturnToGo(Monitor(env), target_return))
    return DummyVecEnv([lambda: env])


def check_spaces(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    environment: Any,
    what: str,
) -> None:
    """Check that an environment's or a dataset's spaces are those the model was made for.

    Args:
        observation_space: The model's, flat.
        action_space: The model's.
        environment: Anything with both spaces, conditioned or not.
        what: What ``environment`` is called in the message.

    Raises:
        SpaceError: Shapes or action types differ.
    """
    theirs = environment.observation_space
    theirs = theirs["observation"] if is_conditioned(theirs) else flat_space(theirs)
    if theirs.shape != observation_space.shape:
        raise SpaceError(
            f"{what} has observations of shape {theirs.shape}, and the model was made for "
            f"{observation_space.shape}: use the environment and dataset of one task"
        )
    actions = environment.action_space
    alike = type(actions) is type(action_space) and actions.shape == action_space.shape
    if alike and isinstance(action_space, spaces.Discrete):
        alike = (actions.n, actions.start) == (action_space.n, action_space.start)
    if not alike:
        raise SpaceError(
            f"{what} has actions {actions}, and the model was made for {action_space}: use the "
            f"environment and dataset of one task"
        )
