"""The update loop."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_dmamba.data import WindowSampler
from sb3_dmamba.errors import DivergenceError, MissingDependencyError
from sb3_dmamba.training.callbacks import (
    as_callbacks,
    explain_missing_environment,
    start_callbacks,
)
from sb3_dmamba.training.data_parallel import train_together
from sb3_dmamba.training.distributed import Processes
from sb3_dmamba.training.interrupts import Interrupts
from sb3_dmamba.training.progress import UpdateProgress
from sb3_dmamba.training.updater import UpdateMetrics, Updater

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["run_updates"]


def run_updates(
    model: BaseAlgorithm,
    updater: Updater,
    sampler: WindowSampler,
    processes: Processes,
    callback: MaybeCallback,
    log_interval: int,
    log_name: str,
    progress_bar: bool,
) -> None:
    """Update until ``model.num_timesteps`` reaches ``model._total_timesteps``, or a callback stops.

    Args:
        model: Holds the counters and the logger.
        updater: Takes the optimiser steps.
        sampler: Draws the batches, or this process's rows of them.
        processes: Who trains. The first one alone has callbacks, a log and a progress bar.
        callback: ``on_step`` is called once an update, as Stable-Baselines3 calls it.
        log_interval: Updates between two lines of the log.
        log_name: Name of the run in TensorBoard.
        progress_bar: Whether to show one.

    Raises:
        DivergenceError: A loss or gradient since the last line is not finite.
        ConditioningError: A callback evaluates in an environment without return-to-go.
        UnknownTaskError: A callback needs an environment, and none is known.
        MissingDependencyError: A log for TensorBoard is wanted, and it is not installed.
        ConfigError: The batch cannot be split among the processes.
        DistributedError: The processes train different things, or one of them is gone.
        KeyboardInterrupt: Ctrl-C; the update that was under way is finished first, and with
            several processes all stop after the same one.
        UpdateInterrupted: Ctrl-C for the second time, which does not wait for that.
    """
    if processes.size > 1:
        processes.check_alike(_describe(model, updater, sampler))
    is_leader = processes.is_leader
    if not is_leader:
        model._logger = Logger(None, [])  # also where the caller has given every process one
    elif not model._custom_logger:
        model._logger = _make_logger(model, log_name)
    progress = [UpdateProgress()] if progress_bar and is_leader else []
    given = as_callbacks(callback) if is_leader else []
    interrupts = Interrupts()
    # The others wait for this one wherever it is: it leaves them at the end of an update alone.
    together = interrupts.held() if processes.size > 1 else nullcontext()
    try:
        with together, train_together(updater, processes), explain_missing_environment(model):
            callbacks = start_callbacks(model, [*given, *progress])
            _run(model, updater, sampler, callbacks, log_interval, interrupts)
    finally:
        for bar in progress:
            bar.close()


def _describe(model: BaseAlgorithm, updater: Updater, sampler: WindowSampler) -> dict[str, Any]:
    """Return what must be the same in every process that trains the model."""
    counters = ("num_timesteps", "_total_timesteps", "_n_updates")
    return {
        **updater.schedule.to_dict(),
        **{name.strip("_"): getattr(model, name) for name in counters},
        "the number of the dataset's steps": sampler.trajectories.n_steps,
        "the sum of the dataset's returns": float(sampler.trajectories.returns.sum()),
    }


def _make_logger(model: BaseAlgorithm, log_name: str) -> Logger:
    is_new_run = model.num_timesteps == 0
    try:
        return configure_logger(model.verbose, model.tensorboard_log, log_name, is_new_run)
    except ImportError as error:
        raise MissingDependencyError(
            "tensorboard", "write logs for TensorBoard", "tensorboard"
        ) from error


def _run(
    model: BaseAlgorithm,
    updater: Updater,
    sampler: WindowSampler,
    callback: BaseCallback,
    log_interval: int,
    interrupts: Interrupts,
) -> None:
    total_timesteps = model._total_timesteps  # callbacks look it up under this name
    recent: list[UpdateMetrics] = []
    logged_at = time.perf_counter()
    callback.on_training_start(locals(), globals())
    updater.agree(True)
    while model.num_timesteps < total_timesteps:
        with interrupts.held():
            counters = model._n_updates, model.num_timesteps, total_timesteps
            metrics = updater.update(sampler, *counters)
            model.num_timesteps += 1
            model._n_updates += 1
        model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
        recent.append(metrics)
        callback.update_locals(locals())
        keep_going = updater.agree(callback.on_step() and not interrupts.is_pending)
        is_last = not keep_going or model.num_timesteps >= total_timesteps
        if len(recent) >= log_interval or is_last:
            now = time.perf_counter()
            _log(model, recent, len(recent) / (now - logged_at))
            logged_at, recent = now, []
        if not keep_going:
            break
    callback.on_training_end()
    updater.agree(False)


def _log(model: BaseAlgorithm, recent: list[UpdateMetrics], updates_per_second: float) -> None:
    losses = torch.stack([metrics.loss for metrics in recent]).tolist()
    grad_norms = torch.stack([metrics.grad_norm for metrics in recent]).tolist()
    for index, (loss, grad_norm) in enumerate(zip(losses, grad_norms, strict=True)):
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergenceError(
                f"update {model._n_updates - len(recent) + index + 1} had loss {loss} and gradient "
                f"norm {grad_norm}, which are not finite: resume from an earlier checkpoint with a "
                f"lower learning_rate ({recent[index].learning_rate:g} at this update) or "
                f"max_grad_norm, more warmup_updates, or precision='fp32'",
                value=(loss, grad_norm),
            )
    logger = model.logger
    logger.record("train/loss", sum(losses) / len(losses))
    logger.record("train/grad_norm", sum(grad_norms) / len(grad_norms))
    logger.record("train/learning_rate", recent[-1].learning_rate)
    logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    logger.record("time/updates_per_second", updates_per_second)
    logger.dump(model.num_timesteps)
