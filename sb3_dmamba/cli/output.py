"""What a command prints and where: tables or one JSON document, clean errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.errors import ConfigError, DecisionMambaError, MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console
    from stable_baselines3.common.logger import Logger

    from sb3_dmamba.algorithm import DecisionMamba

__all__ = [
    "DebugOption",
    "JsonOption",
    "Output",
    "check_device",
    "command_output",
    "import_algorithm",
    "import_quietly",
    "make_csv_logger",
    "print_files",
]

EXIT_ERROR = 1  # 2 is a usage error, Typer's own
EXIT_INTERRUPTED = 130

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout, everything else on stderr.",
        rich_help_panel="Output",
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="DMAMBA_DEBUG",
        help="Show the traceback of an error.",
        rich_help_panel="Output",
    ),
]


@dataclass
class Output:
    """Where a command prints.

    Args:
        console: For people: stdout, or stderr where stdout is kept for JSON.
        stdout: The real standard output.
        as_json: Whether JSON was asked for.
    """

    console: Console
    stdout: IO[str]
    as_json: bool

    def emit(self, document: Any) -> None:
        """Print the JSON document, where JSON was asked for."""
        if self.as_json:
            json.dump(document, self.stdout, allow_nan=False)
            self.stdout.write("\n")


@contextlib.contextmanager
def command_output(as_json: bool, debug: bool) -> Iterator[Output]:
    """Run a command's body: keep stdout clean for JSON and turn errors into exit codes.

    Args:
        as_json: Keep stdout for :meth:`Output.emit`; whatever else is printed goes to stderr.
        debug: Let an error through with its traceback.

    Raises:
        typer.Exit: With 1 after an error of this package or of the file system, which is printed
            on stderr in one line; with 130 after Ctrl-C.
    """
    from rich.console import Console

    stdout = sys.stdout
    redirect = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with redirect:
            yield Output(Console(stderr=as_json), stdout, as_json)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (DecisionMambaError, OSError) as error:
        if debug:
            raise
        label = typer.style(type(error).__name__, fg="red", bold=True)
        typer.echo(f"{label}: {error}", err=True)
        raise typer.Exit(EXIT_ERROR) from None


def check_device(name: str) -> str:
    """Return the name of a device that works here; Stable-Baselines3 would fall back silently.

    Raises:
        ConfigError: There is no such device, here or at all.
    """
    import torch

    if name == "auto":
        return name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        if reason.startswith("Expected one of"):  # every kind that torch has a name for
            reason = "torch knows no such kind: cpu, cuda and mps are some"
        raise ConfigError(f"device {name!r} does not work here ({reason}): try auto") from error
    return name


def import_quietly(name: str) -> ModuleType:
    """Import a module of ours, without the notice that the retired gym package prints.

    Stable-Baselines3 imports gym where it finds it, and d3rlpy installs it.
    """
    with contextlib.redirect_stderr(io.StringIO()) as captured:
        module = import_module(name)
    if not captured.getvalue().startswith("Gym has been unmaintained"):
        sys.stderr.write(captured.getvalue())
    return module


def import_algorithm() -> type[DecisionMamba]:
    """Import the algorithm, quietly."""
    algorithm: type[DecisionMamba] = import_quietly("sb3_dmamba.algorithm").DecisionMamba
    return algorithm


def make_csv_logger(folder: Path, first_update: int = 0, tensorboard: Path | None = None) -> Logger:
    """Return a logger that writes ``progress.csv``; a resumed run's leaves the earlier one alone.

    Args:
        folder: Where to write; made if it is not there.
        first_update: Updates the model has had already; names the file of a resumed run.
        tensorboard: Where to log to TensorBoard besides, if anywhere.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """
    from stable_baselines3.common.logger import Logger, make_output_format

    folder.mkdir(parents=True, exist_ok=True)
    suffix = f"-from-{first_update}" if first_update else ""
    formats = [make_output_format("csv", str(folder), suffix)]
    if tensorboard is not None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "log to it", "tensorboard") from error
        formats.append(make_output_format("tensorboard", str(tensorboard)))
    return Logger(str(folder), formats)


def print_files(output: Output, paths: Iterable[Path]) -> None:
    """Say which files were written, one a line that can be copied."""
    for path in paths:
        output.console.print(f"wrote {path}", soft_wrap=True, highlight=False)
