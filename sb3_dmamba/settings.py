"""``--set field=value``: any field of ``DecisionMambaConfig``, read by its type."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError

__all__ = ["parse_settings"]

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read ``field=value`` texts into overrides for ``DecisionMambaConfig``.

    Args:
        settings: One text a field; ``none`` is None, two numbers are given as ``0.9,0.95``.

    Returns:
        Field names to values of the fields' types; ranges are the config's to check.

    Raises:
        ConfigError: A text is not ``field=value``, names no field (suggests the nearest) or one
            that another text names too, or its value does not read as the field's type.
    """
    hints = get_type_hints(DecisionMambaConfig)
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(
                f"--set {setting!r}: write field=value, such as hidden_size=256",
                setting="--set",
                value=setting,
            )
        if name not in hints:
            DecisionMambaConfig().replace(**{name: text})  # raises, with the nearest name
        if name in given:
            raise ConfigError(
                f"--set {name} is given twice ({given[name]} and {text.strip()}): keep one of them",
                setting=name,
                value=text.strip(),
            )
        given[name] = text.strip()
        try:
            values[name] = _parse(text.strip(), hints[name])
        except ValueError:
            raise ConfigError(
                f"--set {setting!r}: give {_describe(hints[name])}",
                setting=name,
                value=text.strip(),
            ) from None
    return values


def _parse(text: str, hint: Any) -> Any:
    if get_origin(hint) is types.UnionType:  # every union here is "int | None"
        return None if text.lower() == "none" else _parse(text, get_args(hint)[0])
    if get_origin(hint) is tuple:
        first, second = text.strip("()[] ").split(",")
        return float(first), float(second)
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if hint is int:
        return int(text.replace("_", ""))
    if hint is float:
        return float(text)
    return text


def _describe(hint: Any) -> str:
    if get_origin(hint) is types.UnionType:
        return f"{_describe(get_args(hint)[0])}, or none"
    if get_origin(hint) is tuple:
        return "two numbers, such as 0.9,0.95"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(hint, "a text")
