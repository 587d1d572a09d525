"""Validation of numbers, flags and names given by users."""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from sb3_dmamba.errors import ConfigError, DecisionMambaError


def check_integer(
    name: str,
    value: Any,
    minimum: int,
    maximum: float = math.inf,
    *,
    error: type[DecisionMambaError] = ConfigError,
) -> int:
    """Validate an integer and convert it to Python's int."""
    is_integer = not isinstance(value, bool) and isinstance(value, Integral)
    if is_integer and minimum <= int(value) <= maximum:
        return int(value)
    limit = f" and at most {maximum}" if is_integer and int(value) > maximum else ""
    message = f"{name}={value!r}: give an integer of at least {minimum}{limit}"
    raise error(message, setting=name, value=value)


def check_optional_integer(
    name: str, value: Any, minimum: int, *, error: type[DecisionMambaError] = ConfigError
) -> int | None:
    """Return None for None, otherwise the same as :func:`check_integer`."""
    return None if value is None else check_integer(name, value, minimum, error=error)


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    words: str = "",
    *,
    error: type[DecisionMambaError] = ConfigError,
) -> float:
    """Validate a finite real number and convert it to Python's float."""
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with contextlib.suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        message = f"{name}={value!r}: give a finite number {words}".rstrip()
        raise error(message, setting=name, value=value)
    return number


def check_flag(name: str, value: Any, *, error: type[DecisionMambaError] = ConfigError) -> bool:
    """Validate a flag and convert it to Python's bool."""
    numpy = sys.modules.get("numpy")  # not imported: the command line starts without it
    if isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_)):
        return bool(value)
    raise error(
        f"{name}={value!r}: give True or False", setting=name, value=value, choices=(True, False)
    )


def near_names(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names most similar to a name, the most similar first."""
    by_lower: dict[str, list[str]] = {}
    for each in dict.fromkeys(known):
        by_lower.setdefault(each.lower(), []).append(each)
    close = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=cutoff)
    return [each for lower in close for each in by_lower[lower]][:n]


def did_you_mean(near: Sequence[str]) -> str:
    """Return the hint of an error message, such as ``"did you mean 'x'?"``; "" without names."""
    return f"did you mean {', '.join(map(repr, near))}?" if near else ""
