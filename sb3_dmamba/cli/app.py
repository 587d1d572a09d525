"""The ``dmamba`` application: commands, help and version."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sb3_dmamba.cli.data import data_app
from sb3_dmamba.cli.demo import demo
from sb3_dmamba.cli.evaluate import card, evaluate, export
from sb3_dmamba.cli.experiment import bench, experiment
from sb3_dmamba.cli.info import doctor, tasks
from sb3_dmamba.cli.output import HELP_OPTIONS
from sb3_dmamba.cli.train import train
from sb3_dmamba.machine import set_thread_variables

_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")


class ManyValuesCommand(TyperCommand):
    """A command whose repeated options take several values at once: ``--seeds 0 1 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value, then parse."""
        repeated = [each for each in self.params if getattr(each, "multiple", False)]
        names = {name for parameter in repeated for name in parameter.opts}
        spread: list[str] = []
        option: str | None = None  # the one whose values come next
        for argument in args:
            if argument.startswith("-") and not _NUMBER.fullmatch(argument):
                option = argument if argument in names else None
            elif option is not None and spread[-1] != option:
                spread.append(option)
            spread.append(argument)
        rest: list[str] = super().parse_args(ctx, spread)
        return rest


_EXAMPLES = """[bold]Examples[/bold]

dmamba demo   [dim]train on the bundled HalfCheetah data and see what it reaches[/dim]

dmamba train hopper/medium-v0 --updates 10000 --output runs/hopper

dmamba evaluate runs/hopper/model.zip --target 2000 --target 3600 --episodes 50
"""

app = typer.Typer(
    name="dmamba",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sb3_dmamba import __version__

        typer.echo(f"sb3_dmamba {__version__}")
        raise typer.Exit


@app.callback(epilog=_EXAMPLES)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Decision Mamba: learn from recorded data, then ask for the return you want."""


# command: its examples
_COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    demo: ("dmamba demo", "dmamba demo --quick", "dmamba demo --updates 500 --episodes 10 --json"),
    train: (
        "dmamba train hopper/medium-v0 --updates 10000 --checkpoint-every 1000",
        "dmamba train breakout --dataset dqn-replay/Breakout --option n_steps=500000",
        "dmamba train halfcheetah-bundled --set mixer=attention --set hidden_size=256",
        "dmamba train --resume runs/hopper-medium-v0/checkpoints/model_3000_steps.zip",
    ),
    evaluate: (
        "dmamba evaluate runs/demo/model.zip",
        "dmamba evaluate runs/demo/model.zip --target 3000 --memory stream --plot hopper.png",
    ),
    export: (
        "dmamba export runs/demo/model.zip policy.onnx",
        "dmamba export runs/demo/model.zip policy.pt2 --memory stream",
    ),
    card: (
        "dmamba card runs/demo/model.zip hub --episodes 50",
        "dmamba card runs/demo/model.zip hub --report report.json --repo me/hopper --video",
    ),
    experiment: (
        "dmamba experiment   [dim]list them[/dim]",
        "dmamba experiment mixers --data hopper pendulum --seeds 0 1 2 --jobs 2",
        "dmamba experiment d4rl --data hopper-medium-v2=hopper_medium-v2.hdf5 --slurm d4rl.sh",
    ),
    bench: ("dmamba bench --quick", "dmamba bench update scaling --threads 2 --output runs/bench"),
    doctor: (
        "dmamba doctor",
        "dmamba doctor --seconds 0 --json   [dim]for a report of a bug[/dim]",
    ),
    tasks: ("dmamba tasks", "dmamba tasks --json"),
}
for _command, _examples in _COMMANDS.items():
    app.command(
        cls=ManyValuesCommand if _command is experiment else TyperCommand,
        epilog="\n\n".join(["[bold]Examples[/bold]", *_examples]),
    )(_command)
app.add_typer(data_app)


def main() -> None:
    """Run the command line, in a process of its own."""
    set_thread_variables(os.environ)  # before torch is loaded
    app()
