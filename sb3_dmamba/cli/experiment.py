"""``dmamba experiment`` and ``dmamba bench``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli.output import (
    EXIT_ERROR,
    DebugOption,
    DeviceOption,
    JsonOption,
    MaxStepsOption,
    MemoryChoice,
    OptionOption,
    Output,
    SettingOption,
    check_device,
    command_output,
    import_quietly,
    parse_options,
    print_files,
    read_settings,
)
from sb3_dmamba.errors import CheckoutError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from sb3_dmamba.experiments.catalogue import Measurement


_NAMES = 4


def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="The experiment; without one, they are listed.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK...",
            help="Tasks, by name; NAME=SOURCE for data that lies elsewhere; or any dataset.",
            show_default="the experiment's",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="Training seeds.", show_default="the experiment's"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the report.", show_default="runs/NAME"),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the trainings, which experiments may share.",
            show_default="OUT/cells",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Updates of each training.", show_default="the task's"
        ),
    ] = None,
    setting: SettingOption = None,
    option: OptionOption = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="Run these alone.", show_default="all"),
    ] = None,
    targets: Annotated[
        list[float] | None,
        typer.Option(metavar="RETURN...", help="Returns to ask for.", show_default="the task's"),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Episodes of each target.", show_default="the experiment's"
        ),
    ] = None,
    memory: Annotated[
        list[MemoryChoice] | None,
        typer.Option(
            metavar="NAME...", help="window, stream, or both.", show_default="the experiment's"
        ),
    ] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Evaluations of each training, evenly spread.",
            show_default="the experiment's",
        ),
    ] = None,
    stochastic: Annotated[
        bool | None,
        typer.Option(
            "--stochastic/--deterministic",
            help="Draw discrete actions, or take the likeliest.",
            show_default="--stochastic for Atari games",
        ),
    ] = None,
    max_steps: MaxStepsOption = None,
    jobs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trainings at once.", rich_help_panel="Engine")
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=1, metavar="N", help="Threads of each.", rich_help_panel="Engine")
    ] = 1,
    device: DeviceOption = "auto",
    ray: Annotated[
        bool, typer.Option("--ray", help="Run as tasks of Ray.", rich_help_panel="Engine")
    ] = False,
    slurm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a SLURM job array there, and run nothing.",
            rich_help_panel="Engine",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run an experiment: whatever is not done yet, then its report."""
    with command_output(as_json, debug) as output:
        if name is None:
            _list(output)
            return
        if ray and slurm is not None:
            raise typer.BadParameter("give --ray or --slurm, not both")
        folder = out or Path("runs") / name
        request = {
            "cells": cells or folder / "cells",
            "data": tuple(data or ()),
            "seeds": tuple(seeds or ()),
            "variants": tuple(variants or ()),
            "n_updates": updates,
            "settings": read_settings(setting),
            "target_returns": tuple(targets or ()),
            "n_episodes": episodes,
            "memories": tuple(each.value for each in memory or ()),
            "evaluations": evaluations,
            "deterministic": None if stochastic is None else not stochastic,
            "max_episode_steps": max_steps,
            "data_options": parse_options(option),
        }
        engine = {
            "kind": "ray" if ray else "local",
            "jobs": jobs,
            "threads": threads,
            "device": check_device(device),
        }
        _run(output, name, folder, request, engine, slurm)


def _run(
    output: Output,
    name: str,
    folder: Path,
    request: dict[str, Any],
    engine: dict[str, Any],
    slurm: Path | None,
) -> None:
    engines = import_quietly("sb3_dmamba.experiments.engines")
    from sb3_dmamba.experiments.catalogue import Measurement, get_experiment
    from sb3_dmamba.experiments.plan import Request

    chosen = get_experiment(name)
    if isinstance(chosen, Measurement):
        _measure(output, chosen, folder, request, engine)
        return
    try:
        finished = engines.run_experiment(
            chosen,
            Request(**request),
            folder,
            _reproduce(sys.argv[1:]),
            engines.Engine(**engine),
            slurm,
            output.console,
        )
    except KeyboardInterrupt:
        typer.echo("The same command goes on from the last checkpoints.", err=True)
        raise
    print_files(output, finished.files)
    if slurm is not None:
        text = f"{finished.n_waiting} of {finished.n_runs} runs; submit it: sbatch {slurm}"
        output.console.print(text, highlight=False, soft_wrap=True)
    output.emit(
        {
            "experiment": name,
            "files": [str(path) for path in finished.files],
            "cells": finished.n_runs,
            "waiting": finished.n_waiting,
        }
    )


