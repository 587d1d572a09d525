"""From what a user gave to environments that can be recorded, and what they are called."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.atari import register
from sb3_dmamba.compatibility import as_gymnasium, make_environment, qualify_id
from sb3_dmamba.data.collect.envs import Envs, GymEnvs, GymVectorEnvs, SB3Envs
from sb3_dmamba.data.normalizers import find_normalizers, statistics_kept
from sb3_dmamba.data.spaces import is_conditioned
from sb3_dmamba.errors import ConfigError, DatasetError

__all__ = ["Opened", "describe_environment", "open_envs"]

# Wrappers that leave observations, actions and rewards as they are, or that are undone here.
_HARMLESS = ("Monitor", "ReturnToGoEnv", "RecordEpisodeStatistics", "RecordVideo")
_HARMLESS_VECTOR = ("VecNormalize", "VecMonitor", "VecCheckNan", "ReturnToGoVecEnv")
_OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode")


@dataclass(frozen=True)
class Opened:
    """Environments, what they are called, and how to read what is to be recorded.

    Args:
        envs: The environments.
        recorded_space: Space of the observations to record.
        read: Makes them of what the policy sees.
        env_id: What ``gymnasium.make`` takes, if it is known.
        env_kwargs: Its other arguments.
    """

    envs: Envs
    recorded_space: spaces.Space[Any]
    read: Callable[[Any], Any]
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


Condition = Callable[[Any], Any]
"""Adds the return-to-go to an environment of any of the three kinds."""


@contextlib.contextmanager
def open_envs(
    env: Any,
    n_envs: int,
    env_kwargs: Mapping[str, Any] | None,
    condition: Condition | None = None,
) -> Iterator[Opened]:
    """Make what is not made yet (and close that at the end), and adapt the rest.

    Args:
        env: What the user gave.
        n_envs: How many to make.
        env_kwargs: Arguments of the environment.
        condition: For a policy that needs the return-to-go: adds it where it is not shown.

    Raises:
        ConfigError: ``env`` is nothing of the kind, or cannot be made ``n_envs`` times.
        UnknownTaskError: No environment has that id.
        MissingDependencyError: The environment's package is not installed.
        DatasetError: The environment's own observations cannot be told from normalised ones.
    """
    env = as_gymnasium(env)
    is_made = isinstance(env, (gym.Env, VectorEnv, VecEnv))
    if is_made and n_envs != 1:
        raise ConfigError(
            f"n_envs={n_envs} and an environment that is made already: give its id, or a function "
            f"that makes one"
        )
    if is_made:
        with statistics_kept(env):
            yield _adapt(_with_return_to_go(env, condition), describe_environment(env))
        return
    if not isinstance(env, str) and not callable(env):
        raise ConfigError(
            f"env={env!r}: give a Gymnasium id, an environment (one, or a Gymnasium or "
            f"Stable-Baselines3 vector), or a function that makes one"
        )
    made: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(n_envs):
            new = _make(env, env_kwargs)
            if not isinstance(new, gym.Env) or any(new is each for each in made):
                raise ConfigError(
                    f"env() returned {new!r}: it must make a new gymnasium.Env at each call"
                )
            made.append(new)
        named = (env, dict(env_kwargs or {})) if isinstance(env, str) else None
        shown = [_with_return_to_go(each, condition) for each in made]
        yield _condition_free(GymEnvs(shown), named or describe_environment(made[0]))
    finally:
        for each in made:
            each.close()  # type: ignore[no-untyped-call]


def _make(env: str | Callable[[], Any], env_kwargs: Mapping[str, Any] | None) -> Any:
    if not isinstance(env, str):
        return as_gymnasium(env())
    register()  # what "sb3_dmamba:..." names, should this package be older than Gymnasium here
    return make_environment(env, env_kwargs or {})


def _with_return_to_go(env: Any, condition: Condition | None) -> Any:
    space = getattr(env, "single_observation_space", env.observation_space)
    return env if condition is None or is_conditioned(space) else condition(env)


def _adapt(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv,
    named: tuple[str | None, dict[str, Any]],
) -> Opened:
    if isinstance(env, gym.Env):
        return _condition_free(GymEnvs([env]), named)
    if isinstance(env, VectorEnv):
        return _condition_free(GymVectorEnvs(env), named)
    opened = _condition_free(SB3Envs(env), named)
    seeing = [each for each in find_normalizers(env) if each.norm_obs]
    if not seeing:
        return opened
    normalize = seeing[-1]  # the innermost is shown the original
    original = normalize.venv.observation_space
    if original.shape != opened.recorded_space.shape or type(original) is not type(
        opened.recorded_space
    ):
        raise DatasetError(
            f"VecNormalize sees observations of {original}, and the policy "
            f"{opened.recorded_space}: "
            f"put VecNormalize outside the wrappers that change observations, so that what it "
            f"normalises can be recorded"
        )
    return Opened(opened.envs, original, lambda _: normalize.get_original_obs(), *named)


def _condition_free(envs: Envs, named: tuple[str | None, dict[str, Any]]) -> Opened:
    """Leave the return-to-go, which a wrapper has added to the observations, unrecorded."""
    space = envs.observation_space
    if isinstance(space, spaces.Dict) and is_conditioned(space):
        return Opened(envs, space["observation"], lambda seen: seen["observation"], *named)
    return Opened(envs, space, lambda seen: seen, *named)


def describe_environment(env: Any) -> tuple[str | None, dict[str, Any]]:
    """Return what ``gymnasium.make`` takes to make it again, or None where that is unknown.

    It is unknown where a wrapper may change what is observed, done or paid.
    """
    while isinstance(env, VecEnvWrapper):
        if type(env).__name__ not in _HARMLESS_VECTOR:
            return None, {}
        env = env.venv
    if isinstance(env, VectorWrapper):
        return None, {}
    try:
        spec = env.get_attr("spec", 0)[0] if isinstance(env, VecEnv) else env.spec
    except (AttributeError, TypeError, ValueError, EOFError):  # a wrapper that cannot be recorded
        return None, {}
    if spec is None or any(each.name not in _HARMLESS for each in spec.additional_wrappers):
        return None, {}
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in _OF_VECTORS}
    registered = gym.registry.get(spec.id)
    if spec.max_episode_steps != getattr(registered, "max_episode_steps", None):
        kwargs["max_episode_steps"] = spec.max_episode_steps
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError):
        return None, {}
    return qualify_id(spec.id, spec.entry_point), kwargs
