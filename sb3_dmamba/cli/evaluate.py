"""``dmamba evaluate``, ``dmamba export`` and ``dmamba card``: commands on a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli import output as cli

if TYPE_CHECKING:
    from rich.console import Console

    from sb3_dmamba.export import ExportedPolicy

_PLOT_FORMATS = (".png", ".pdf", ".svg")


def _check_format(path: Path | None) -> Path | None:
    """Refuse a format before the evaluation, which may take minutes."""
    if path is not None and path.suffix.lower() not in _PLOT_FORMATS:
        raise typer.BadParameter(f"{path} ends in none of {', '.join(_PLOT_FORMATS)}")
    return path


def evaluate(
    model: cli.ModelArgument,
    target: Annotated[
        list[float] | None,
        cli.value(
            "Return to ask for; repeat it for several.",
            "RETURN",
            "the task's, or spread over the dataset's returns",
        ),
    ] = None,
    episodes: cli.EpisodesOption = 10,
    memory: cli.MemoryOption = None,
    weights: Annotated[
        cli.WeightsChoice | None,
        cli.flag("Averaged weights (ema) or raw ones (last).", default="what the model acts with"),
    ] = None,
    env: cli.EnvOption = None,
    stochastic: Annotated[
        bool, cli.flag("Draw discrete actions, as is usual for Atari games.", "--stochastic")
    ] = False,
    max_steps: cli.MaxStepsOption = None,
    seed: Annotated[
        int | None, cli.number("Seed of the first episode.", "the model's", least=0)
    ] = None,
    device: cli.DeviceOption = "auto",
    backend: cli.BackendOption = None,
    output: Annotated[
        Path | None, cli.value("Write the report there, as JSON.", "FILE", panel="Output")
    ] = None,
    plot: Annotated[
        Path | None,
        cli.value(
            "Write achieved against asked there (.png, .pdf or .svg).",
            "FILE",
            panel="Output",
            callback=_check_format,
        ),
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Act for whole episodes of each target return and report what was reached."""
    with cli.command_output(as_json, debug) as out:
        loaded = cli.load_model(model, cli.check_device(device), backend)
        name: Any = None if memory is None else memory.value
        act: dict[str, Any] = {"env": env, "memory": name, "deterministic": not stochastic}
        act |= {"weights": None if weights is None else weights.value}
        act |= {"max_episode_steps": max_steps, "seed": seed}
        report = loaded.evaluate(target or None, episodes, **act)
        out.console.print(report)
        for path, write in ((output, report.to_json), (plot, report.plot)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
                out.files([path])
        out.emit(json.loads(report.to_json()))


def export(
    model: cli.ModelArgument,
    output: Annotated[
        Path | None,
        typer.Argument(
            help="File to write: .onnx or .pt2 (torch.export).",
            show_default="the model's name with .onnx",
        ),
    ] = None,
    memory: cli.MemoryOption = None,
    device: Annotated[str, cli.value("Where a .pt2 file is to run: cpu, cuda.", "NAME")] = "cpu",
    backend: cli.BackendOption = None,
    verify: Annotated[
        bool, cli.flag("Run the result beside the model before it is written.")
    ] = True,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Write a model's policy as a graph, with the state going in and coming out."""
    with cli.command_output(as_json, debug) as out:
        where, path = cli.check_device(device), output or model.with_suffix(".onnx")
        name: Any = None if memory is None else memory.value
        loaded = cli.load_model(model, "cpu", backend)
        exported = loaded.export(path, memory=name, device=where, verify=verify)
        _print_interface(out.console, exported)
        out.files([exported.path])
        error, about = exported.max_error, exported.metadata
        out.emit({"path": str(exported.path), "max_error": error, "metadata": about})


def _print_interface(console: Console, exported: ExportedPolicy) -> None:
    """Print inputs, outputs and the difference from the model."""
    from rich.table import Table

    about = exported.metadata
    table = Table("tensor", "type", "of each environment", title=f"memory: {about['memory']}")
    state = {f"state.{name}": rows for name, rows in about["state"].items()}
    for name, rows in {**about["inputs"], **state}.items():
        table.add_row(name, rows["dtype"], " x ".join(map(str, rows["shape"])) or "one")
    console.print(table)
    outputs = ", ".join(about["outputs"])
    console.print(f"outputs: {outputs} and each next_state", highlight=False)
    if exported.max_error is None:
        console.print("not run beside the model (ONNX needs onnxruntime for that)")
    else:
        console.print(f"differs from the model by at most {exported.max_error:.1e}")


def card(
    model: cli.ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write; made if it is not there.")],
    report: Annotated[
        Path | None, cli.value("What dmamba evaluate --output wrote.", "FILE", "evaluate now")
    ] = None,
    target: Annotated[
        list[float] | None,
        cli.value("Return to ask for; repeat it for several.", "RETURN", "the model's own"),
    ] = None,
    episodes: cli.EpisodesOption = 10,
    memory: cli.MemoryOption = None,
    env: cli.EnvOption = None,
    repo: Annotated[str | None, cli.value("Repository, for the card's code.", "USER/NAME")] = None,
    license: Annotated[str | None, cli.value("License of the model, such as mit.", "SPDX")] = None,
    video: Annotated[bool, cli.flag("Record an episode (moviepy).", "--video")] = False,
    overwrite: cli.OverwriteOption = False,
    device: cli.DeviceOption = "auto",
    backend: cli.BackendOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Write a model card and what belongs to it; hf upload USER/NAME FOLDER publishes it."""
    if report is not None and target:
        raise typer.BadParameter("the report has its targets", param_hint="--target")
    with cli.command_output(as_json, debug) as out:
        hub = cli.import_quietly("sb3_dmamba.hub")
        from sb3_dmamba.evaluation import EvaluationReport

        hub.require_huggingface_hub()  # before an evaluation, which may take long
        loaded = cli.load_model(model, cli.check_device(device), backend)
        if report is not None:
            evaluated = EvaluationReport.from_json(report)
        else:
            name: Any = None if memory is None else memory.value
            targets = target or [loaded.target_return]
            evaluated = loaded.evaluate(targets, episodes, env=env, memory=name)
        about = {"report": evaluated, "repo_id": repo, "license": license}
        how = {"env": env, "video": video, "overwrite": overwrite}
        made = hub.make_folder(loaded, folder, **about, **how)
        paths = sorted(path for path in made.iterdir() if path.is_file())
        out.files(paths)
        out.emit({"folder": str(made), "files": [path.name for path in paths]})
