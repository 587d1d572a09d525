"""Checks that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_dmamba.errors import ConfigError

__all__ = ["check_count"]


def check_count(name: str, value: Any, minimum: int) -> int:
    """Return a count as an int.

    Raises:
        ConfigError: It is no integer, or too small; names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ConfigError(f"{name}={value!r}: give an integer of at least {minimum}")
    return int(value)
