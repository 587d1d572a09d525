"""``dmamba card``: a saved model as a folder for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli.options import (
    BackendOption,
    DeviceOption,
    EnvOption,
    EpisodesOption,
    MemoryOption,
    ModelArgument,
    OverwriteOption,
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
    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.evaluation import EvaluationReport

__all__ = ["card"]


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
