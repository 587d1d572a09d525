"""``dmamba train``: from a task to a model file, resumable."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli.output import (
    SOURCES_HELP,
    DebugOption,
    DeviceOption,
    JsonOption,
    OptionOption,
    Output,
    OverwriteOption,
    SettingOption,
    check_device,
    command_output,
    import_algorithm,
    make_csv_logger,
    parse_options,
    print_files,
    read_settings,
)
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.data import Trajectories
    from sb3_dmamba.tasks import Task

__all__ = ["describe_changes", "train"]


def train(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="A named task, a Minari id or a Gymnasium id; left out with --resume.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"What to learn from. {SOURCES_HELP}",
            metavar="SOURCE",
            show_default="the task's",
        ),
    ] = None,
    option: OptionOption = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Optimiser steps; with --resume, how many more.",
            show_default="the task's, or what was left",
        ),
    ] = None,
    setting: SettingOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of weights, batches and dropout.",
            show_default="drawn, and printed",
        ),
    ] = None,
    device: DeviceOption = "auto",
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue from this checkpoint or model, exactly as if it had not stopped.",
            metavar="MODEL",
            show_default=False,
            rich_help_panel="Checkpoints and evaluation",
        ),
    ] = None,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Updates between two checkpoints; 0 is none.",
            rich_help_panel="Checkpoints and evaluation",
        ),
    ] = 0,
    eval_every: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Updates between two evaluations at the task's target; 0 is none.",
            rich_help_panel="Checkpoints and evaluation",
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for model.zip, progress.csv and checkpoints.",
            show_default="runs/TASK",
            rich_help_panel="Output",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Log to TensorBoard there.", rich_help_panel="Output"),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train on a task's recorded data and write the model.

    torchrun --nproc-per-node=2 -m sb3_dmamba train ... does so in two processes.
    """
    if (task is None) == (resume is None):
        raise typer.BadParameter("give either a task to start from or a checkpoint to --resume")
    others = [text for text in setting or () if not text.startswith("backend=")]
    if resume is not None and (others or seed is not None):
        raise typer.BadParameter(
            "--resume continues with the checkpoint's settings and seed: leave --set and --seed "
            "out (but for --set backend=auto, where its backend does not work here)"
        )
    options = parse_options(option)
    with command_output(as_json, debug) as out:
        plan = _Plan(
            task=task,
            resume=resume,
            dataset=dataset,
            options=options,
            output=output or _default_output(task, resume),
            updates=updates,
            settings=read_settings(setting),
            seed=seed,
            device=device,
            checkpoint_every=checkpoint_every,
            eval_every=eval_every,
            tensorboard=tensorboard,
        )
        if plan.model_path.exists() and not overwrite and resume is None:
            raise ConfigError(
                f"{plan.model_path} exists: give another --output, --resume to train it on, "
                "or --overwrite"
            )
        _run(plan, out)


@dataclass(frozen=True)
class _Plan:
    """What the command line asks for."""

    task: str | None
    resume: Path | None
    dataset: str | None
    options: dict[str, Any]
    output: Path
    updates: int | None
    settings: dict[str, Any]
    seed: int | None
    device: str
    checkpoint_every: int
    eval_every: int
    tensorboard: Path | None

    @property
    def model_path(self) -> Path:
        """The file that the run ends with."""
        return self.output / "model.zip"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.output / "checkpoints"

    def checkpoint(self, n_updates: int) -> Path:
        """Return the name that Stable-Baselines3's callback gives a checkpoint."""
        return self.checkpoints / f"model_{n_updates}_steps.zip"

    def make_callback(self) -> BaseCallback | None:
        """Return what saves checkpoints; None where there are to be none."""
        from stable_baselines3.common.callbacks import CheckpointCallback

        if not self.checkpoint_every:
            return None
        return CheckpointCallback(self.checkpoint_every, str(self.checkpoints), name_prefix="model")


