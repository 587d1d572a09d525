"""``dmamba data``: inspect, convert and download datasets."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli import output as cli
from sb3_dmamba.errors import DatasetError

if TYPE_CHECKING:
    from sb3_dmamba.data import Trajectories

data_app = typer.Typer(
    name="data",
    help="Look at a dataset, convert it to a store that memory need not hold, download it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=cli.HELP_OPTIONS,
    epilog="[bold]Examples[/bold]\n\ndmamba data info sb3_dmamba/halfcheetah-v0\n\n"
    "dmamba data download hopper-medium-v2",
)

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help=cli.SOURCES_HELP, show_default=False)
]


@data_app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba data info hopper-medium-v2\n\n"
    "dmamba data info dqn-replay/Breakout/1 --json\n\n"
    "dmamba data info my_data.hdf5 --option env_id=Hopper-v4"
)
def info(
    source: SourceArgument,
    option: cli.OptionOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Show episodes, steps, spaces and returns, and issues of the dataset.

    Issues are NaN, dimensions that never change, episodes that collection cut, episodes that
    repeat others, actions that are never taken.
    """
    options = cli.parse_options(option)
    with cli.command_output(as_json, debug) as out:
        cli.import_quietly("sb3_dmamba.data")
        from sb3_dmamba.data.inspection import inspect_dataset

        report = inspect_dataset(source, **options)
        out.console.print(report)
        out.emit(report.to_dict())


@data_app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba data convert dqn-replay/Breakout/1 stores/breakout\n\n"
    "dmamba data convert hopper-medium-v2 stores/hopper-best --option top_fraction=0.1"
)
def convert(
    source: SourceArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the store will be.", show_default=False)
    ],
    option: cli.OptionOption = None,
    overwrite: cli.OverwriteOption = False,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Write a dataset to a store: memory-mapped arrays, for training on more than memory holds."""
    options = cli.parse_options(option)
    with cli.command_output(as_json, debug) as out:
        cli.import_quietly("sb3_dmamba.data")
        from sb3_dmamba.data.sources import convert_trajectories

        for name in {"overwrite", "progress_bar"} & set(options):
            message = f"{name} is not an option of a source: leave it out, or use --overwrite"
            raise DatasetError(message, setting=name, value=options[name])
        start = time.perf_counter()
        how = {"overwrite": overwrite, "progress_bar": True}
        data = convert_trajectories(source, folder, **how, **options)
        seconds, n_bytes = time.perf_counter() - start, _size(folder)
        size = _format_bytes(n_bytes)
        out.line(f"{len(data):,} episodes, {data.n_steps:,} steps, {size} in {seconds:.1f} s")
        out.files([folder])
        out.line(f"next: dmamba train {_task_of(data)} --dataset {shlex.quote(str(folder))}")
        document = {"folder": str(folder), "bytes": n_bytes, "seconds": seconds}
        out.emit({**document, "dataset": data.summary().to_dict()})


def _task_of(data: Trajectories) -> str:
    """Return a task's name for a dataset: a game's, else the environment's."""
    from sb3_dmamba.tasks import list_tasks

    game = data.env_kwargs.get("game")
    named = (task.name for task in list_tasks() if game and task.env_kwargs.get("game") == game)
    return next(named, data.env_id or "TASK")


@data_app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dmamba data download hopper-medium-v2 hopper-medium-replay-v2\n\n"
    "dmamba data download mujoco/hopper/medium-v0"
)
def download(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="D4RL names and Minari ids.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        cli.value(
            "Where D4RL's files go; Minari's go to MINARI_DATASETS_PATH.",
            "FOLDER",
            "D4RL_DATASET_DIR or ~/.d4rl/datasets",
        ),
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Download datasets that are not here yet."""
    with cli.command_output(as_json, debug) as out:
        cli.import_quietly("sb3_dmamba.data")
        results: list[dict[str, Any]] = []
        for name in names:
            path, is_new = _fetch(name, folder)
            found = {"path": str(path), "bytes": _size(path), "downloaded": is_new}
            results.append({"name": name, **found})
            out.files([path] if is_new else [])
        table = cli.make_table(collapse_padding=True)
        table.add_column("dataset", no_wrap=True)
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("where", overflow="fold")
        for each in results:
            state = "downloaded" if each["downloaded"] else "was there"
            table.add_row(each["name"], _format_bytes(each["bytes"]), state, each["path"])
        out.console.print(table)
        out.emit(results)


def _fetch(name: str, folder: Path | None) -> tuple[Path, bool]:
    """Return the path of a dataset, and whether it was downloaded now."""
    from sb3_dmamba.d4rl import D4RL_NAME
    from sb3_dmamba.data.sources.d4rl import find_d4rl_file
    from sb3_dmamba.data.sources.minari import find_minari_folder

    find: Callable[..., Path] = find_minari_folder
    if D4RL_NAME.fullmatch(name):
        find = partial(find_d4rl_file, folder=folder)
    elif folder is not None:
        message = (
            f"{name!r} is not a D4RL name, and --folder is for D4RL's files: Minari's go to the "
            f"folder that MINARI_DATASETS_PATH names"
        )
        raise DatasetError(message, setting="folder", value=str(folder))
    try:
        return find(name, download=False), False
    except DatasetError:
        return find(name), True


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _format_bytes(n_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(n_bytes)
