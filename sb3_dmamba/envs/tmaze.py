"""A T-maze: the cue shown at the start decides the reward at the end."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.errors import ConfigError

FORWARD, UP, DOWN, BACK = range(4)
_STEPS = {FORWARD: 1, BACK: -1}
_RIGHT_ARM, _WASTED_STEP = 1.0, -0.01  # rewards
_SPARE_STEPS = 10


class TMaze(gym.Env[ndarray, np.int64]):
    """Walk along a corridor to a junction and turn to the side that was shown at the start.

    The first observation shows the side, and no other does; along the corridor all look alike. So
    an agent that does not remember its first step chooses right half the time.

    * Observations, ``Box(0, 1, (4,))``: the cue for up, the cue for down, whether the agent is in
      the corridor, whether it is at the junction.
    * Actions, ``Discrete(4)``: 0 forward, 1 up, 2 down, 3 back.
    * Rewards: 1 for the arm that was shown, 0 for the other; either ends the episode. Every step
      that leads nowhere nearer to the junction costs 0.01, a step into a wall included.
    * An episode is truncated after ``2 * length + 10`` steps. The last ``info`` says whether the
      agent was right, as ``"is_success"``.

    Args:
        length: Steps from the start to the junction.
        render_mode: None or ``"ansi"``.

    Raises:
        ConfigError: ``length`` or ``render_mode`` is none of these.

    Source: Bakker 2002, "Reinforcement learning with long short-term memory" (NeurIPS 14), with
    rewards of other sizes.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's)

    def __init__(self, length: int = 50, render_mode: str | None = None) -> None:
        modes = (None, *self.metadata["render_modes"])
        if render_mode not in modes:
            problem = f"render_mode={render_mode!r}: give None or 'ansi'"
            raise ConfigError(problem, setting="render_mode", value=render_mode, choices=modes)
        self.length = check_integer("length", length, 1)
        self.max_steps = 2 * self.length + _SPARE_STEPS
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._position = self._n_steps = 0
        self._goal = UP

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[ndarray, "4"], dict[str, Any]]:
        """Start an episode; the side is drawn anew."""
        super().reset(seed=seed)
        self._goal = UP if self.np_random.integers(2) else DOWN
        self._position = self._n_steps = 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[Float32[ndarray, "4"], SupportsFloat, bool, bool, dict[str, Any]]:
        """Move, or turn into an arm."""
        self._n_steps += 1
        if self._position == self.length and action in (UP, DOWN):
            is_right = bool(action == self._goal)
            reward = _RIGHT_ARM if is_right else 0.0
            return self._observe(), reward, True, False, {"is_success": is_right}
        before = self._position
        position = before + _STEPS.get(int(action), 0)
        self._position = min(max(position, 0), self.length)
        reward = 0.0 if self._position > before else _WASTED_STEP
        truncated = self._n_steps >= self.max_steps
        info = {"is_success": False} if truncated else {}
        return self._observe(), reward, False, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """Draw the maze as text, the agent as ``A`` and, at the first step, the cue."""
        if self.render_mode is None:
            return None
        corridor = ["."] * (self.length + 1)
        corridor[self._position] = "A"
        arms = {UP: "^", DOWN: "v"}
        cue = arms[self._goal] if self._n_steps == 0 else " "
        indent = " " * (self.length + 2)
        return f"{indent}{arms[UP]}\n{cue} {''.join(corridor)}\n{indent}{arms[DOWN]}\n"

    def _observe(self) -> Float32[ndarray, "4"]:
        is_first, at_junction = self._n_steps == 0, self._position == self.length
        cues = [is_first and self._goal == arm for arm in (UP, DOWN)]
        return np.array([*cues, not at_junction, at_junction], dtype=np.float32)
