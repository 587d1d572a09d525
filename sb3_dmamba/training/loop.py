"""The update loop."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_dmamba.data import WindowSampler
from sb3_dmamba.errors import DivergenceError
from sb3_dmamba.training.progress import UpdateProgress
from sb3_dmamba.training.updater import UpdateMetrics, Updater

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["run_updates"]


def run_updates(
    model: BaseAlgorithm,
    updater: Updater,
    sampler: WindowSampler,
    callback: MaybeCallback,
    log_interval: int,
    log_name: str,
    progress_bar: bool,
) -> None:
    """Update until ``model.num_timesteps`` reaches ``model._total_timesteps``, or a callback stops.

    Args:
        model: Holds the counters and the logger.
        updater: Takes the optimiser steps.
        sampler: Draws the batches.
        callback: ``on_step`` is called once an update, as Stable-Baselines3 calls it.
        log_interval: Updates between two lines of the log.
        log_name: Name of the run in TensorBoard.
        progress_bar: Whether to show one.

    Raises:
        DivergenceError: The mean loss since the last line is not finite.
    """
    if not model._custom_logger:
        is_new_run = model.num_timesteps == 0
        model._logger = configure_logger(model.verbose, model.tensorboard_log, log_name, is_new_run)
    progress = [UpdateProgress()] if progress_bar else []
    user = [] if callback is None else callback if isinstance(callback, list) else [callback]
    merged = model._init_callback([*map(_as_callback, user), *progress])
    try:
        _run(model, updater, sampler, merged, log_interval)
    finally:
        for bar in progress:
            bar.close()


def _as_callback(callback: Any) -> BaseCallback:
    if isinstance(callback, BaseCallback):
        return callback
    return ConvertCallback(callback)


def _run(
    model: BaseAlgorithm,
    updater: Updater,
    sampler: WindowSampler,
    callback: BaseCallback,
    log_interval: int,
) -> None:
    total_timesteps = model._total_timesteps  # callbacks look it up under this name
    recent: list[UpdateMetrics] = []
    logged_at = time.perf_counter()
    callback.on_training_start(locals(), globals())
    while model.num_timesteps < total_timesteps:
        metrics = updater.update(sampler, model._n_updates, model.num_timesteps, total_timesteps)
        model.num_timesteps += 1
        model._n_updates += 1
        model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
        recent.append(metrics)
        callback.update_locals(locals())
        keep_going = callback.on_step()
        is_last = not keep_going or model.num_timesteps >= total_timesteps
        if len(recent) >= log_interval or is_last:
            now = time.perf_counter()
            _log(model, recent, len(recent) / (now - logged_at))
            logged_at, recent = now, []
        if not keep_going:
            break
    callback.on_training_end()


def _log(model: BaseAlgorithm, recent: list[UpdateMetrics], updates_per_second: float) -> None:
    loss = float(torch.stack([metrics.loss for metrics in recent]).mean())
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss is {loss} at update {model._n_updates}: lower learning_rate "
            f"({recent[-1].learning_rate:g} now) or max_grad_norm, lengthen warmup_updates, or go "
            f"back to precision='fp32'"
        )
    logger = model.logger
    logger.record("train/loss", loss)
    logger.record(
        "train/grad_norm", float(torch.stack([metrics.grad_norm for metrics in recent]).mean())
    )
    logger.record("train/learning_rate", recent[-1].learning_rate)
    logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    logger.record("time/updates_per_second", updates_per_second)
    logger.dump(model.num_timesteps)
