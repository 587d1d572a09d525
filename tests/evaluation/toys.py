"""Environments and a policy whose every number can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class SeededEnv(gym.Env[Any, Any]):
    """Shows (seed, step); lasts 2 + seed % 4 steps; pays seed + step + the action's sum.

    Odd seeds are truncated, even ones terminated. An unseeded reset counts seeds on by 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, kind: str = "box", actions: str = "box") -> None:
        self.kind = kind
        part = spaces.Box(-1e6, 1e6, (1,), np.float64)
        self.observation_space = {
            "box": spaces.Box(-1e6, 1e6, (2,), np.float64),
            "dict": spaces.Dict(a=part, b=spaces.Discrete(40)),
            "image": spaces.Box(0, 255, (2, 3), np.uint8),
        }[kind]
        self.action_space: spaces.Space[Any] = (
            spaces.Discrete(5) if actions == "discrete" else spaces.Box(-1.0, 1.0, (2,), np.float32)
        )
        self.seed_now = -1
        self.is_closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed_now = self.seed_now + 1 if seed is None else seed
        self.t = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.t >= episode_length(self.seed_now):
            raise RuntimeError("stepped after the end")
        if not self.action_space.contains(action):
            raise RuntimeError(f"{action!r} is not in {self.action_space}")
        reward = float(self.seed_now + self.t + np.sum(action, dtype=np.float64))
        self.t += 1
        over = self.t == episode_length(self.seed_now)
        odd = bool(self.seed_now % 2)
        return self._show(), reward, over and not odd, over and odd, {}

    def render(self) -> Any:
        return np.full((4, 4, 3), self.t, np.uint8)

    def close(self) -> None:
        self.is_closed = True

    def _show(self) -> Any:
        if self.kind == "dict":
            return {"a": np.array([float(self.seed_now)]), "b": self.t}
        if self.kind == "image":
            image = np.zeros((2, 3), np.uint8)
            image[0, 0], image[0, 1] = self.seed_now, self.t
            return image
        return np.array([self.seed_now, self.t], dtype=np.float64)


def episode_length(seed: int) -> int:
    return 2 + seed % 4


@dataclass(frozen=True)
class ToyState:
    """Remembers of each row its seed (NaN before the first step), steps and last action sum."""

    seed: np.ndarray
    steps: np.ndarray
    last: np.ndarray

    def take(self, rows: Any) -> ToyState:
        return ToyState(self.seed[rows], self.steps[rows], self.last[rows])

    def reset(self, mask: Any) -> ToyState:
        mask = np.asarray(mask)
        return ToyState(
            np.where(mask, np.nan, self.seed),
            np.where(mask, 0, self.steps),
            np.where(mask, 0.0, self.last),
        )


class ToyPolicy:
    """Acts by :func:`toy_action`; fails where its memory is not that of the row's episode."""

    def __init__(self, env: SeededEnv, memory: str = "window") -> None:
        from sb3_dmamba.spaces import flat_space

        self.observation_space = flat_space(env.observation_space)
        self.action_space = env.action_space
        self.kind = env.kind
        self.memory = memory
        self.memories_asked: list[str] = []
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []

    def initial_state(self, n: int, memory: str | None = None) -> ToyState:
        self.memories_asked.append(str(memory))
        return ToyState(np.full(n, np.nan), np.zeros(n, dtype=int), np.zeros(n))

    def act(
        self,
        observations: np.ndarray,
        returns_to_go: np.ndarray,
        state: ToyState,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, ToyState]:
        n = len(state.seed)
        assert observations.shape == (n, *self.observation_space.shape)
        assert observations.dtype == (np.uint8 if self.kind == "image" else np.float32)
        assert returns_to_go.shape == (n,)
        assert returns_to_go.dtype == np.float32
        flat = observations.reshape(n, -1).astype(np.float64)
        seed = flat[:, 0]
        t = flat[:, 1:].argmax(axis=1) if self.kind == "dict" else flat[:, 1]
        assert np.all(np.isnan(state.seed) == (t == 0)), "a row's memory has the wrong age"
        assert np.all((t == 0) | (state.seed == seed)), "a row has another episode's memory"
        assert np.all(state.steps == t)
        self.batches.append((observations.copy(), returns_to_go.copy()))
        sums = np.array(
            [toy_action(r, last) for r, last in zip(returns_to_go, state.last, strict=True)]
        )
        if isinstance(self.action_space, spaces.Discrete):
            actions = sums.round().astype(np.int64) % 5
            sums = actions.astype(float)
        else:
            actions = np.stack([sums, np.zeros(n)], axis=1).astype(np.float32)
            sums = actions[:, 0].astype(np.float64)
        return actions, replace(state, seed=seed, steps=state.steps + 1, last=sums)


def toy_action(return_to_go: float, last: float) -> float:
    """Quarters in [-1, 1], which sum exactly: depends on the return-to-go and on the past."""
    return float(np.floor(float(return_to_go) + 3.0 * last) % 9 - 4.0) / 4.0


def expected_episode(
    target: float, seed: int, discrete: bool = False, clip: bool = False
) -> tuple[float, list[float]]:
    """Work out one episode of :class:`ToyPolicy`: its return and the returns-to-go it saw."""
    to_go, last, total, seen = target, 0.0, 0.0, []
    for t in range(episode_length(seed)):
        seen.append(to_go)
        last = toy_action(to_go, last)
        if discrete:
            last = float(int(np.round(last)) % 5)
        reward = seed + t + last
        to_go -= max(-1.0, min(1.0, reward)) if clip else reward
        total += reward
    return total, seen
