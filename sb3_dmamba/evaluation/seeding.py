"""The same episodes for every evaluator: whoever evaluates, episode k starts from seed + k."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from sb3_dmamba.checks import check_integer

__all__ = ["SeedEpisodes", "split_seeds"]


class SeedEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Start episode k of an environment from the seed ``seed + k``.

    ``model.evaluate`` seeds every episode so. Stable-Baselines3's ``evaluate_policy`` and d3rlpy's
    evaluators seed none: inside of this wrapper they play the same episodes, and with as many
    environments return the same numbers::

        env = ReturnToGo(SeedEpisodes(Monitor(gym.make("Hopper-v5")), seed=100), target)
        evaluate_policy(model, env, n_eval_episodes=10)
        model.evaluate(target, n_episodes=10, seed=100, n_envs=1)

    A seed given to ``reset`` begins the count anew from it. A reset before the first step, and one
    that goes on with a game after a lost life, begin no other episode.

    Args:
        env: The environment.
        seed: Seed of the first episode.

    Raises:
        ConfigError: ``seed`` is not a non-negative integer.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        self._next_seed = check_integer("seed", seed, 0)
        RecordConstructorArgs.__init__(self, seed=self._next_seed)
        gym.Wrapper.__init__(self, env)
        self._is_fresh = True
        self._may_lose_lives = env.has_wrapper_attr("was_real_done")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode from its seed."""
        if seed is not None:
            self._next_seed = seed
        elif self._may_lose_lives and not self.env.get_wrapper_attr("was_real_done"):
            return self.env.reset(options=options)
        self._is_fresh = True
        return self.env.reset(seed=self._next_seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the first step of an episode makes the next reset another one's."""
        if self._is_fresh:
            self._is_fresh = False
            self._next_seed += 1
        return self.env.step(action)


def split_seeds(seed: int, n_episodes: int, n_envs: int) -> list[int]:
    """Return the first seed of each environment when ``evaluate_policy`` shares out the episodes.

    Stable-Baselines3 gives environment i of a ``VecEnv`` ``(n_episodes + i) // n_envs`` episodes.
    With these seeds they are the episodes of ``model.evaluate(target, n_episodes, seed=seed)``,
    each once, listed in the order in which they end::

        seeds = split_seeds(100, n_episodes=10, n_envs=4)
        envs = [partial(make_env, seed) for seed in seeds]  # makes a SeedEpisodes(env, seed)
        evaluate_policy(model, ReturnToGo(DummyVecEnv(envs), target), n_eval_episodes=10)

    Args:
        seed: Seed of the first episode.
        n_episodes: Episodes in all.
        n_envs: Environments.

    Raises:
        ConfigError: An argument is not an integer, or too small.
    """
    seed = check_integer("seed", seed, 0)
    n_episodes = check_integer("n_episodes", n_episodes, 1)
    n_envs = check_integer("n_envs", n_envs, 1)
    counts = (n_episodes + np.arange(n_envs)) // n_envs
    return [int(first) for first in seed + np.cumsum(counts) - counts]
