"""Tasks whose answer was seen long ago: one Gymnasium id, and what a name of one means.

Light: Gymnasium is imported when an environment is made.
"""

from __future__ import annotations

import re
import sys

__all__ = [
    "TMAZE_ID",
    "TMAZE_LENGTHS",
    "parse_tmaze_name",
    "register",
    "register_if_gymnasium_is_loaded",
]

_REGISTERED_ID = "sb3_dmamba/TMaze-v0"
_NAME = re.compile(r"tmaze-([1-9]\d{0,4})")

TMAZE_ID = f"sb3_dmamba:{_REGISTERED_ID}"
"""What ``gymnasium.make`` takes, with ``length=50``; importing the package registers it."""

TMAZE_LENGTHS = (50,)
"""Corridors of the tasks that are listed; every other length has a name too."""


def parse_tmaze_name(name: str) -> int | None:
    """Return the length of the corridor in a name such as ``"tmaze-50"``; None in other names."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match.group(1))


def register() -> None:
    """Make the id known to Gymnasium, once."""
    from gymnasium.envs.registration import register as register_id
    from gymnasium.envs.registration import registry

    if _REGISTERED_ID not in registry:
        register_id(_REGISTERED_ID, entry_point="sb3_dmamba.memory_tasks.tmaze:TMaze")


def register_if_gymnasium_is_loaded() -> None:
    """Register without importing Gymnasium, for the import of the package."""
    if "gymnasium.envs.registration" in sys.modules:
        register()
