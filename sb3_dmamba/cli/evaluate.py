"""``dmamba evaluate``, ``dmamba export`` and ``dmamba card``: use a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli.output import (
    BackendOption,
    DebugOption,
    DeviceOption,
    EnvOption,
    EpisodesOption,
    JsonOption,
    MaxStepsOption,
    MemoryOption,
    ModelArgument,
    OverwriteOption,
    backend_settings,
    check_device,
    command_output,
    import_algorithm,
    print_files,
)

if TYPE_CHECKING:
    from rich.console import Console

    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.config import Memory
    from sb3_dmamba.evaluation import EvaluationReport
    from sb3_dmamba.export import ExportedPolicy


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


def export(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Argument(
            help="File to write: .onnx or .pt2 (torch.export).",
            show_default="the model's name with .onnx",
        ),
    ] = None,
    memory: MemoryOption = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where a .pt2 file is to run: cpu, cuda.")
    ] = "cpu",
    backend: BackendOption = None,
    verify: Annotated[
        bool, typer.Option(help="Run the result beside the model before it is written.")
    ] = True,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a model's policy as a graph, with the state going in and coming out."""
    with command_output(as_json, debug) as out:
        chosen: Memory | None = None if memory is None else memory.value
        where = check_device(device)
        exported = (
            import_algorithm()
            .load(model, device="cpu", **backend_settings(backend))
            .export(
                output or model.with_suffix(".onnx"), memory=chosen, device=where, verify=verify
            )
        )
        _print_interface(out.console, exported)
        print_files(out, [exported.path])
        out.emit(
            {
                "path": str(exported.path),
                "max_error": exported.max_error,
                "metadata": exported.metadata,
            }
        )


def _print_interface(console: Console, exported: ExportedPolicy) -> None:
    """Print what goes in and comes out, and whether it was checked."""
    from rich.table import Table

    about = exported.metadata
    table = Table("tensor", "type", "of each environment", title=f"memory: {about['memory']}")
    state = {f"state.{name}": rows for name, rows in about["state"].items()}
    for name, rows in {**about["inputs"], **state}.items():
        table.add_row(name, rows["dtype"], _describe_shape(rows))
    console.print(table)
    outputs = ", ".join(about["outputs"])
    console.print(f"out come {outputs} and each next_state", highlight=False)
    if exported.max_error is None:
        console.print("not run beside the model (ONNX needs onnxruntime for that)")
    else:
        console.print(f"differs from the model by at most {exported.max_error:.1e}")


def _describe_shape(rows: dict[str, Any]) -> str:
    return " x ".join(map(str, rows["shape"])) or "one"


def card(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write; made if it is not there.")],
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What dmamba evaluate --output wrote.",
            show_default="evaluate now",
        ),
    ] = None,
    target: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RETURN",
            help="Return to ask for; repeat it for several.",
            show_default="the model's own",
        ),
    ] = None,
    episodes: EpisodesOption = 10,
    memory: MemoryOption = None,
    env: EnvOption = None,
    repo: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Repository, for the card's code.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="License of the model, such as mit.")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Record an episode (moviepy).")] = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a model card and what belongs to it; hf upload USER/NAME FOLDER publishes it."""
    if report is not None and target:
        raise typer.BadParameter("the report has its targets", param_hint="--target")
    with command_output(as_json, debug) as out:
        algorithm = import_algorithm()
        from sb3_dmamba.hub import make_folder, require_huggingface_hub

        require_huggingface_hub()  # before an evaluation, which may take long
        loaded = algorithm.load(model, device=check_device(device), **backend_settings(backend))
        chosen = None if memory is None else memory.value
        made = make_folder(
            loaded,
            folder,
            report=_find_report(loaded, report, target, episodes, chosen, env),
            repo_id=repo,
            license=license,
            env=env,
            video=video,
            overwrite=overwrite,
        )
        paths = sorted(path for path in made.iterdir() if path.is_file())
        print_files(out, paths)
        out.emit({"folder": str(made), "files": [path.name for path in paths]})


def _find_report(
    model: DecisionMamba,
    report: Path | None,
    targets: list[float] | None,
    n_episodes: int,
    memory: Any,
    env: str | None,
) -> EvaluationReport:
    from sb3_dmamba.evaluation import EvaluationReport

    if report is not None:
        return EvaluationReport.from_json(report)
    asked = targets or [model.target_return]
    return model.evaluate(asked, n_episodes, env=env, memory=memory)
