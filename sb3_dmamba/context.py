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
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.envs import MINIMAL_ACTIONS, is_atari
from sb3_dmamba.envs.batches import check_returns_unscaled
from sb3_dmamba.envs.make import as_gymnasium, make_gymnasium
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.envs.stepping import CheckedEnv
from sb3_dmamba.errors import ConfigError, DatasetError, UnknownTaskError
from sb3_dmamba.spaces import check_environment_fits, flat_space, is_conditioned
from sb3_dmamba.tasks import ReferenceScores, Task, get_reference_scores, get_task

MakeEnv = Callable[[], "gym.Env[Any, Any]"]
Environment = str | gym.Env[Any, Any] | VecEnv | MakeEnv

_DEFAULT_TARGET_QUANTILES = (0.5, 0.9, 1.0)
_ATARI_FRAME_STACK = 4  # AtariGame's default
_GYMNASIUMS_ATARI = "ALE/"  # ids of the same games with other observations


class RunContext:
    """Environment, dataset metadata and target return of a model.

    The environment is the user's, else the task's, else the dataset's; it is made on first use.
    """

    def __init__(self, env: Environment | None, task: Task | None) -> None:
        self.env = env
        self.task = task
        self.dataset = DatasetInfo()
        self.chosen_target_return: float | None = None  # None: the default
        self.observation_space: spaces.Box | None = None  # the model's; None: not known yet
        self._venv: VecEnv | None = None
        self._seed: int | None = None

    # --- Dataset -------------------------------------------------------------------------------

    def set_dataset(self, dataset: DatasetInfo) -> None:
        """Note the dataset that the model was fitted to."""
        self.check_dataset(dataset)
        self.dataset = dataset
        self._venv = None  # may have been the last dataset's

    def check_dataset(self, dataset: DatasetInfo) -> None:
        """Check that dataset and task are of the same Atari game, or both of none."""
        if self.task is None or None in (self.task.env_id, dataset.env_id):
            return
        ours, theirs = _atari_game(self.task), _atari_game(dataset)
        if ours == theirs or _GYMNASIUMS_ATARI in f"{self.task.env_id}{dataset.env_id}":
            return
        name = f"the game {dataset.env_kwargs.get('game')!r}" if theirs else dataset.env_id
        is_task = theirs in {game.lower() for game in MINIMAL_ACTIONS}
        message = (
            f"the dataset is of {name}, and the task {self.task.name!r} is not: use "
            f"DecisionMamba({theirs if is_task else dataset.env_id!r}), or another dataset"
        )
        wrong, right = theirs or dataset.env_id, [ours or self.task.env_id]
        raise DatasetError(message, setting="env_id", value=wrong, choices=right)

    @property
    def clip_rewards(self) -> bool:
        """Whether the return-to-go counts clipped rewards: as in the dataset, else as the task."""
        of_task = self.task is not None and self.task.clip_rewards
        return of_task if self.dataset.clip_rewards is None else self.dataset.clip_rewards

    @property
    def delayed_rewards(self) -> bool:
        """Whether the return-to-go stays at the target until an episode's end, as in the data."""
        return self.dataset.delayed_rewards

    # --- Environment ---------------------------------------------------------------------------

    def set_env(self, env: Environment | None) -> None:
        """Use another environment from now on; None is the task's, or the dataset's."""
        self.env = env
        self._venv = None

    def find_env(self) -> Environment | None:
        """Return the environment, not made yet; None where none is known."""
        if self.env is not None:
            return self.env
        env_id, env_kwargs = self.dataset.env_id, self.dataset.env_kwargs
        if self.task is not None and self.task.env_id is not None:
            if not (is_atari(self.task.env_id) and is_atari(env_id)):
                return self.task.make_env
            # a game with the sticky actions and so on of the dataset
            env_kwargs = {**self.task.env_kwargs, **env_kwargs}
            return dataclasses.replace(self.task, env_kwargs=env_kwargs).make_env
        if env_id is None:
            return None
        return Task(name=env_id, env_id=env_id, env_kwargs=env_kwargs).make_env

    def require_env(self) -> Environment:
        """Return the environment, not made yet."""
        if (env := self.find_env()) is not None:
            return env
        missing = "neither the task nor the dataset names an environment"
        fix = "pass one with env= (on the command line, --env ID), or model.set_env"
        raise UnknownTaskError(f"{missing}: {fix}", setting="env")

    def make_venv(self) -> VecEnv | None:
        """Return the environment, vectorised and conditioned, always the same; None if unknown."""
        env = self.find_env()
        if self._venv is None and env is not None:
            space = env.observation_space if isinstance(env, (gym.Env, VecEnv)) else None
            has_target = space is not None and is_conditioned(space)
            self._venv = self.wrap(env, np.nan if has_target else None)
            if self._seed is not None:
                self._venv.seed(self._seed)
        return self._venv

    def wrap(self, env: Environment, target_return: float | None = None) -> VecEnv:
        """Vectorise and condition an environment, as :func:`wrap`; None is the model's target."""
        return wrap(env, *self._conditions(target_return), space=self.observation_space)

    def condition(self, env: Any, target_return: float | None = None) -> Any:
        """Wrap an environment in ``ReturnToGo``; None is the model's target."""
        return _condition(env, self._conditions(target_return), self.observation_space)

    def _conditions(self, target_return: float | None) -> tuple[float, bool, bool]:
        target = self.target_return if target_return is None else target_return
        return target, self.clip_rewards, self.delayed_rewards

    def seed(self, seed: int) -> None:
        """Seed the environment, now or when it is made."""
        self._seed = seed
        if self._venv is not None:
            self._venv.seed(seed)

    @property
    def env_may_differ(self) -> bool:
        """Whether the environment may have other spaces than the dataset: it is not its own."""
        task_id = None if self.task is None else self.task.env_id
        return self.env is not None or task_id not in (None, self.dataset.env_id)

    @property
    def env_name(self) -> str:
        """The environment, for messages."""
        task_id = self.task.env_id if self.task is not None else None
        if self.env is not None or task_id is None:
            return "the environment"
        other = self.dataset.env_id
        note = f" (the dataset is of {other})" if other not in (None, task_id) else ""
        return f"the task's environment {task_id}{note}"

    # --- Targets and scores --------------------------------------------------------------------

    @property
    def target_return(self) -> float:
        """Return asked for at the start of an episode; may be set, or set to None.

        By default the highest of the task's targets that the dataset has reached (else the
        lowest), or without a task the dataset's best return.
        """
        if self.chosen_target_return is not None:
            return self.chosen_target_return
        best = self.dataset.returns.max(initial=-np.inf)
        if self.task is not None and self.task.target_returns:
            targets = sorted(self.task.target_returns)
            return max((target for target in targets if target <= best), default=targets[0])
        if not np.isfinite(best):
            raise _no_target_return()
        return float(best)

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        self.chosen_target_return = None if value is None else check_number("target_return", value)
        if self._venv is not None:
            set_target_return(self._venv, self.target_return)

    def target_returns(self) -> tuple[float, ...]:
        """Return the targets to evaluate: the task's, or quantiles of the dataset's returns."""
        if self.task is not None and self.task.target_returns:
            return self.task.target_returns
        if not len(self.dataset.returns):
            raise _no_target_return()
        quantiles = np.quantile(self.dataset.returns, _DEFAULT_TARGET_QUANTILES)
        return tuple(dict.fromkeys(float(f"{target:.4g}") for target in quantiles))

    def reference_scores(self) -> ReferenceScores | None:
        """Return the returns that scores are normalised by; None for the user's environment."""
        if self.env is not None:
            return None
        if self.task is not None and self.task.reference is not None:
            return self.task.reference
        return get_reference_scores(self.dataset.env_id or "")

    def to_dict(self) -> dict[str, Any]:
        """Return task, environment, dataset and targets, JSON-compatible; None is unknown."""
        env_id, env_kwargs = self.dataset.env_id, dict(self.dataset.env_kwargs)
        if self.task is not None and self.task.env_id is not None:
            recorded = env_kwargs if self.task.env_id == env_id else {}
            env_id, env_kwargs = self.task.env_id, {**self.task.env_kwargs, **recorded}
        if self.env is not None:  # its arguments are not always recorded
            named = self.env if isinstance(self.env, str) else None
            env_id, env_kwargs = getattr(getattr(self.env, "spec", None), "id", named), {}
        default_stack = _ATARI_FRAME_STACK if is_atari(env_id) else None
        try:
            target_return: float | None = self.target_return
            target_returns = list(self.target_returns())
        except ConfigError:
            target_return, target_returns = self.chosen_target_return, []
        return {
            "task": None if self.task is None else self.task.name,
            "env_id": env_id,
            "env_kwargs": env_kwargs,
            "frame_stack": env_kwargs.get("frame_stack", default_stack),
            "dataset": self.dataset.source or None,
            "target_return": target_return,
            "target_returns": target_returns,
            "clip_rewards": self.clip_rewards,
            "delayed_rewards": self.delayed_rewards,
        }


