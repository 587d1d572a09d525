"""Output, exit codes, shared options and their parsing, for every command."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError, DecisionMambaError, MissingDependencyError, SpaceError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from stable_baselines3.common.logger import Logger

    from sb3_dmamba.algorithm import DecisionMamba


EXIT_ERROR = 1  # 2 is a usage error, Typer's own
EXIT_INTERRUPTED = 130


@dataclass
class Output:
    """Console and standard output of a command."""

    console: Console  # for people: stdout, or stderr where stdout is kept for JSON
    stdout: IO[str]
    as_json: bool

    def line(self, text: str) -> None:
        """Print one unwrapped line, which can be copied."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def files(self, paths: Iterable[Path]) -> None:
        """Print the files that were written, one a line."""
        for path in paths:
            self.line(f"wrote {path}")

    def emit(self, document: Any) -> None:
        """Print the JSON document, where JSON was asked for."""
        if self.as_json:
            json.dump(document, self.stdout, allow_nan=False)
            self.stdout.write("\n")


@contextlib.contextmanager
def command_output(as_json: bool, debug: bool) -> Iterator[Output]:
    """Run a command's body: keep stdout clean for JSON and turn errors into exit codes."""
    from rich.console import Console

    stdout = sys.stdout
    redirect = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with redirect, _plain_warnings():
            yield Output(Console(stderr=as_json), stdout, as_json)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (DecisionMambaError, OSError, ImportError) as error:
        if debug:
            raise
        label = typer.style(type(error).__name__, fg="red", bold=True)
        typer.echo(f"{label}: {error}{_as_option(error)}{_remedy(error)}", err=True)
        raise typer.Exit(EXIT_ERROR) from None


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a UserWarning as one line on stderr: no line of the user's code has led to it."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message: Any, category: Any, *where: Any, **kwargs: Any) -> None:
            if issubclass(category, UserWarning) and sys.stderr is not None:
                typer.echo(f"{typer.style('Warning', fg='yellow')}: {message}", err=True)
            else:
                show(message, category, *where, **kwargs)

        warnings.showwarning = show_plainly
        yield


def _as_option(error: BaseException) -> str:
    """Return how to give on the command line the action space that an error advises."""
    if getattr(error, "setting", None) != "action_space" or not isinstance(error, SpaceError):
        return ""
    from gymnasium import spaces

    from sb3_dmamba.spaces import space_to_json

    boxes = [each for each in error.choices if isinstance(each, spaces.Box)]
    if "load_trajectories" not in str(error) or not boxes:
        return ""
    described = json.dumps(space_to_json(boxes[0]))
    return f"; on the command line, --option {shlex.quote(f'action_space={described}')}"


def _remedy(error: Exception) -> str:
    """Return the command that installs a missing package, where this one requires it."""
    name = str(getattr(error, "name", "") or "").partition(".")[0].replace("_", "-")
    try:
        required = metadata.requires("sb3-dmamba") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in required:
        needed = re.match(r"[\w.-]+", line)
        if needed and needed[0].lower() == name and isinstance(error, ModuleNotFoundError):
            return f": pip install {needed[0]}"
    return ""


def make_table(*columns: str, **settings: Any) -> Table:
    """Return a plain table with a title on its left; more columns and rows may be added."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", **settings)


def import_quietly(name: str) -> ModuleType:
    """Import a module of ours without the retired gym's notice on stderr.

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


def check_device(name: str) -> str:
    """Return the name of a device that works here; Stable-Baselines3 would fall back silently."""
    import torch

    if name == "auto":
        return name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        if reason.startswith("Expected one of"):  # every kind that torch has a name for
            reason = "torch knows no such kind: cpu, cuda and mps are some"
        message = f"device {name!r} does not work here ({reason}): try auto"
        raise ConfigError(message, setting="device", value=name) from error
    return name


def make_csv_logger(folder: Path, first_update: int = 0, tensorboard: Path | None = None) -> Logger:
    """Return a logger that writes ``progress.csv``; a resumed run writes a file of its own."""
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


# --- Shared options ------------------------------------------------------------------------------


class MemoryChoice(str, Enum):
    """``config.Memory`` for the command line."""

    window = "window"
    stream = "stream"


class WeightsChoice(str, Enum):
    """``weights`` of ``evaluate`` for the command line."""

    ema = "ema"
    last = "last"


def flag(
    help: str, *names: str, default: bool | str = True, panel: str | None = None, **settings: Any
) -> Any:
    """Return an option; ``default`` is what the help shows as such."""
    return typer.Option(*names, help=help, show_default=default, rich_help_panel=panel, **settings)


