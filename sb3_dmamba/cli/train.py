"""``dmamba train``: train a model on a task's data, with checkpoints to resume from."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli import output as cli
from sb3_dmamba.config import DecisionMambaConfig, Recipe
from sb3_dmamba.errors import ConfigError, DatasetError, ModelFileError

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.data import Trajectories
    from sb3_dmamba.tasks import Task

_PANEL = "Checkpoints and evaluation"
_CHECKPOINT = re.compile(r"model_\d+_steps\.zip")


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
        str | None, cli.value(f"What to learn from. {cli.SOURCES_HELP}", "SOURCE", "the task's")
    ] = None,
    option: cli.OptionOption = None,
    updates: Annotated[
        int | None,
        cli.number(
            "Optimiser steps; with --resume, how many more.", "the task's, or what was left"
        ),
    ] = None,
    recipe: Annotated[
        Recipe | None,
        cli.value(
            "Settings to start from: default measures best on small data.",
            "default|paper",
            "the task's",
        ),
    ] = None,
    setting: cli.SettingOption = None,
    seed: Annotated[
        int | None, cli.number("Of weights, batches and dropout.", "drawn, and printed", least=0)
    ] = None,
    device: cli.DeviceOption = "auto",
    resume: Annotated[
        Path | None,
        cli.value(
            "Continue from this checkpoint or model, or a run's folder from its newest, exactly as "
            "if it had not stopped.",
            "MODEL",
            False,
            panel=_PANEL,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int, cli.number("Updates between two checkpoints; 0 is none.", panel=_PANEL, least=0)
    ] = 0,
    eval_every: Annotated[
        int,
        cli.number(
            "Updates between two evaluations at the task's target; 0 is none.",
            panel=_PANEL,
            least=0,
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        cli.value(
            "Folder for model.zip, progress.csv and checkpoints.",
            "FOLDER",
            "runs/TASK",
            panel="Output",
        ),
    ] = None,
    overwrite: cli.OverwriteOption = False,
    tensorboard: Annotated[
        Path | None, cli.value("Log to TensorBoard there.", "FOLDER", panel="Output")
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train on a task's recorded data and write the model.

    torchrun --nproc-per-node=2 -m sb3_dmamba train ... does so in two processes.
    """
    if (task is None) == (resume is None):
        raise typer.BadParameter("give either a task to start from or a checkpoint to --resume")
    others = [text for text in setting or () if not text.startswith(("backend=", "precision="))]
    if resume is not None and (others or recipe or seed is not None):
        raise typer.BadParameter(
            "--resume continues with the checkpoint's settings and seed: leave --recipe, --set and "
            "--seed out (but for --set backend=auto, where its backend does not work here, and "
            "--set precision=fp32, where its precision is slow or absent)"
        )
    options = cli.parse_options(option)
    with cli.command_output(as_json, debug) as out:
        resume = _find_newest(resume) if resume is not None and resume.is_dir() else resume
        folder, settings = output or _default_output(task, resume), cli.read_settings(setting)
        how = updates, recipe, settings, seed, device, checkpoint_every, eval_every, tensorboard
        plan = _Plan(task, resume, dataset, options, folder, *how)
        if plan.model_path.exists() and not overwrite and resume is None:
            fix = "give another --output, --resume to train it on, or --overwrite"
            message = f"{plan.model_path} exists: {fix}"
            raise ConfigError(message, setting="--output", value=str(folder))
        _run(plan, out)


@dataclass(frozen=True)
class _Plan:
    """The options of one call."""

    task: str | None
    resume: Path | None
    dataset: str | None
    options: dict[str, Any]
    output: Path
    updates: int | None
    recipe: Recipe | None
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

    def checkpoint(self, n_updates: int) -> Path:
        """Return the path that Stable-Baselines3's callback gives a checkpoint."""
        return self.output / "checkpoints" / f"model_{n_updates}_steps.zip"


def _find_newest(folder: Path) -> Path:
    """Return the model or checkpoint of a run's folder that has the most updates."""
    files = [*folder.glob("model_*_steps.zip"), *folder.glob("checkpoints/model_*_steps.zip")]
    found = {int(file.stem.split("_")[1]): file for file in files if _CHECKPOINT.match(file.name)}
    if (folder / "model.zip").is_file():
        cli.import_algorithm()
        from sb3_dmamba.model_file import SavedModel

        model = SavedModel.read(folder / "model.zip")
        found[model.counters["num_timesteps"]] = folder / "model.zip"
    if not found:
        message = (
            f"{folder} has neither a model.zip nor a checkpoints/model_*_steps.zip: nothing was "
            f"saved before it stopped; start it again, or name a model"
        )
        raise ModelFileError(message, path=folder, setting="--resume", value=str(folder))
    return found[max(found)]


