"""``dmamba evaluate``: what a saved model reaches when asked for returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sb3_dmamba.cli.options import (
    BackendOption,
    DeviceOption,
    EnvOption,
    EpisodesOption,
    MaxStepsOption,
    MemoryOption,
    ModelArgument,
    backend_settings,
)
from sb3_dmamba.cli.output import (
    DebugOption,
    JsonOption,
    check_device,
    command_output,
    import_algorithm,
    print_files,
)

if TYPE_CHECKING:
    from sb3_dmamba.config import Memory

__all__ = ["evaluate"]


_PLOT_FORMATS = (".png", ".pdf", ".svg")


def _check_format(path: Path | None) -> Path | None:
    """Refuse a format before minutes are spent on what goes into the file."""
    if path is not None and path.suffix.lower() not in _PLOT_FORMATS:
        raise typer.BadParameter(f"{path} ends in none of {', '.join(_PLOT_FORMATS)}")
    return path


def evaluate(
    model: ModelArgument,
    target: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RETURN",
            help="Return to ask for; repeat it for several.",
            show_default="the task's, or spread over the dataset's returns",
        ),
    ] = None,
    episodes: EpisodesOption = 10,
    memory: MemoryOption = None,
    env: EnvOption = None,
    stochastic: Annotated[
        bool,
        typer.Option("--stochastic", help="Draw discrete actions, as is usual for Atari games."),
    ] = False,
    max_steps: MaxStepsOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Seed of the first episode.", show_default="the model's"
        ),
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the report there, as JSON.", rich_help_panel="Output"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write achieved against asked there (.png, .pdf or .svg).",
            callback=_check_format,
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Act for whole episodes of each target return and report what was reached."""
    with command_output(as_json, debug) as out:
        decision_mamba = import_algorithm()
        chosen: Memory | None = None if memory is None else memory.value
        loaded = decision_mamba.load(
            model, device=check_device(device), **backend_settings(backend)
        )
        report = loaded.evaluate(
            target or None,
            episodes,
            env=env,
            memory=chosen,
            deterministic=not stochastic,
            max_episode_steps=max_steps,
            seed=seed,
        )
        out.console.print(report)
        for path, write in ((output, report.to_json), (plot, report.plot)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
                print_files(out, [path])
        out.emit(json.loads(report.to_json()))