def _no_target_return() -> ConfigError:
    message = "no target return is known, neither from the task nor from a dataset: pass one, or "
    return ConfigError(f"{message}set model.target_return", setting="target_return")


def _atari_game(described: Task | DatasetInfo) -> str | None:
    if not is_atari(described.env_id):
        return None
    return str(described.env_kwargs.get("game")).replace("_", "").lower()


# --- Making environments -------------------------------------------------------------------------


def make_factory(env: Environment) -> MakeEnv:
    """Return a function that makes environments like the one given, unconditioned."""
    if isinstance(env, str):
        return get_task(env).make_env
    if isinstance(env, VecEnv):
        message = (
            "a VecEnv cannot be made again: give a Gymnasium id, an environment or a function that "
            "makes one; or use stable_baselines3's evaluate_policy(model, ReturnToGo(venv, target))"
        )
        raise UnknownTaskError(message, setting="env")
    if isinstance(env, gym.Env):
        while isinstance(env, (ReturnToGo, Monitor, CheckedEnv)):  # ours, not the user's
            env = env.env
        return _remake(env)
    if as_gymnasium(env) is not env:
        raise _not_again(env, "...")
    if callable(env):
        return partial(make_gymnasium, env)
    fix = "give a Gymnasium id, an environment, or a function that makes one"
    raise UnknownTaskError(f"env={env!r} is not an environment: {fix}", setting="env", value=env)


