"""What several commands take: where a dataset is, and the options of its source."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["SOURCES_HELP", "OptionOption", "parse_options"]

SOURCES_HELP = (
    "A D4RL name or HDF5 file, a Decision Transformer pickle, a Minari id or folder, a DQN-replay "
    "folder, a store."
)

OptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of load_trajectories, such as top_fraction=0.1 or medium_expert=paper; "
        "repeat it for several.",
        show_default=False,
    ),
]


def parse_options(texts: list[str] | None) -> dict[str, Any]:
    """Read ``NAME=VALUE`` options: values are JSON, and text where they are no JSON.

    Raises:
        typer.BadParameter: A text has no ``=`` or no name, or a name is given twice.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is no NAME=VALUE", param_hint="--option")
        if name in options:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--option")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