def value(
    help: str,
    metavar: str,
    default: bool | str = True,
    *,
    names: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """Return the option of a value, which the help calls ``metavar``."""
    return flag(help, *names, default=default, metavar=metavar, **settings)


def number(
    help: str, default: bool | str = True, *, least: int = 1, panel: str | None = None
) -> Any:
    """Return the option of a number N that is at least ``least``."""
    return value(help, "N", default, panel=panel, min=least)


SOURCES_HELP = (
    "A D4RL name, an HDF5, .npz or Parquet file, a Decision Transformer pickle, a Minari id or "
    "folder, a folder of a Hugging Face dataset or the DQN replay, a store."
)
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

JsonOption = Annotated[
    bool,
    flag("Print one JSON document on stdout, everything else on stderr.", "--json", panel="Output"),
]
DebugOption = Annotated[
    bool, flag("Show the traceback of an error.", "--debug", panel="Output", envvar="DMAMBA_DEBUG")
]
OverwriteOption = Annotated[
    bool, flag("Replace what an earlier run wrote there.", "--overwrite", panel="Output")
]
ModelArgument = Annotated[Path, typer.Argument(help="A model file that train or demo wrote.")]
EpisodesOption = Annotated[int, number("Episodes of each target.")]
MemoryOption = Annotated[
    MemoryChoice | None,
    flag("Re-encode the last steps (window) or carry the state (stream).", default="the model's"),
]
EnvOption = Annotated[str | None, value("Gymnasium id or task to act in.", "ID", "the model's")]
MaxStepsOption = Annotated[
    int | None, number("Cut episodes after so many steps.", "the environment's")
]
DeviceOption = Annotated[str, value("Where to compute: auto, cpu, cuda.", "NAME")]
BackendOption = Annotated[
    str | None,
    value(
        "Implementation of the operations, where the model's does not work here: auto, cpu, "
        "triton, ...",
        "NAME",
        "the model's",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    value(
        "A field of DecisionMambaConfig, such as hidden_size=256; repeat it for several.",
        "FIELD=VALUE",
        "the task's recipe",
        names=("--set",),
    ),
]
OptionOption = Annotated[
    list[str] | None,
    value(
        "An option of load_trajectories, such as top_fraction=0.1 or medium_expert=paper; "
        "repeat it for several.",
        "NAME=VALUE",
        False,
        names=("--option",),
    ),
]


def load_model(path: Path, device: str, backend: str | None) -> DecisionMamba:
    """Load a model file, with another backend where a :data:`BackendOption` names one."""
    settings: dict[str, Any] = {} if backend is None else {"backend": backend}
    return import_algorithm().load(path, device=device, **settings)


def parse_options(texts: list[str] | None) -> dict[str, Any]:
    """Read ``--option NAME=VALUE``: values are JSON, and text where they are no JSON."""
    options: dict[str, Any] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is not a NAME=VALUE", param_hint="--option")
        if name in options:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--option")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def read_settings(texts: list[str] | None) -> dict[str, Any]:
    """Read :data:`SettingOption` where ``--updates`` is an option of its own."""
    settings = parse_settings(texts or [])
    if "n_updates" in settings:
        n_updates = settings["n_updates"]
        message = f"--set n_updates={n_updates}: say it with --updates"
        raise ConfigError(message, setting="n_updates", value=n_updates)
    return settings


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``--set FIELD=VALUE`` into overrides for ``DecisionMambaConfig``."""
    hints = get_type_hints(DecisionMambaConfig)
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for setting in texts:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            message = f"--set {setting!r}: write field=value, such as hidden_size=256"
            raise ConfigError(message, setting="--set", value=setting)
        if name not in hints:
            DecisionMambaConfig().replace(**{name: text})  # raises, with the nearest name
        if name in given:
            message = f"--set {name} is given twice ({given[name]} and {text}): keep one of them"
            raise ConfigError(message, setting=name, value=text)
        given[name] = text
        try:
            values[name] = _parse(text, hints[name])
        except ValueError:
            message = f"--set {setting!r}: give {_describe(hints[name])}"
            raise ConfigError(message, setting=name, value=text) from None
    return values


_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _parse(text: str, hint: Any) -> Any:
    if type(None) in get_args(hint):
        kind = get_args(hint)[0]
        is_choice = text in get_args(kind)  # "none" may be one
        return None if text.lower() == "none" and not is_choice else _parse(text, kind)
    if get_origin(hint) is tuple:
        first, second = text.strip("()[] ").split(",")
        return float(first), float(second)
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if hint is int:
        return int(text.replace("_", ""))
    return float(text) if hint is float else text


def _describe(hint: Any) -> str:
    if get_origin(hint) is types.UnionType:
        return f"{_describe(get_args(hint)[0])}, or none"
    if get_origin(hint) is tuple:
        return "two numbers, such as 0.9,0.95"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(hint, "a text")
