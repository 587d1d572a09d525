"""Warnings that point at the user's own line."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

__all__ = ["warn_caller"]

_PACKAGE = Path(__file__).parents[1]


def warn_caller(message: str) -> None:
    """Raise a UserWarning at the innermost frame that is outside this package."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and _PACKAGE in Path(frame.f_code.co_filename).parents:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
