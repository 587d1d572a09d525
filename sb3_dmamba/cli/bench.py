"""``dmamba bench``: the benchmark suite, from a checkout of the repository."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from sb3_dmamba.cli.options import DeviceOption
from sb3_dmamba.cli.output import (
    EXIT_ERROR,
    DebugOption,
    JsonOption,
    check_device,
    command_output,
    import_quietly,
)
from sb3_dmamba.errors import CheckoutError

__all__ = ["bench"]


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
            command=_reproduce(names or []),
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


def _reproduce(names: list[str]) -> str:
    """Return the command without the suites' names and what does not change its results."""
    kept: list[str] = []
    arguments = iter(sys.argv[sys.argv.index("bench") + 1 :] if "bench" in sys.argv else [])
    for argument in arguments:
        if argument == "--output":
            next(arguments, None)
        elif argument not in (*names, "--json", "--debug") and not argument.startswith("--output="):
            kept.append(argument)
    return shlex.join(["dmamba", "bench", *kept])
