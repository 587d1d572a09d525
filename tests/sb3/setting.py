"""A model whose every episode can be played by hand, and environments that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.evaluation.toys import SeededEnv
from tests.models import tiny_model
from tests.toys import random_trajectories

TARGET = 20.0

Episodes = list[tuple[float, int]]  # (return, length) of each


class PickledEnv(SeededEnv):
    """:class:`SeededEnv`, with observations in [-1, 1] that a network can tell apart."""

    def __init__(self, kind: str = "box", actions: str = "box") -> None:
        super().__init__(kind, actions)
        if kind == "box":
            self.observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)

    def _show(self) -> Any:
        shown = super()._show()
        return np.sin(shown).astype(np.float32) if self.kind == "box" else shown


class PixelEnv(SeededEnv):
    """:class:`SeededEnv`, seen as an image of 3 colours whose channels are last."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (4, 5, 3), np.uint8)

    def _show(self) -> Any:
        image = np.zeros((4, 5, 3), np.uint8)
        image[self.t % 4, self.seed_now % 5, self.t % 3] = 200
        return image


def make_env(kind: str = "box", actions: str = "box") -> gym.Env[Any, Any]:
    return PickledEnv(kind, actions)


def make_conditioned(target: float = TARGET) -> gym.Env[Any, Any]:
    env: Any = ReturnToGo(PickledEnv(), target)
    return env  # type: ignore[no-any-return]


@cache
def fitted(**settings: Any) -> DecisionMamba:
    """A tiny model of :class:`PickledEnv`'s spaces; the same object for the same settings."""
    n_actions = settings.pop("n_actions", None)
    shape = settings.pop("shape", (2,))
    data = random_trajectories(observation_shape=shape, n_actions=n_actions)
    return tiny_model(**settings).fit(data, 2)


def by_hand(
    model: Any,
    seeds: Iterable[int],
    make: Callable[[], gym.Env[Any, Any]] = make_env,
    target: float = TARGET,
    memory: Any = None,
) -> Episodes:
    """Play one episode after the other with nothing of Stable-Baselines3's in between."""
    actor, env, episodes = model.as_stateful_wrapper(target, memory=memory), make(), []
    for seed in seeds:
        actor.reset()
        (observation, _), reward, over, total, length = env.reset(seed=seed), 0.0, False, 0.0, 0
        while not over:
            action = actor.predict(observation, reward)
            observation, paid, terminated, truncated, _ = env.step(action)
            reward, over = float(paid), terminated or truncated
            total, length = total + reward, length + 1
        episodes.append((total, length))
    return episodes


def seeds_of(first: int, n_episodes: int, n_envs: int) -> list[int]:
    """The seeds that ``evaluate_policy`` plays: environment i counts on from ``first + i``."""
    counts = [(n_episodes + i) // n_envs for i in range(n_envs)]
    return [first + i + k for i, count in enumerate(counts) for k in range(count)]


def assert_same_episodes(found: tuple[list[float], list[int]], expected: Episodes) -> None:
    """Compare in any order; returns within the rounding of another batch size."""
    pairs = sorted(zip(*found, strict=True))
    assert [length for _, length in pairs] == [length for _, length in sorted(expected)]
    np.testing.assert_allclose([r for r, _ in pairs], [r for r, _ in sorted(expected)], rtol=1e-5)