def _default_output(task: str | None, resume: Path | None) -> Path:
    """Return the folder of a run: its task's, or that of the run that it continues."""
    if resume is None:
        return Path("runs") / str(task).replace("/", "-").replace(":", "-")
    return resume.parent.parent if resume.parent.name == "checkpoints" else resume.parent


def _run(plan: _Plan, out: cli.Output) -> None:
    with _report_interrupt(plan):
        model = _make_model(plan)
    from sb3_dmamba.context import make_factory
    from sb3_dmamba.training.distributed import join_processes

    if plan.eval_every and (env := model._context.find_env()) is not None:
        with make_factory(env)():  # before the data is loaded: it may need an extra
            pass
    model._compile_ahead()
    with join_processes(model.device) as processes:
        with _report_interrupt(plan), processes.leader_first():
            trajectories = _load_dataset(plan, model)
        if processes.is_leader:
            _train(plan, model, trajectories, processes.size, out)
        else:  # only rank 0 logs and saves
            _fit(plan, model, trajectories)


def _make_model(plan: _Plan) -> DecisionMamba:
    decision_mamba = cli.import_algorithm()
    import torch

    from sb3_dmamba.training.distributed import local_device

    own = local_device(plan.device) if torch.cuda.is_available() else plan.device
    device = cli.check_device(str(own))
    if plan.resume is None:
        updates = {} if plan.updates is None else {"n_updates": plan.updates}
        settings = {**plan.settings, **updates}
        named: dict[str, Any] = {"recipe": plan.recipe, "seed": plan.seed, "device": device}
        return decision_mamba(plan.task, **named, **settings)
    model = decision_mamba.load(plan.resume, device=device, **plan.settings)
    if plan.updates is None and model.num_timesteps >= model._total_timesteps:
        done = f"{plan.resume} has done all of its {model.num_timesteps:,} updates"
        raise ConfigError(f"{done}: say with --updates how many more", setting="--updates")
    return model


def _load_dataset(plan: _Plan, model: DecisionMamba) -> Trajectories:
    """Load the run's dataset, and note where a resumed run goes on with another."""
    from sb3_dmamba.data import load_trajectories

    source = plan.dataset
    if source is None and model.task is not None:
        source = model.task.dataset
    if source is None:
        message = "there is nothing to learn from: name a dataset with --dataset"
        raise DatasetError(message, setting="--dataset")
    trajectories = load_trajectories(source, **plan.options)
    before, now = model.dataset.source, trajectories.source
    if plan.resume is None or before == now:
        return trajectories
    if plan.dataset is None:
        message = (
            f"{plan.resume} has learned from {before!r}, and the task's dataset is {now!r}: name "
            f"the run's dataset with --dataset and --option, as when it started"
        )
        raise DatasetError(message, setting="--dataset", value=now)
    typer.echo(f"Note: the run has learned from {before!r} and goes on with {now!r}.", err=True)
    return trajectories


def _fit(plan: _Plan, model: DecisionMamba, trajectories: Trajectories) -> None:
    from stable_baselines3.common import callbacks

    folder, every = str(plan.output / "checkpoints"), plan.checkpoint_every
    saving = callbacks.CheckpointCallback(every, folder, "model") if every else None
    n_steps = plan.updates if plan.resume is not None else None
    how: dict[str, Any] = {"eval_freq": plan.eval_every, "progress_bar": True}
    model.fit(trajectories, n_steps, callback=saving, **how)


