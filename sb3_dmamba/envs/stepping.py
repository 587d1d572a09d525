"""Batches of environments behind one interface; VecNormalize among the wrappers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from jaxtyping import Bool, Float64
from numpy import ndarray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_dmamba.errors import ConditioningError


def find_normalizers(env: Any) -> list[VecNormalize]:
    """Return every VecNormalize among an environment's wrappers, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def check_returns_unscaled(env: Any) -> None:
    """Check that no VecNormalize scales the return-to-go with the observations.

    Args:
        env: A ``VecEnv`` whose observations carry a return-to-go.

    Raises:
        ConditioningError: One does; says how to leave it out.
    """
    for each in find_normalizers(env):
        if each.norm_obs and "return_to_go" in (each.norm_obs_keys or ()):
            raise ConditioningError(
                "a VecNormalize outside of ReturnToGo scales the return-to-go as if it were an "
                'observation: write VecNormalize(env, norm_obs_keys=["observation"]), or wrap the '
                "other way round, ReturnToGo(VecNormalize(env), target_return)"
            )


@contextlib.contextmanager
def statistics_kept(env: Any) -> Iterator[None]:
    """Let every VecNormalize normalise by what it knows, and learn nothing."""
    before = [(each, each.training) for each in find_normalizers(env)]
    for each, _ in before:
        each.training = False
    try:
        yield
    finally:
        for each, training in before:
            each.training = training


@dataclass(frozen=True)
class Stepped:
    """What a step of n environments returned.

    Args:
        observations: What the policy sees next, batched as the space has it; after an end, of the
            new episode (or, where ``resets`` says so, of the old one).
        rewards: In the environment's units, (n,).
        terminated: Whether the environment ended the episode, (n,).
        truncated: Whether a limit did, (n,).
        resets: Where the next step will only reset, (n,).
    """

    observations: Any
    rewards: Float64[ndarray, "n"]
    terminated: Bool[ndarray, "n"]
    truncated: Bool[ndarray, "n"]
    resets: Bool[ndarray, "n"]


class Envs(Protocol):
    """What the collector needs of n environments; spaces are those of one."""

    n: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def reset(self, seed: int | None) -> Any:
        """Start an episode in every environment; the seeds are ``seed``, ``seed + 1``, ..."""

    def step(self, actions: ndarray) -> Stepped:
        """Step every environment."""


class GymEnvs:
    """Environments that are stepped one after the other; each ends and resets in one step."""

    def __init__(self, envs: list[gym.Env[Any, Any]]) -> None:
        self.n = len(envs)
        self.observation_space = envs[0].observation_space
        self.action_space = envs[0].action_space
        self._envs = envs

    def reset(self, seed: int | None) -> Any:
        """Start an episode in each."""
        seeds = [None if seed is None else seed + index for index in range(self.n)]
        return self._join(
            [env.reset(seed=each)[0] for env, each in zip(self._envs, seeds, strict=True)]
        )

    def step(self, actions: ndarray) -> Stepped:
        """Step each; one that ends is reset."""
        shown, rewards = [], np.zeros(self.n)
        ends = np.zeros((2, self.n), dtype=bool)
        for index, env in enumerate(self._envs):
            observation, reward, *flags, _ = env.step(actions[index])
            rewards[index], ends[:, index] = float(reward), flags
            shown.append(env.reset()[0] if any(flags) else observation)
        return Stepped(self._join(shown), rewards, ends[0], ends[1], np.zeros(self.n, dtype=bool))

    def _join(self, observations: list[Any]) -> Any:
        empty = create_empty_array(self.observation_space, self.n)
        return concatenate(self.observation_space, observations, empty)


class GymVectorEnvs:
    """A Gymnasium vector environment, whichever way it resets."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.n = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self._env = env
        # gymnasium 1.0 has no AutoresetMode and always resets on the next step
        mode = env.metadata.get("autoreset_mode")
        self._mode = "NextStep" if mode is None else str(getattr(mode, "value", mode))

    def reset(self, seed: int | None) -> Any:
        """Start an episode in each."""
        return self._env.reset(seed=seed)[0]

    def step(self, actions: ndarray) -> Stepped:
        """Step each; one that ends is reset now, or by the next step."""
        observations, rewards, terminated, truncated, _ = self._env.step(actions)
        ended = np.logical_or(terminated, truncated)
        if self._mode == "Disabled" and ended.any():
            observations, _ = self._env.reset(options={"reset_mask": ended.copy()})
        resets = ended if self._mode == "NextStep" else np.zeros_like(ended)
        return Stepped(
            observations,
            np.asarray(rewards, np.float64),
            terminated.copy(),
            truncated.copy(),
            resets,
        )


class SB3Envs:
    """A Stable-Baselines3 vector environment."""

    def __init__(self, env: VecEnv) -> None:
        self.n = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._env = env
        paying = [each for each in find_normalizers(env) if each.norm_reward]
        self._normalize = paying[-1] if paying else None  # the innermost is paid the original

    def reset(self, seed: int | None) -> Any:
        """Start an episode in each."""
        if seed is not None:
            self._env.seed(seed)
        return self._env.reset()

    def step(self, actions: ndarray) -> Stepped:
        """Step each; one that ends was reset."""
        observations, rewards, done, infos = self._env.step(actions)
        if self._normalize is not None:
            rewards = self._normalize.get_original_reward()
        done = np.asarray(done, dtype=bool)
        limit = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        return Stepped(
            observations,
            np.asarray(rewards, np.float64),
            done & ~limit,
            done & limit,
            resets=np.zeros(self.n, dtype=bool),
        )