def _not_again(env: Any, made: str) -> UnknownTaskError:
    message = (
        f"{env} cannot be made again, and evaluation needs one for each episode: give a function "
        f"that makes it, env=lambda: {made}"
    )
    return UnknownTaskError(message, setting="env")


def _remake(env: gym.Env[Any, Any]) -> MakeEnv:
    """Return a function that makes an environment again, its recorded wrappers included."""
    try:
        spec = env.spec
        # kwargs is None where a wrapper did not record its arguments
        if spec is not None and all(w.kwargs is not None for w in spec.additional_wrappers):
            return partial(gym.make, spec)
    except (
        AttributeError,
        TypeError,
        ValueError,
    ):  # the old gym's, or a wrapper whose arguments cannot be recorded
        pass
    raise _not_again(env, f"{type(env.unwrapped).__name__}(...)")


def wrap(
    env: Environment,
    target_return: float,
    clip_rewards: bool = False,
    delayed_rewards: bool = False,
    space: spaces.Box | None = None,
) -> VecEnv:
    """Vectorise, monitor and condition an environment; ``space`` is the model's, where known."""
    env = as_gymnasium(env)
    conditions = target_return, clip_rewards, delayed_rewards
    if isinstance(env, VecEnv):
        if is_conditioned(env.observation_space):
            check_returns_unscaled(env)
            return env
        return cast("VecEnv", _condition(env, conditions, space))
    made = env if isinstance(env, gym.Env) else make_factory(env)()
    if not is_conditioned(made.observation_space):
        made = _condition(Monitor(CheckedEnv(made)), conditions, space)
    return DummyVecEnv([lambda: made])


def _condition(env: Any, conditions: tuple[float, bool, bool], space: spaces.Box | None) -> Any:
    """Wrap in ``ReturnToGo``, with the parts of Dict observations in the order of the model's."""
    wrapped = ReturnToGo(env, *conditions)
    if space is not None:
        wrapped.arrange_parts(space)
    return wrapped


def set_target_return(venv: VecEnv, target_return: float) -> None:
    """Change the target of a conditioned environment, from the next episodes on."""
    layer = venv
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, ReturnToGo):
            layer.set_target_return(target_return)
            return
        layer = layer.venv
    venv.env_method("set_target_return", target_return)


# --- Checking spaces -----------------------------------------------------------------------------


def check_spaces(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    environment: Any,
    what: str,
) -> None:
    """Check that an environment's spaces are those the model was made for."""
    theirs = environment.observation_space
    theirs = theirs["observation"] if is_conditioned(theirs) else flat_space(theirs)
    check_environment_fits(theirs, environment.action_space, observation_space, action_space, what)
