"""The ``dmamba`` application: commands, help and version."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sb3_dmamba.cli.data import data_app
from sb3_dmamba.cli.demo import demo
from sb3_dmamba.cli.evaluate import card, evaluate, export
from sb3_dmamba.cli.experiment import bench, experiment
from sb3_dmamba.cli.info import doctor, tasks
from sb3_dmamba.cli.train import train

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


_EXAMPLES = """[bold]Examples[/bold]

dmamba demo   [dim]train on the bundled Hopper data and see what it reaches[/dim]

dmamba train hopper/medium-v0 --updates 10000 --output runs/hopper

dmamba evaluate runs/hopper/model.zip --target 2000 --target 3600 --episodes 50
"""

app = typer.Typer(
    name="dmamba",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command(
    epilog="[bold]Examples[/bold]\n\ndmamba demo\n\ndmamba demo --quick\n\n"
    "dmamba demo --updates 500 --episodes 10 --json"
)(demo)
app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba train hopper/medium-v0 --updates 10000 --checkpoint-every 1000\n\n"
    "dmamba train breakout --dataset dqn-replay/Breakout --option n_steps=500000\n\n"
    "dmamba train hopper-bundled --set mixer=attention --set hidden_size=256\n\n"
    "dmamba train --resume runs/hopper-medium-v0/checkpoints/model_3000_steps.zip"
)(train)
app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba evaluate runs/demo/model.zip\n\n"
    "dmamba evaluate runs/demo/model.zip --target 3000 --memory stream --plot hopper.png"
)(evaluate)
app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba export runs/demo/model.zip policy.onnx\n\n"
    "dmamba export runs/demo/model.zip policy.pt2 --memory stream"
)(export)
app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba card runs/demo/model.zip hub --episodes 50\n\n"
    "dmamba card runs/demo/model.zip hub --report report.json --repo me/hopper --video"
)(card)
app.add_typer(data_app)
app.command(
    cls=ManyValuesCommand,
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba experiment   [dim]list them[/dim]\n\n"
    "dmamba experiment mixers --data hopper pendulum --seeds 0 1 2 --jobs 2\n\n"
    "dmamba experiment d4rl --data hopper-medium-v2=hopper_medium-v2.hdf5 --slurm d4rl.sh",
)(experiment)
app.command(
    epilog="[bold]Examples[/bold]\n\ndmamba bench --quick\n\n"
    "dmamba bench update scaling --threads 2 --output runs/bench"
)(bench)
app.command(
    epilog="[bold]Examples[/bold]\n\ndmamba doctor\n\n"
    "dmamba doctor --seconds 0 --json   [dim]for a report of a bug[/dim]"
)(doctor)
app.command(epilog="[bold]Examples[/bold]\n\ndmamba tasks\n\ndmamba tasks --json")(tasks)


def main() -> None:
    """Run the command line."""
    app()
