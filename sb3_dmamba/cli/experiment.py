"""``dmamba experiment`` and ``dmamba bench``: reproduce results and time the package."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli import output as cli
from sb3_dmamba.errors import CheckoutError, ConfigError

if TYPE_CHECKING:
    from sb3_dmamba.experiments.catalogue import Measurement

_MOST_NAMES = 4  # variants or tasks in a row of the list

# Options that say where and how fast to run, which changes no result.
_ENGINE_OPTIONS = ("--jobs", "--threads", "--cells", "--output", "--out", "--device", "--slurm")
_ENGINE_FLAGS = ("--ray", "--json", "--debug")


def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="The experiment; without one, they are listed.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        cli.value(
            "Tasks, by name; NAME=SOURCE for data that lies elsewhere; or any dataset.",
            "TASK...",
            "the experiment's",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, cli.value("Training seeds.", "N...", "the experiment's")
    ] = None,
    out: Annotated[
        Path | None,
        cli.value("Folder of the report.", "FOLDER", "runs/NAME", names=("--output", "--out")),
    ] = None,
    cells: Annotated[
        Path | None,
        cli.value(
            "Folder of the trainings, which experiments may share.", "FOLDER", "OUTPUT/cells"
        ),
    ] = None,
    updates: Annotated[int | None, cli.number("Updates of each training.", "the task's")] = None,
    processor_seconds: Annotated[
        float | None,
        cli.number("Processor time of each training, instead of --updates.", "the experiment's"),
    ] = None,
    setting: cli.SettingOption = None,
    option: cli.OptionOption = None,
    variants: Annotated[list[str] | None, cli.value("Run these alone.", "NAME...", "all")] = None,
    targets: Annotated[
        list[float] | None, cli.value("Returns to ask for.", "RETURN...", "the task's")
    ] = None,
    episodes: Annotated[
        int | None, cli.number("Episodes of each target.", "the experiment's")
    ] = None,
    memory: Annotated[
        list[cli.MemoryChoice] | None,
        cli.value("window, stream, or both.", "NAME...", "the experiment's"),
    ] = None,
    evaluations: Annotated[
        int | None, cli.number("Evaluations of each training, evenly spread.", "the experiment's")
    ] = None,
    stochastic: Annotated[
        bool | None,
        cli.flag(
            "Draw discrete actions, or take the likeliest.",
            "--stochastic/--deterministic",
            default="--stochastic for Atari games",
        ),
    ] = None,
    max_steps: cli.MaxStepsOption = None,
    jobs: Annotated[int, cli.number("Trainings at once.", panel="Engine")] = 1,
    threads: Annotated[int, cli.number("Threads of each.", panel="Engine")] = 1,
    device: cli.DeviceOption = "auto",
    ray: Annotated[bool, cli.flag("Run as tasks of Ray.", "--ray", panel="Engine")] = False,
    slurm: Annotated[
        Path | None,
        cli.value("Write a SLURM job array there, and run nothing.", "FILE", panel="Engine"),
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Run an experiment: whatever is not done yet, then its report."""
    with cli.command_output(as_json, debug) as output:
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
            "settings": cli.read_settings(setting),
            "target_returns": tuple(targets or ()),
            "n_episodes": episodes,
            "memories": tuple(each.value for each in memory or ()),
            "evaluations": evaluations,
            "deterministic": None if stochastic is None else not stochastic,
            "max_episode_steps": max_steps,
            "data_options": cli.parse_options(option),
            "processor_seconds": processor_seconds,
        }
        engine = {"kind": "ray" if ray else "local", "jobs": jobs, "threads": threads}
        engine["device"] = cli.check_device(device)
        _run(output, name, folder, request, engine, slurm)


def _run(
    output: cli.Output,
    name: str,
    folder: Path,
    request: dict[str, Any],
    engine: dict[str, Any],
    slurm: Path | None,
) -> None:
    engines = cli.import_quietly("sb3_dmamba.experiments.engines")
    from sb3_dmamba.experiments.catalogue import Measurement, get_experiment
    from sb3_dmamba.experiments.plan import Request

    chosen = get_experiment(name)
    if isinstance(chosen, Measurement):
        _measure(output, chosen, folder, request, engine)
        return
    command = _reproduce(sys.argv[1:])
    where = engines.Engine(**engine), slurm, output.console
    try:
        finished = engines.run_experiment(chosen, Request(**request), folder, command, *where)
    except (KeyboardInterrupt, SystemExit):  # the latter on SIGTERM
        kept = "what is done: costs that were measured, runs, and the last checkpoints"
        typer.echo(f"Stopped. The same command goes on from {kept}.", err=True)
        raise
    output.files(finished.files)
    if slurm is not None:
        waiting = f"{finished.n_waiting} of {finished.n_runs} runs"
        output.line(f"{waiting} are not done; submit them: sbatch {slurm}")
    counts = {"cells": finished.n_runs, "waiting": finished.n_waiting}
    output.emit({"experiment": name, "files": [str(path) for path in finished.files], **counts})