def _default_output(task: str | None, resume: Path | None) -> Path:
    """Return the folder of a run: its task's, or that of the run that it continues."""
    if resume is None:
        return Path("runs") / str(task).replace("/", "-").replace(":", "-")
    return resume.parent.parent if resume.parent.name == "checkpoints" else resume.parent


def _run(plan: _Plan, out: Output) -> None:
    from sb3_dmamba.training.distributed import join_processes

    with _say_if_interrupted(plan):
        model = _make_model(plan)
    with join_processes(model.device) as processes:
        with _say_if_interrupted(plan), processes.leader_first():
            trajectories = _load_dataset(plan, model)
        if processes.is_leader:
            _train(plan, model, trajectories, processes.size, out)
        else:  # only rank 0 logs and saves
            _fit(plan, model, trajectories)


def _fit(plan: _Plan, model: DecisionMamba, trajectories: Trajectories) -> None:
    model.fit(
        trajectories,
        plan.updates if plan.resume is not None else None,
        callback=plan.make_callback(),
        eval_freq=plan.eval_every,
        progress_bar=True,
    )


def _train(
    plan: _Plan, model: DecisionMamba, trajectories: Trajectories, n_processes: int, out: Output
) -> None:
    from sb3_dmamba.training.loop import UpdateInterrupted

    out.console.print(trajectories.summary())
    together = f", {n_processes} processes" if n_processes > 1 else ""
    out.console.print(f"seed {model.seed}, device {model.device}{together}", highlight=False)
    changes = describe_changes(model.config, model.task)
    if changes is not None:
        text = f"settings that differ from the recipe: {changes}"
        out.console.print(text, soft_wrap=True, highlight=False, markup=False)
    first = model.num_timesteps
    model.verbose = 1  # evaluations are printed
    model.set_logger(make_csv_logger(plan.output, first, plan.tensorboard))
    start = time.perf_counter()
    try:
        _fit(plan, model, trajectories)
        seconds = time.perf_counter() - start
        model.save(plan.model_path)
    except UpdateInterrupted:
        _say_what_is_left(plan, model, first)
        raise
    except KeyboardInterrupt:
        _keep(plan, model, first)
        raise
    finally:
        model.logger.close()
    done = model.num_timesteps - first
    out.console.print(f"{done:,} updates in {seconds:.0f} s", highlight=False)
    print_files(out, [plan.model_path])
    out.console.print(f"next: dmamba evaluate {plan.model_path}", soft_wrap=True, highlight=False)
    out.emit(
        {
            "model": str(plan.model_path),
            "updates": done,
            "total_updates": model.num_timesteps,
            "seconds": seconds,
            "seed": model.seed,
            "device": str(model.device),
            "processes": n_processes,
            "dataset": trajectories.summary().to_dict(),
            "config": model.config.to_dict(),
        }
    )


def _make_model(plan: _Plan) -> DecisionMamba:
    decision_mamba = import_algorithm()
    import torch

    from sb3_dmamba.training.distributed import local_device

    own = local_device(plan.device) if torch.cuda.is_available() else plan.device
    device = check_device(str(own))
    if plan.resume is None:
        updates = {} if plan.updates is None else {"n_updates": plan.updates}
        settings = {**plan.settings, **updates}
        return decision_mamba(plan.task, seed=plan.seed, device=device, **settings)
    model = decision_mamba.load(plan.resume, device=device, **plan.settings)
    if plan.updates is None and model.num_timesteps >= model._total_timesteps:
        raise ConfigError(
            f"{plan.resume} has done all of its {model.num_timesteps:,} updates: "
            "say with --updates how many more"
        )
    return model