_OF_TRAININGS = {
    "data": "--data",
    "seeds": "--seeds",
    "n_updates": "--updates",
    "target_returns": "--targets",
    "n_episodes": "--episodes",
    "memories": "--memory",
    "evaluations": "--evaluations",
    "deterministic": "--stochastic",
    "max_episode_steps": "--max-steps",
    "data_options": "--option",
}


def _measure(
    output: Output,
    measurement: Measurement,
    folder: Path,
    request: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    from sb3_dmamba.experiments.catalogue import MeasurementRequest

    for field, option in _OF_TRAININGS.items():
        if request[field] not in (None, (), {}):
            raise ConfigError(f"{measurement.name} trains nothing: leave {option} out")
    files = measurement.run(
        MeasurementRequest(
            out=folder,
            command=_reproduce(sys.argv[1:]),
            variants=request["variants"],
            settings=request["settings"],
            device=engine["device"],
            threads=engine["threads"],
        )
    )
    print_files(output, files)
    output.emit({"experiment": measurement.name, "files": [str(path) for path in files]})


# What says where and how fast to run, but not what.
_ENGINE_OPTIONS = ("--jobs", "--threads", "--cells", "--out", "--device", "--slurm")
_ENGINE_FLAGS = ("--ray", "--json", "--debug")


def _reproduce(arguments: list[str]) -> str:
    """Return the command without what does not change its results."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.split("=")[0] in _ENGINE_OPTIONS:
            skip = "=" not in argument
        elif argument not in _ENGINE_FLAGS:
            kept.append(argument)
    return shlex.join(["dmamba", *kept])


def _list(output: Output) -> None:
    from sb3_dmamba.experiments.catalogue import list_experiments, list_measurements

    experiments: list[Any] = [*list_experiments(), *list_measurements()]
    output.console.print(_table(experiments))
    output.emit(
        [
            {
                "name": each.name,
                "question": each.question,
                "variants": list(each.variants),
                "tasks": list(getattr(each, "tasks", ())),
            }
            for each in experiments
        ]
    )


def _shorten(names: Iterable[str]) -> str:
    """Return a few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMES} more" if len(listed) > _NAMES else ""
    return "; ".join(listed[:_NAMES]) + more


def _table(experiments: list[Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Experiments", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("variants")
    table.add_column("tasks")
    for each in experiments:
        table.add_row(each.name, _shorten(each.variants), _shorten(getattr(each, "tasks", ["-"])))
    return table


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...",
            help="update, data, predict, evaluation, scaling, ops, profile; by name alone: memory, "
            "frames, tune.",
            show_default="all that need nothing",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write pages, JSON and pictures there."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="See that it works: toy sizes, figures that mean nothing."),
    ] = False,
    device: DeviceOption = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads on the CPU.", show_default="torch's"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Turns of each contender.", show_default="the suite's"
        ),
    ] = None,
    updates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Updates whose time is projected.")
    ] = 100_000,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A recorded DQN replay of Breakout, for frames."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time this package beside its peers, and print what agrees with its reference."""
    with command_output(as_json, debug) as printed:
        _find_suites()
        import torch

        device = check_device(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        import_quietly("sb3_dmamba.algorithm")  # what it imports prints a notice
        request = import_module("benchmarks.request").Request(
            device=device,
            threads=threads or torch.get_num_threads(),
            rounds=rounds,
            quick=quick,
            updates=updates,
            replay=replay,
            command=_bench_reproduce(names or []),
        )
        running = import_module("benchmarks.running")
        documents = running.run(names or (), request, output, printed.console)
        printed.emit(documents)
    if any(document["failures"] for document in documents):
        raise typer.Exit(EXIT_ERROR)


def _find_suites() -> ModuleType:
    """Import the checkout's ``benchmarks``, and no other package of that name.

    Raises:
        CheckoutError: This is an installed package, which has none.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "suites" / "__init__.py").is_file():
        raise CheckoutError(
            "the benchmarks are in the repository and not in the installed package: clone it, and "
            "there run pip install -e '.[dev]' and dmamba bench"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    package = import_module("benchmarks")
    if Path(str(package.__file__)).resolve().parent != root / "benchmarks":
        raise CheckoutError(
            f"another package called benchmarks is in the way, {package.__file__}: run dmamba "
            f"bench from {root}"
        )
    return package


def _bench_reproduce(names: list[str]) -> str:
    """Return the command without the suites' names and what does not change its results."""
    kept: list[str] = []
    arguments = iter(sys.argv[sys.argv.index("bench") + 1 :] if "bench" in sys.argv else [])
    for argument in arguments:
        if argument == "--output":
            next(arguments, None)
        elif argument not in (*names, "--json", "--debug") and not argument.startswith("--output="):
            kept.append(argument)
    return shlex.join(["dmamba", "bench", *kept])
