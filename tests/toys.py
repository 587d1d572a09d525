"""Small environments and datasets with known answers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dmamba.data import Trajectories

CHOICE_LENGTH = 10


class ChoiceEnv(gym.Env[np.ndarray, int]):
    """Ten steps; action 1 earns 1, action 0 nothing: the return is the number of ones chosen."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return self._observe(), float(action), self.n_steps == CHOICE_LENGTH, False, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)


def choice_trajectories(n_episodes: int = 200, seed: int = 0) -> Trajectories:
    """Episodes of :class:`ChoiceEnv` whose share of ones is uniform over the episodes."""
    rng = np.random.default_rng(seed)
    n_steps = n_episodes * CHOICE_LENGTH
    share = np.repeat(rng.uniform(size=n_episodes), CHOICE_LENGTH)
    actions = (rng.uniform(size=n_steps) < share).astype(np.int64)
    return Trajectories(
        observations=rng.uniform(-1.0, 1.0, (n_steps, 2)).astype(np.float32),
        actions=actions,
        rewards=actions.astype(np.float32),
        terminated=np.ones(n_episodes, dtype=bool),
        truncated=np.zeros(n_episodes, dtype=bool),
        episode_offsets=np.arange(0, n_steps + 1, CHOICE_LENGTH),
        observation_space=spaces.Box(-1.0, 1.0, (2,), np.float32),
        action_space=spaces.Discrete(2),
        source="toy choices",
    )


def random_trajectories(
    lengths: tuple[int, ...] = (7, 3, 12),
    observation_shape: tuple[int, ...] = (3,),
    n_actions: int | None = None,
    seed: int = 0,
    action_size: int = 2,
) -> Trajectories:
    """Noise in the shape of a dataset; actions are continuous unless ``n_actions`` is given."""
    rng = np.random.default_rng(seed)
    n_steps = sum(lengths)
    observations: np.ndarray
    if len(observation_shape) == 3:  # images
        observations = rng.integers(0, 256, (n_steps, *observation_shape), dtype=np.uint8)
        observation_space = spaces.Box(0, 255, observation_shape, np.uint8)
    else:
        observations = rng.normal(size=(n_steps, *observation_shape)).astype(np.float32)
        observation_space = spaces.Box(-np.inf, np.inf, observation_shape, np.float32)
    action_space: spaces.Space[Any]
    actions: np.ndarray
    if n_actions is None:
        actions = rng.uniform(-1.0, 1.0, (n_steps, action_size)).astype(np.float32)
        action_space = spaces.Box(-1.0, 1.0, (action_size,), np.float32)
    else:
        actions = rng.integers(0, n_actions, n_steps)
        action_space = spaces.Discrete(n_actions)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rng.normal(size=n_steps).astype(np.float32),
        terminated=np.ones(len(lengths), dtype=bool),
        truncated=np.zeros(len(lengths), dtype=bool),
        episode_offsets=np.cumsum([0, *lengths]),
        observation_space=observation_space,
        action_space=action_space,
        source="toy noise",
    )
