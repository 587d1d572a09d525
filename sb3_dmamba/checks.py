"""Check and convert the numbers and names that users give."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from sb3_dmamba.errors import ConfigError, DecisionMambaError

__all__ = [
    "check_flag",
    "check_integer",
    "check_number",
    "check_optional_integer",
    "did_you_mean",
    "near_names",
]


def check_integer(
    name: str, value: Any, minimum: int, *, error: type[DecisionMambaError] = ConfigError
) -> int:
    """Return an integer as Python's, or refuse it.

    Args:
        name: What the user knows it as.
        value: What was given: an int or one of NumPy's integers. Truth values, floats such as 3.0,
            texts and arrays are none.
        minimum: The least that is allowed.
        error: What to raise.

    Raises:
        DecisionMambaError: ``error``: the value is not an integer, or too small; names it and the
            range.
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        integer = int(value)
        if integer >= minimum:
            return integer
    raise error(
        f"{name}={value!r}: give an integer of at least {minimum}", setting=name, value=value
    )


def check_optional_integer(
    name: str, value: Any, minimum: int, *, error: type[DecisionMambaError] = ConfigError
) -> int | None:
    """Return None for None, else as :func:`check_integer`, which says what is raised."""
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
    """Return a finite real number as Python's float, or refuse it.

    Args:
        name: What the user knows it as.
        value: What was given: an int, a float or one of NumPy's. Truth values, complex numbers,
            texts and arrays are none.
        low: The least that is allowed.
        high: The most that is allowed.
        words: The range in words, as the end of "give a finite number ...".
        error: What to raise.

    Raises:
        DecisionMambaError: ``error``: the value is not a number, not finite, or out of its range;
            names it and the range.
    """
    number = _as_float(value)
    if not math.isfinite(number) or not low <= number <= high:
        message = f"{name}={value!r}: give a finite number {words}".rstrip()
        raise error(message, setting=name, value=value)
    return number


def check_flag(name: str, value: Any, *, error: type[DecisionMambaError] = ConfigError) -> bool:
    """Return a truth value as Python's, or refuse it.

    Args:
        name: What the user knows it as.
        value: What was given: a bool or NumPy's. 0 and 1 are none.
        error: What to raise.

    Raises:
        DecisionMambaError: ``error``: the value is neither true nor false; names it.
    """
    numpy = sys.modules.get("numpy")  # not imported here, where the command line starts
    if isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_)):
        return bool(value)
    raise error(
        f"{name}={value!r}: give True or False", setting=name, value=value, choices=(True, False)
    )


def near_names(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that are spelled most like one, the nearest first.

    Args:
        name: What was given. Upper and lower case are the same.
        known: The names to choose from.
        n: The most to return.
        cutoff: The least similarity, from 0 to 1, as :func:`difflib.get_close_matches` has it.
    """
    by_lower: dict[str, list[str]] = {}
    for each in dict.fromkeys(known):
        by_lower.setdefault(each.lower(), []).append(each)
    close = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=cutoff)
    return [each for lower in close for each in by_lower[lower]][:n]


def did_you_mean(near: Sequence[str]) -> str:
    """Return the hint of an error message, such as ``"did you mean 'x'?"``; "" without names."""
    return f"did you mean {', '.join(map(repr, near))}?" if near else ""


def _as_float(value: Any) -> float:
    """Return a real number as a float; NaN for what is none, or too large for one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