def _train(
    plan: _Plan, model: DecisionMamba, trajectories: Trajectories, n_processes: int, out: cli.Output
) -> None:
    from sb3_dmamba.machine import choose_precision
    from sb3_dmamba.training.loop import UpdateInterrupted

    out.console.print(trajectories.summary())
    together = f", {n_processes} processes" if n_processes > 1 else ""
    precision = choose_precision(model.config.precision, model.device)
    computing = "" if precision == "fp32" else f", {precision}"
    out.line(f"seed {model.seed}, device {model.device}{computing}{together}")
    if changes := describe_changes(model.config, model.task):
        out.line(f"settings that differ from the recipe: {changes}")
    first = model.num_timesteps
    model._prints_evaluations = True
    model.set_logger(cli.make_csv_logger(plan.output, first, plan.tensorboard))
    start = time.perf_counter()
    try:
        _fit(plan, model, trajectories)
        seconds = time.perf_counter() - start
        model.save(plan.model_path)
    except UpdateInterrupted:
        _report_lost_update(plan, model, first)
        raise
    except KeyboardInterrupt:
        _save_interrupted(plan, model, first)
        raise
    finally:
        model.logger.close()
    done = model.num_timesteps - first
    out.line(f"{done:,} updates in {seconds:.0f} s")
    out.files([plan.model_path])
    out.line(f"next: {_evaluate_command(model, plan.model_path)}")
    counts = {"updates": done, "total_updates": model.num_timesteps, "seconds": seconds}
    where = {"seed": model.seed, "device": str(model.device), "processes": n_processes}
    about = {"dataset": trajectories.summary().to_dict(), "config": model.config.to_dict()}
    out.emit({"model": str(plan.model_path), **counts, **where, **about})


def _evaluate_command(model: DecisionMamba, path: Path) -> str:
    """Return the command that evaluates a model; where it knows no environment, with --env."""
    env = "" if model._context.find_env() is not None else " --env ID"
    return f"dmamba evaluate {shlex.quote(str(path))}{env}"


# --- Interrupted runs: messages on stderr --------------------------------------------------------


@contextmanager
def _report_interrupt(plan: _Plan) -> Iterator[None]:
    """Report a Ctrl-C before the first update."""
    try:
        yield
    except KeyboardInterrupt:
        _report_nothing_trained(plan)
        raise


def _report_nothing_trained(plan: _Plan) -> None:
    if plan.resume is None:
        typer.echo("Nothing was trained.", err=True)
        return
    typer.echo(f"Nothing was trained since {plan.resume}.", err=True)
    _print_resume_command(plan.resume)


def _save_interrupted(plan: _Plan, model: DecisionMamba, first: int) -> None:
    """Save a model that was interrupted between two updates; ``first`` were done before."""
    from sb3_dmamba.training.loop import Interrupts

    done, total = model.num_timesteps, model._total_timesteps
    if done == first:
        _report_nothing_trained(plan)
        return
    path = plan.checkpoint(done)
    with Interrupts().held():
        model.save(path)
    if done >= total:
        typer.echo(f"All {done:,} updates are done: {path}", err=True)
        typer.echo(f"Evaluate it with: {_evaluate_command(model, path)}", err=True)
        return
    typer.echo(f"Kept what was trained, {done:,} of {total:,} updates: {path}", err=True)
    _print_resume_command(path)


def _report_lost_update(plan: _Plan, model: DecisionMamba, first: int) -> None:
    """Report that an update was cut off half-way, and name the last checkpoint."""
    done, every = model.num_timesteps, plan.checkpoint_every
    lost = f"The model was cut off in the middle of update {done + 1:,}, and is not kept."
    typer.echo(lost, err=True)
    if every and done - first >= every:
        _print_resume_command(plan.checkpoint(first + (done - first) // every * every))
    elif plan.resume is not None:
        _print_resume_command(plan.resume)


def _print_resume_command(path: Path) -> None:
    typer.echo(f"Continue with: dmamba train --resume {shlex.quote(str(path))}", err=True)


# --- The recipe ----------------------------------------------------------------------------------


_BY_THE_DATA = (
    *("n_updates", "return_scale", "max_timestep", "time_encoding"),
    "channel_mixing",
)  # where the recipe has None


def describe_changes(config: DecisionMambaConfig, task: Task | None) -> str | None:
    """List the settings that differ from a task's recipe, or without a task from the defaults."""
    recipe = DecisionMambaConfig() if task is None else task.config()
    scaled = recipe if task is None else task.config(n_updates=config.n_updates)
    named = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        expected = getattr(recipe if field.name == "n_updates" else scaled, field.name)
        if value != expected and not (field.name in _BY_THE_DATA and expected is None):
            named.append(f"{field.name}={value!r} ({expected!r})")
    return ", ".join(named) or None
