"""Run context: environment, dataset metadata and target return of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_dmamba.checks import check_number
from sb3_dmamba.data import DatasetInfo, Trajectories
from sb3_dmamba.envs import MINIMAL_ACTIONS, is_atari
from sb3_dmamba.envs.batches import check_returns_unscaled
from sb3_dmamba.envs.make import as_gymnasium, make_gymnasium
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, DatasetError, SpaceError, UnknownTaskError
from sb3_dmamba.spaces import (
    check_actions_fit,
    check_actions_known,
    flat_space,
    has_channels_last,
    is_conditioned,
)
from sb3_dmamba.tasks import ReferenceScores, Task, get_reference_scores, get_task

MakeEnv = Callable[[], "gym.Env[Any, Any]"]
Environment = str | gym.Env[Any, Any] | VecEnv | MakeEnv


def conditions_itself(environment: Environment) -> bool:
    """Whether an environment shows a return-to-go, so that it has its own target."""
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

    A function may also make environments of the old gym or of dm_control.
    """
    if isinstance(environment, str):
        return get_task(environment).make_env
    if isinstance(environment, VecEnv):
        raise UnknownTaskError(
            "a VecEnv cannot be made again: give a Gymnasium id, an environment or a function that "
            "makes one; or evaluate in this one with stable_baselines3's evaluate_policy(model, "
            "ReturnToGo(venv, target_return))",
            setting="env",
        )
    if isinstance(environment, gym.Env):
        while isinstance(environment, (ReturnToGo, Monitor)):  # ours, not the user's
            environment = environment.env
        return _remake(environment)
    if as_gymnasium(environment) is not environment:
        raise UnknownTaskError(
            f"{environment!r} cannot be made again, and evaluation needs one for each episode: "
            f"give a function that makes it, env=lambda: ...",
            setting="env",
        )
    if callable(environment):
        return partial(make_gymnasium, environment)
    raise UnknownTaskError(
        f"env={environment!r} is not an environment: give a Gymnasium id, an environment, or a "
        f"function that makes one",
        setting="env",
        value=environment,
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
        f"for each episode: give a function that makes it, env=lambda: {name}(...)",
        setting="env",
    )


def set_target_return(venv: VecEnv, target_return: float) -> None:
    """Ask for another return from the next episodes of a conditioned environment on."""
    outermost = venv
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, ReturnToGo):
            venv.set_target_return(target_return)
            return
        venv = venv.venv
    outermost.env_method("set_target_return", target_return)


def wrap(
    environment: Environment,
    target_return: float,
    clip_rewards: bool = False,
    delayed_rewards: bool = False,
) -> VecEnv:
    """Make an environment ready to act in: vectorised, monitored, conditioned.

    Args:
        environment: A task name or Gymnasium id, a function, an environment, or a ``VecEnv``;
            one that is conditioned already stays as it is. An environment of the old gym or of
            dm_control is converted.
        target_return: Return to ask for at the start of each episode.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        UnknownTaskError: The name is unknown.
        SpaceError: The observations cannot be flattened.
        ConditioningError: A ``VecNormalize`` scales the return-to-go.
        MissingDependencyError: Shimmy is needed for a conversion and is not installed.
    """
    environment = as_gymnasium(environment)
    conditions = target_return, clip_rewards, delayed_rewards
    if isinstance(environment, VecEnv):
        if is_conditioned(environment.observation_space):
            check_returns_unscaled(environment)
            return environment
        return cast("VecEnv", ReturnToGo(environment, *conditions))
    env = environment if isinstance(environment, gym.Env) else make_factory(environment)()
    if not is_conditioned(env.observation_space):
        env = cast("gym.Env[Any, Any]", ReturnToGo(Monitor(env), *conditions))
    return DummyVecEnv([lambda: env])


def check_spaces(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    environment: Any,
    what: str,
) -> None:
    """Check that an environment's spaces are those the model was made for.

    Args:
        observation_space: The model's, flat.
        action_space: The model's.
        environment: Anything with both spaces, conditioned or not.
        what: What ``environment`` is called in the message.

    Raises:
        SpaceError: Shapes or action types differ, or the model may choose actions outside the
            environment's bounds.
    """
    theirs = environment.observation_space
    theirs = theirs["observation"] if is_conditioned(theirs) else flat_space(theirs)
    if not has_channels_last(theirs.shape, observation_space):  # predict moves them
        _check_shape(theirs, observation_space, what)
    check_actions_fit(environment.action_space, action_space, what)


def check_dataset(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    trajectories: Trajectories,
) -> None:
    """Check that a model can learn from a dataset; arguments as :func:`check_spaces`.

    Raises:
        SpaceError: Shapes or action types differ, or actions lie outside the model's bounds.
    """
    _check_shape(trajectories.observation_space, observation_space, "the dataset")
    check_actions_known(trajectories.action_space, action_space)


def _check_shape(theirs: spaces.Space[Any], ours: spaces.Space[Any], what: str) -> None:
    if theirs.shape != ours.shape:
        raise SpaceError(
            f"{what} has observations of shape {theirs.shape}, and the model was made for "
            f"{ours.shape}: use the environment and dataset of one task",
            setting="observation_space",
            value=theirs.shape,
            choices=[ours.shape],
        )


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


_ATARI_FRAME_STACK = 4  # AtariGame's default


def describe_use(surroundings: Surroundings) -> dict[str, Any]:
    """Return task, environment, dataset and targets, in what JSON can hold; None is unknown.

    Args:
        surroundings: The model's.
    """
    task, dataset = surroundings.task, surroundings.dataset
    env_id, env_kwargs = dataset.env_id, dict(dataset.env_kwargs)
    if task is not None and task.env_id is not None:
        env_kwargs = {**task.env_kwargs, **(env_kwargs if task.env_id == env_id else {})}
        env_id = task.env_id
    if surroundings.given is not None:  # what its arguments were is not recorded everywhere
        spec = getattr(surroundings.given, "spec", None)
        named = surroundings.given if isinstance(surroundings.given, str) else None
        env_id, env_kwargs = getattr(spec, "id", named), {}
    default_stack = _ATARI_FRAME_STACK if is_atari(env_id) else None
    try:
        target_return: float | None = surroundings.target_return
        target_returns = list(surroundings.target_returns())
    except ConfigError:
        target_return, target_returns = surroundings.given_target_return, []
    return {
        "task": None if task is None else task.name,
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "frame_stack": env_kwargs.get("frame_stack", default_stack),
        "dataset": dataset.source or None,
        "target_return": target_return,
        "target_returns": target_returns,
        "clip_rewards": surroundings.clip_rewards,
        "delayed_rewards": surroundings.delayed_rewards,
    }
