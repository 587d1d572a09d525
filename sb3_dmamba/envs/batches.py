"""Batches of environments behind one interface, and VecNormalize among their wrappers."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from jaxtyping import Bool, Float64
from numpy import ndarray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_dmamba.envs.stepping import (
    autoreset_mode,
    call_environment,
    find_flattened,
    reset_environment,
    step_environment,
)
from sb3_dmamba.errors import ConditioningError
from sb3_dmamba.spaces import flatten_observation, with_source


@dataclass(frozen=True)
class Stepped:
    """What a step of n environments returned."""

    observations: Any  # what the policy sees next: of the new episode, unless ``resets``
    rewards: Float64[ndarray, "n"]  # in the environment's units
    terminated: Bool[ndarray, "n"]
    truncated: Bool[ndarray, "n"]
    resets: Bool[ndarray, "n"]  # where the next step will only reset


class Batch(abc.ABC):
    """Environments that are stepped together and reset by themselves; spaces are those of one."""

    n: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    @staticmethod
    def of(
        env: list[gym.Env[Any, Any]] | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv,
    ) -> Batch:
        """Return the batch of one environment, several, or a vector environment of either kind."""
        if isinstance(env, VecEnv):
            return _SB3Batch(env)
        if isinstance(env, VectorEnv):
            return _GymVectorBatch(env)
        return _GymBatch([env] if isinstance(env, gym.Env) else env)

    @abc.abstractmethod
    def reset(self, seed: int | None) -> Any:
        """Start an episode in every environment; the seeds are ``seed``, ``seed + 1``, ..."""

    @abc.abstractmethod
    def step(self, actions: ndarray) -> Stepped:
        """Step every environment."""


class _GymBatch(Batch):
    """Environments that are stepped one after the other; each ends and resets in one step."""

    def __init__(self, envs: list[gym.Env[Any, Any]]) -> None:
        self.n = len(envs)
        self.observation_space = with_source(envs[0].observation_space, find_flattened(envs[0]))
        self.action_space = envs[0].action_space
        self._envs = envs

    def reset(self, seed: int | None) -> Any:
        seeds = [None if seed is None else seed + index for index in range(self.n)]
        pairs = zip(self._envs, seeds, strict=True)
        return self._join([reset_environment(env, seed=each)[0] for env, each in pairs])

    def step(self, actions: ndarray) -> Stepped:
        shown, rewards = [], np.zeros(self.n)
        ends = np.zeros((2, self.n), dtype=bool)
        for index, env in enumerate(self._envs):
            observation, reward, *flags, _ = step_environment(env, actions[index])
            rewards[index], ends[:, index] = float(reward), flags
            shown.append(reset_environment(env)[0] if any(flags) else observation)
        resets = np.zeros(self.n, dtype=bool)
        return Stepped(self._join(shown), rewards, ends[0], ends[1], resets)

    def _join(self, observations: list[Any]) -> Any:
        for observation in observations:
            flatten_observation(self.observation_space, observation)  # raises where it does not fit
        empty = create_empty_array(self.observation_space, self.n)
        return concatenate(self.observation_space, observations, empty)


class _GymVectorBatch(Batch):
    """A Gymnasium vector environment, whichever way it resets."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.n = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self._env = env
        self._mode = autoreset_mode(env)

    def reset(self, seed: int | None) -> Any:
        return reset_environment(self._env, seed=seed)[0]

    def step(self, actions: ndarray) -> Stepped:
        result = call_environment("step", self._env.step, actions)
        observations, rewards, terminated, truncated, _ = result
        ended = np.logical_or(terminated, truncated)
        if self._mode == "Disabled" and ended.any():
            observations, _ = reset_environment(self._env, options={"reset_mask": ended.copy()})
        resets = ended if self._mode == "NextStep" else np.zeros_like(ended)
        paid = np.asarray(rewards, np.float64)
        return Stepped(observations, paid, terminated.copy(), truncated.copy(), resets)


class _SB3Batch(Batch):
    """A Stable-Baselines3 vector environment."""

    def __init__(self, env: VecEnv) -> None:
        self.n = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._env = env
        paying = [each for each in find_normalizers(env) if each.norm_reward]
        self._normalizer = paying[-1] if paying else None  # the innermost is paid the original

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            self._env.seed(seed)
        return self._env.reset()

    def step(self, actions: ndarray) -> Stepped:
        result = call_environment("step_wait", self._env.step, actions)
        observations, rewards, done, infos = result
        if self._normalizer is not None:
            rewards = self._normalizer.get_original_reward()
        done = np.asarray(done, dtype=bool)
        limit = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        paid, resets = np.asarray(rewards, np.float64), np.zeros(self.n, dtype=bool)
        return Stepped(observations, paid, done & ~limit, done & limit, resets)


def find_normalizers(env: Any) -> list[VecNormalize]:
    """Return every VecNormalize among an environment's wrappers, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def check_returns_unscaled(env: Any) -> None:
    """Check that no VecNormalize scales the return-to-go with the observations."""
    for each in find_normalizers(env):
        if each.norm_obs and "return_to_go" in (each.norm_obs_keys or ()):
            raise ConditioningError(
                "a VecNormalize outside of ReturnToGo scales the return-to-go as if it were an "
                'observation: write VecNormalize(env, norm_obs_keys=["observation"]), or wrap the '
                "other way round, ReturnToGo(VecNormalize(env), target_return)",
                setting="norm_obs_keys",
                value=each.norm_obs_keys,
            )


@contextlib.contextmanager
def frozen_statistics(env: Any) -> Iterator[None]:
    """Let every VecNormalize normalise with its statistics, without updating them."""
    before = [(each, each.training) for each in find_normalizers(env)]
    for each, _ in before:
        each.training = False
    try:
        yield
    finally:
        for each, training in before:
            each.training = training