def _load_dataset(plan: _Plan, model: DecisionMamba) -> Trajectories:
    from sb3_dmamba.data import load_trajectories

    source = plan.dataset
    if source is None and model.task is not None:
        source = model.task.dataset
    if source is None:
        raise DatasetError("there is nothing to learn from: name a dataset with --dataset")
    trajectories = load_trajectories(source, **plan.options)
    if plan.resume is not None:
        _compare(model.dataset.source, trajectories.source, plan)
    return trajectories


def _compare(before: str, now: str, plan: _Plan) -> None:
    """Say so where a run does not go on with the data that it has learned from.

    Raises:
        DatasetError: Nobody asked for that: the dataset is the task's.
    """
    if before == now:
        return
    if plan.dataset is None:
        raise DatasetError(
            f"{plan.resume} has learned from {before!r}, and the task's dataset is {now!r}: name "
            f"the run's dataset with --dataset and --option, as when it started"
        )
    typer.echo(f"Note: the run has learned from {before!r} and goes on with {now!r}.", err=True)


# --- Interrupted runs ----------------------------------------------------------------------------


@contextmanager
def _say_if_interrupted(plan: _Plan) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say_nothing_was_trained(plan)
        raise


def _keep(plan: _Plan, model: DecisionMamba, first: int) -> None:
    """Save a model whose training was interrupted between two updates; say so on stderr.

    Args:
        plan: What the command line asked for.
        model: The model.
        first: Updates that it had before this run.

    Raises:
        OSError: It cannot be written.
    """
    from sb3_dmamba.training.loop import Interrupts

    done, total = model.num_timesteps, model._total_timesteps
    if done == first:
        _say_nothing_was_trained(plan)
        return
    path = plan.checkpoint(done)
    with Interrupts().held():
        model.save(path)
    if done >= total:
        typer.echo(f"All {done:,} updates are done: {path}", err=True)
        typer.echo(f"Evaluate it with: dmamba evaluate {shlex.quote(str(path))}", err=True)
        return
    typer.echo(f"Kept what was trained, {done:,} of {total:,} updates: {path}", err=True)
    _say_how_to_continue(path)


def _say_what_is_left(plan: _Plan, model: DecisionMamba, first: int) -> None:
    """Say on stderr that an update was cut off half-way, and where the run can go on."""
    done, every = model.num_timesteps, plan.checkpoint_every
    typer.echo(
        f"The model was cut off in the middle of update {done + 1:,}, and is not kept.", err=True
    )
    if every and done - first >= every:
        _say_how_to_continue(plan.checkpoint(first + (done - first) // every * every))
    elif plan.resume is not None:
        _say_how_to_continue(plan.resume)


def _say_nothing_was_trained(plan: _Plan) -> None:
    """Say on stderr that a run was interrupted before its first update."""
    if plan.resume is None:
        typer.echo("Nothing was trained.", err=True)
        return
    typer.echo(f"Nothing was trained since {plan.resume}.", err=True)
    _say_how_to_continue(plan.resume)


def _say_how_to_continue(path: Path) -> None:
    typer.echo(f"Continue with: dmamba train --resume {shlex.quote(str(path))}", err=True)


# --- The recipe ----------------------------------------------------------------------------------


def describe_changes(config: DecisionMambaConfig, task: Task | None) -> str | None:
    """Name the settings of a run that are not its recipe's.

    Args:
        config: The run's settings.
        task: What has the recipe; None: the paper's defaults are it.

    Returns:
        Each with its value and the recipe's in parentheses, or None where there is none. What
        follows from another number of updates (a shorter warm-up) is not named.
    """
    recipe = DecisionMambaConfig() if task is None else task.config()
    followed = recipe
    if config.n_updates != recipe.n_updates and task is not None:
        followed = task.config(n_updates=config.n_updates)
    named = []
    for name in (field.name for field in dataclasses.fields(config)):
        before = recipe if name == "n_updates" else followed
        if getattr(config, name) != getattr(before, name):
            named.append(f"{name}={getattr(config, name)!r} ({getattr(before, name)!r})")
    return ", ".join(named) or None
