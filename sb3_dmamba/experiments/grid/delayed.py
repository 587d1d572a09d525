"""An environment that pays at the end."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

__all__ = ["DelayedRewards"]


class DelayedRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Pays an episode's return with its last step, and nothing before.

    The return-to-go then stays what was asked for while the agent acts, as it is in data that
    ``with_delayed_rewards`` made; what an episode earns in all is unchanged.

    Args:
        env: The environment.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 5, on sparse rewards.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._owed = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step; the reward is held back until the episode ends."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._owed += float(reward)
        paid = self._owed if terminated or truncated else 0.0
        return observation, paid, terminated, truncated, info
