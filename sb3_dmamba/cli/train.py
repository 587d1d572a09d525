"""``dmamba train``: from a task to a model file, resumable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sb3_dmamba.cli.options import (
    SOURCES_HELP,
    DeviceOption,
    OptionOption,
    OverwriteOption,
    SettingOption,
    parse_options,
    read_settings,
)
from sb3_dmamba.cli.output import (
    DebugOption,
    JsonOption,
    Output,
    check_device,
    command_output,
    import_algorithm,
    make_csv_logger,
    print_files,
)
from sb3_dmamba.cli.plan import Plan, default_output
from sb3_dmamba.cli.recipes import describe_changes
from sb3_dmamba.errors import ConfigError, DatasetError
from sb3_dmamba.training.interrupts import UpdateInterrupted

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.data import Trajectories

__all__ = ["train"]


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
        plan = Plan(
            task=task,
            resume=resume,
            dataset=dataset,
            option_texts=option or [],
            options=options,
            output=output or default_output(task, resume),
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


def _run(plan: Plan, out: Output) -> None:
    from sb3_dmamba.training.distributed import join_processes

    with _say_if_interrupted(plan):
        model = _make_model(plan)
    with join_processes(model.device) as processes:
        with _say_if_interrupted(plan), processes.leader_first():
            trajectories = _load_dataset(plan, model)
        if processes.is_leader:
            _train(plan, model, trajectories, processes.size, out)
        else:  # takes part, and leaves what there is to say and to write to the first one
            _fit(plan, model, trajectories)


@contextmanager
def _say_if_interrupted(plan: Plan) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        plan.checkpoints().say_nothing_was_trained()
        raise


def _fit(plan: Plan, model: DecisionMamba, trajectories: Trajectories) -> None:
    model.fit(
        trajectories,
        plan.updates if plan.resume is not None else None,
        callback=plan.checkpoints().make_callback(),
        eval_freq=plan.eval_every,
        progress_bar=True,
    )


def _train(
    plan: Plan, model: DecisionMamba, trajectories: Trajectories, n_processes: int, out: Output
) -> None:
    out.console.print(trajectories.summary())
    together = f", {n_processes} processes" if n_processes > 1 else ""
    out.console.print(f"seed {model.seed}, device {model.device}{together}", highlight=False)
    changes = describe_changes(model.config, model.task)
    if changes is not None:
        text = f"settings that differ from the recipe: {changes}"
        out.console.print(text, soft_wrap=True, highlight=False, markup=False)
    first, checkpoints = model.num_timesteps, plan.checkpoints(n_processes)
    model.verbose = 1  # evaluations are printed
    model.set_logger(make_csv_logger(plan.output, first, plan.tensorboard))
    start = time.perf_counter()
    try:
        _fit(plan, model, trajectories)
        seconds = time.perf_counter() - start
        model.save(plan.model_path)
    except UpdateInterrupted:
        checkpoints.say_what_is_left(model, first)
        raise
    except KeyboardInterrupt:
        checkpoints.keep(model, first)
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


def _make_model(plan: Plan) -> DecisionMamba:
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


def _load_dataset(plan: Plan, model: DecisionMamba) -> Trajectories:
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


def _compare(before: str, now: str, plan: Plan) -> None:
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
