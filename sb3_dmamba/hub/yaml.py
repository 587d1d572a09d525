"""The little YAML that a model card's front matter needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["to_yaml"]


def to_yaml(value: Any, indent: int = 0) -> str:
    """Write mappings, lists, texts, numbers, booleans and None as block-style YAML.

    Texts are in double quotes with JSON's escapes, which are YAML's too.

    Args:
        value: What to write; keys are plain words.
        indent: Spaces before each line.

    Raises:
        TypeError: A value is of another kind.
    """
    margin = " " * indent
    if isinstance(value, Mapping):
        lines = [f"{margin}{key}:{_after_key(each, indent)}" for key, each in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        # "- " takes the place of the first two spaces of an item's first line
        lines = [f"{margin}- {to_yaml(each, indent + 2).lstrip()}" for each in value]
    else:
        lines = [margin + _to_scalar(value)]
    return "\n".join(lines)


def _to_scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # JSON's 1e-07 is a text to YAML, whose numbers have a point before the exponent
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _after_key(value: Any, indent: int) -> str:
    is_block = isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)
    if is_block and not value:
        return " {}" if isinstance(value, Mapping) else " []"
    return f"\n{to_yaml(value, indent + 2)}" if is_block else f" {to_yaml(value)}"
