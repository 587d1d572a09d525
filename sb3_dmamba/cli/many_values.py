"""Options that take several values at once."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

__all__ = ["ManyValuesCommand"]

_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")


class ManyValuesCommand(TyperCommand):
    """Lets an option that may be repeated take several values at once: ``--seeds 0 1 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value, then parse."""
        many = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        spread: list[str] = []
        option: str | None = None  # whose values come next
        for argument in args:
            is_value = not argument.startswith("-") or _NUMBER.fullmatch(argument) is not None
            if not is_value:
                option = argument if argument in many else None
                spread.append(argument)
            elif option is not None and spread[-1] != option:
                spread += [option, argument]
            else:
                spread.append(argument)
        rest: list[str] = super().parse_args(ctx, spread)
        return rest
