"""From what a user gave to environments: made, made again, wrapped and checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_dmamba.compatibility import as_gymnasium, make_gymnasium
from sb3_dmamba.data import Trajectories, flat_space
from sb3_dmamba.data.action_bounds import check_actions_fit, check_actions_known
from sb3_dmamba.data.normalizers import check_returns_unscaled
from sb3_dmamba.data.spaces import has_channels_last, is_conditioned
from sb3_dmamba.errors import SpaceError, UnknownTaskError
from sb3_dmamba.evaluation import ReturnToGo
from sb3_dmamba.tasks import get_task

__all__ = [
    "Environment",
    "MakeEnv",
    "check_dataset",
    "check_spaces",
    "conditions_itself",
    "is_conditioned",
    "make_factory",
    "set_target_return",
    "wrap",
]

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
        return cast(VecEnv, ReturnToGo(environment, *conditions))
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
