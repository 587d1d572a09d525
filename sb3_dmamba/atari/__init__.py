"""Atari games as DQN-replay data shows them: one Gymnasium id, and what a name of a game means.

Light: the emulator, OpenCV and Gymnasium are imported when a game is made.
"""

from __future__ import annotations

import sys

from sb3_dmamba.atari.games import MINIMAL_ACTIONS

__all__ = [
    "ATARI_ID",
    "MINIMAL_ACTIONS",
    "is_atari",
    "register",
    "register_if_gymnasium_is_loaded",
]

_REGISTERED_ID = "sb3_dmamba/Atari-v0"

ATARI_ID = f"sb3_dmamba:{_REGISTERED_ID}"
"""What ``gymnasium.make`` takes, with ``game="Breakout"`` and the rest of
:class:`~sb3_dmamba.atari.game.AtariGame`'s arguments; importing the package registers it."""


def is_atari(env_id: str | None) -> bool:
    """Return whether an environment's id is :data:`ATARI_ID`, with or without the package."""
    return env_id in (ATARI_ID, _REGISTERED_ID)


def register() -> None:
    """Make the id known to Gymnasium, once."""
    from gymnasium.envs.registration import register as register_id
    from gymnasium.envs.registration import registry

    if _REGISTERED_ID not in registry:
        register_id(_REGISTERED_ID, entry_point="sb3_dmamba.atari.game:AtariGame")


def register_if_gymnasium_is_loaded() -> None:
    """Register without importing Gymnasium, for the import of the package.

    ``gymnasium.make("sb3_dmamba:...")`` imports the package and then expects to find the id.
    """
    if "gymnasium.envs.registration" in sys.modules:
        register()
