"""Games whose episodes end with a life: told from ends of games, counted as whole games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

__all__ = ["LifeStatistics", "begin_new_game", "has_lost_life"]


def has_lost_life(info: Mapping[str, Any]) -> bool | None:
    """Say whether the end of an episode cost a life and not the game; None where nothing says.

    Args:
        info: What the last step returned, below ``EpisodicLifeEnv`` or from our Atari games.
            Other wrappers' resets may have stepped since, so that its ``was_real_done`` is stale.
    """
    if "is_lost_life" in info:
        return bool(info["is_lost_life"])
    if "lives" in info:
        return bool(info["lives"] > 0) and not info.get("TimeLimit.truncated", False)
    return None


def begin_new_game(env: gym.Env[Any, Any]) -> None:
    """Make the next reset start a game, even where ``EpisodicLifeEnv`` is in the middle of one."""
    while True:
        if "was_real_done" in vars(env):
            env.was_real_done = True  # type: ignore[attr-defined]
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


class LifeStatistics:
    """Joins what a monitor noted of each life into one entry of the game.

    A monitor outside of what ends episodes with lives (``Monitor``, ``VecMonitor``,
    ``RecordEpisodeStatistics``) reports every life in ``info["episode"]`` as an episode of its
    own. One inside reports whole games, of which nothing needs to be joined.
    """

    def __init__(self) -> None:
        self._noted: dict[int, dict[str, Any]] = {}

    def forget(self, row: int) -> None:
        """Begin a game in environment ``row``."""
        self._noted.pop(row, None)

    def after_life(self, row: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """Note a life's entry, and return ``info`` without it."""
        info = dict(info)
        entry = info.pop("episode", None)
        if entry is not None:
            self._noted[row] = self._join(row, entry)
        return info

    def after_game(self, row: int, info: dict[str, Any]) -> dict[str, Any]:
        """Return ``info`` with the game's entry where it had the last life's."""
        if row not in self._noted:
            return info
        if "episode" in info:
            info = {**info, "episode": self._join(row, info["episode"])}
        self.forget(row)
        return info

    def _join(self, row: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        before = self._noted.get(row, {"r": 0.0, "l": 0})
        return {**entry, "r": before["r"] + entry["r"], "l": before["l"] + entry["l"]}
