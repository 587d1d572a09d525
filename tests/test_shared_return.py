"""The example that joins a PettingZoo parallel environment into one agent's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from tests.scripts import load_script

PATH = Path(__file__).parents[1] / "examples" / "pettingzoo_shared_return.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script(PATH)


class Parallel:
    """PettingZoo's parallel protocol: two agents with 2 and 3 actions, paid their actions' sum."""

    possible_agents = ("left", "right")

    def __init__(self, kind: str = "discrete", greed: float = 0.0, leaves: bool = False) -> None:
        self.kind, self.greed, self.leaves = kind, greed, leaves

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-9.0, 9.0, (1 if agent == "left" else 2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        n = 1 + (agent == "right")
        if self.kind == "discrete":
            return spaces.Discrete(n + 1, start=n - 1)
        if self.kind == "box":
            return spaces.Box(-1.0, 1.0, (n,), np.float32)
        return spaces.MultiBinary(n)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._show(), {"left": {}, "right": {}}

    def step(self, actions: dict[str, Any]) -> Any:
        assert all(self.action_space(agent).contains(actions[agent]) for agent in actions)
        self.t += 1
        self.actions = actions
        pay = float(sum(np.sum(action) for action in actions.values()))
        ends = {"left": self.t == 4, "right": self.t == 4 and not self.leaves}
        rewards = {"left": pay, "right": pay + self.greed}
        return self._show(), rewards, dict.fromkeys(ends, False), ends, {"left": {}, "right": {}}

    def _show(self) -> dict[str, Any]:
        return {"right": np.full(2, self.t, np.float32), "left": np.full(1, -self.t, np.float32)}


def test_discrete_actions_are_digits(example: ModuleType) -> None:
    env = example.SharedReturnEnv(Parallel())
    assert env.action_space == spaces.Discrete(6)
    assert env.reset(seed=0)[0].tolist() == [0.0, 0.0, 0.0]
    splits = [env.split(action) for action in range(6)]
    assert splits == [{"left": left, "right": right} for left in (0, 1) for right in (1, 2, 3)]
    assert [env.join(split) for split in splits] == list(range(6))
    shown, reward, terminated, truncated, _ = env.step(5)
    assert (shown.tolist(), reward, terminated, truncated) == ([-1.0, 1.0, 1.0], 4.0, False, False)
    ends = [env.step(0)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_what_is_not_shared_is_refused(example: ModuleType) -> None:
    env = example.SharedReturnEnv(Parallel(greed=1.0))
    env.reset()
    with pytest.raises(ValueError, match="no return is shared"):
        env.step(0)
    env = example.SharedReturnEnv(Parallel(leaves=True))
    env.reset()
    for _ in range(3):
        env.step(0)
    with pytest.raises(ValueError, match="left the episode"):
        env.step(0)
    with pytest.raises(TypeError, match="MultiBinary"):
        example.SharedReturnEnv(Parallel("binary"))


@pytest.mark.filterwarnings("ignore")  # of MPE and what it imports
def test_the_scripted_player_covers_landmarks(example: ModuleType) -> None:
    pytest.importorskip("mpe2", reason="MPE, which the example plays, is not installed")
    data = example.record(20, seed=0)
    assert data.observations.shape == (20 * 25, 24)
    assert data.action_space == spaces.Discrete(25)
    assert data.returns.max() > data.returns.mean() + 5.0