_TRAINING_OPTIONS = {  # field of the request -> option
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
    "processor_seconds": "--processor-seconds",
}


def _measure(
    output: cli.Output,
    measurement: Measurement,
    folder: Path,
    request: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    from sb3_dmamba.experiments.catalogue import MeasurementRequest

    for field, option in _TRAINING_OPTIONS.items():
        if request[field] not in (None, (), {}):
            message = f"{measurement.name} trains nothing: leave {option} out"
            raise ConfigError(message, setting=option, value=request[field])
    what, where = (request["variants"], request["settings"]), (engine["device"], engine["threads"])
    command = _reproduce(sys.argv[1:])
    files = measurement.run(MeasurementRequest(folder, command, *what, *where))
    output.files(files)
    output.emit({"experiment": measurement.name, "files": [str(path) for path in files]})


def _reproduce(arguments: list[str]) -> str:
    """Return the command without the options that change no result."""
    return shlex.join(["dmamba", *_leave_out(arguments, _ENGINE_OPTIONS, _ENGINE_FLAGS)])


def _leave_out(
    arguments: Iterable[str], options: Collection[str], flags: Collection[str]
) -> Iterable[str]:
    """Yield the arguments but some options, with their values, and flags."""
    rest = iter(arguments)
    for argument in rest:
        if argument in options:
            next(rest, None)  # its value
        elif argument not in flags and argument.split("=")[0] not in options:
            yield argument


def _list(output: cli.Output) -> None:
    from sb3_dmamba.experiments.catalogue import list_experiments, list_measurements

    experiments: list[Any] = [*list_experiments(), *list_measurements()]
    table = cli.make_table(title="Experiments")
    table.add_column("name", no_wrap=True)
    table.add_column("variants")
    table.add_column("tasks")
    for each in experiments:
        table.add_row(each.name, _shorten(each.variants), _shorten(getattr(each, "tasks", ["-"])))
    output.console.print(table)
    listed = []
    for each in experiments:
        lists = {"variants": list(each.variants), "tasks": list(getattr(each, "tasks", ()))}
        listed.append({"name": each.name, "question": each.question, **lists})
    output.emit(listed)


def _shorten(names: Iterable[str]) -> str:
    listed = list(names)
    n_more = len(listed) - _MOST_NAMES
    return "; ".join(listed[:_MOST_NAMES]) + (f" and {n_more} more" if n_more > 0 else "")


# --- Benchmarks ----------------------------------------------------------------------------------


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
        Path | None, cli.value("Write pages, JSON and pictures there.", "FOLDER")
    ] = None,
    quick: Annotated[
        bool, cli.flag("See that it works: toy sizes, figures that mean nothing.", "--quick")
    ] = False,
    device: cli.DeviceOption = "auto",
    threads: Annotated[int | None, cli.number("Threads on the CPU.", "torch's")] = None,
    rounds: Annotated[int | None, cli.number("Turns of each contender.", "the suite's")] = None,
    updates: Annotated[int, cli.number("Updates whose time is projected.")] = 100_000,
    replay: Annotated[
        Path | None, cli.value("A recorded DQN replay of Breakout, for frames.", "FOLDER")
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Time this package beside its peers, and print what agrees with its reference."""
    with cli.command_output(as_json, debug) as printed:
        _find_suites()
        import torch

        device = cli.check_device(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        cli.import_quietly("sb3_dmamba.algorithm")  # the retired gym's notice is printed once
        where = {"device": device, "threads": threads or torch.get_num_threads()}
        how = {"rounds": rounds, "quick": quick, "updates": updates, "replay": replay}
        make_request = import_module("benchmarks.request").Request
        request = make_request(**where, **how, command=_bench_reproduce(names or []))
        run = import_module("benchmarks.running").run
        documents = run(names or (), request, output, printed.console)
        printed.emit(documents)
    if any(document["failures"] for document in documents):
        raise typer.Exit(cli.EXIT_ERROR)


def _find_suites() -> ModuleType:
    """Import the checkout's ``benchmarks``, and no other package of that name."""
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
    """Return the command without the suites' names and the options that change no result."""
    arguments = sys.argv[sys.argv.index("bench") + 1 :] if "bench" in sys.argv else []
    kept = _leave_out(arguments, ("--output",), (*names, "--json", "--debug"))
    return shlex.join(["dmamba", "bench", *kept])
