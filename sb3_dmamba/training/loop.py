"""The training loop: updates, callbacks, log, progress bar and interrupts.

:func:`run_updates` is the loop; one pass takes one optimiser step, in
:meth:`sb3_dmamba.training.updater.Updater.update`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmamba.data import WindowSampler
from sb3_dmamba.envs.batches import check_returns_unscaled
from sb3_dmamba.errors import (
    ConditioningError,
    ConfigError,
    DivergenceError,
    MissingDependencyError,
    UnknownTaskError,
)
from sb3_dmamba.io import warn_caller
from sb3_dmamba.machine import PASSIVE_WAITING, read_waiting_seconds
from sb3_dmamba.ops._cpu import is_compiling
from sb3_dmamba.training.distributed import Processes, train_together
from sb3_dmamba.training.updater import UpdateMetrics, Updater


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
    """Update until ``model._total_timesteps`` is reached, or a callback stops.

    At Ctrl-C the current update is finished first, with several processes the same one in all; a
    second Ctrl-C does not wait and raises UpdateInterrupted.
    """
    if processes.size > 1:
        processes.check_alike(_describe(model, updater, sampler))
    is_leader = processes.is_leader
    if not is_leader:
        model._logger = Logger(None, [])  # even if the caller has set one in every process
    elif not model._custom_logger:
        model._logger = _make_logger(model, log_name)
    progress = [UpdateProgress()] if progress_bar and is_leader else []
    watch = [StarvationWatch()] if is_leader and updater.policy.device.type == "cpu" else []
    given = as_callbacks(callback) if is_leader else []
    interrupts = Interrupts()
    # Several processes stop together, at the end of an update.
    held = interrupts.held() if processes.size > 1 else nullcontext()
    try:
        with held, train_together(updater, processes) as agree, explain_missing_environment(model):
            callbacks = start_callbacks(model, [*given, *progress, *watch])
            _run(model, updater, sampler, callbacks, log_interval, interrupts, agree)
    finally:
        for bar in progress:
            bar.close()


def _describe(model: BaseAlgorithm, updater: Updater, sampler: WindowSampler) -> dict[str, Any]:
    """Return values that must be the same in every process."""
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
    agree: Callable[[bool], bool],
) -> None:
    total_timesteps = model._total_timesteps  # callbacks read it in their locals
    begun_at, log = model.num_timesteps, UpdateLog()
    model._update_log = log  # type: ignore[attr-defined]  # for model.dump_logs
    callback.on_training_start(locals(), globals())
    agree(True)
    while model.num_timesteps < total_timesteps:
        with interrupts.held():
            counters = model._n_updates, model.num_timesteps, total_timesteps
            metrics = updater.update(sampler, *counters)
            model.num_timesteps += 1
            model._n_updates += 1
        model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
        log.recent.append(metrics)
        callback.update_locals(locals())
        keep_going = agree(callback.on_step() and not interrupts.is_pending)
        is_last = not keep_going or model.num_timesteps >= total_timesteps
        is_due = (model.num_timesteps - begun_at) % log_interval == 0
        if log.recent and (is_due or is_last):
            log.write(model)
        if not keep_going:
            break
    callback.on_training_end()
    agree(False)


_SHORTEST = sys.float_info.epsilon  # seconds, where a coarse clock has not advanced


class UpdateLog:
    """The updates since the last line of the log."""

    def __init__(self) -> None:
        self.recent: list[UpdateMetrics] = []
        self._written_at = time.perf_counter()

    def write(self, model: BaseAlgorithm) -> None:
        """Write a line of the log: means over the updates since the last one, and the speed.

        Raises DivergenceError: a loss or gradient is not finite.
        """
        logger, recent = model.logger, self.recent
        now = time.perf_counter()
        seconds = max(now - self._written_at, _SHORTEST)
        self.recent, self._written_at = [], now
        if recent:
            losses = torch.stack([metrics.loss for metrics in recent]).tolist()
            grad_norms = torch.stack([metrics.grad_norm for metrics in recent]).tolist()
            _check_finite(model, recent, losses, grad_norms)
            logger.record("train/loss", sum(losses) / len(losses))
            logger.record("train/grad_norm", sum(grad_norms) / len(grad_norms))
            logger.record("train/learning_rate", recent[-1].learning_rate)
            logger.record("time/updates_per_second", len(recent) / seconds)
        logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
        elapsed = max((time.time_ns() - model.start_time) / 1e9, _SHORTEST)
        n_done = model.num_timesteps - model._num_timesteps_at_start
        logger.record("time/fps", int(n_done / elapsed))
        logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
        logger.dump(model.num_timesteps)


def _check_finite(
    model: BaseAlgorithm,
    recent: Sequence[UpdateMetrics],
    losses: Sequence[float],
    grad_norms: Sequence[float],
) -> None:
    for index, (loss, grad_norm) in enumerate(zip(losses, grad_norms, strict=True)):
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergenceError(
                f"update {model._n_updates - len(recent) + index + 1} had loss {loss} and gradient "
                f"norm {grad_norm}, which are not finite: resume from an earlier checkpoint with a "
                f"lower learning_rate ({recent[index].learning_rate:g} at this update) or "
                f"max_grad_norm, more warmup_updates, or precision='fp32'",
                value=(loss, grad_norm),
            )


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """Convert any form of ``callback`` that Stable-Baselines3 takes into a list."""
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]


def start_callbacks(model: BaseAlgorithm, callbacks: Sequence[BaseCallback]) -> BaseCallback:
    """Join callbacks and initialise them with a model.

    An ``EvalCallback`` needs the model to have an environment; a model without one, or whose own
    cannot be made here, gets the callback's.

    Raises:
        ConditioningError: The environment of an ``EvalCallback`` has no return-to-go, or scales it.
        ConfigError: A callback counts the episodes of a training that plays none.
    """
    for callback in _walk(callbacks):
        if isinstance(callback, StopTrainingOnMaxEpisodes):
            raise _no_rollouts(type(callback).__name__)
        if not isinstance(callback, EvalCallback):
            continue
        space = callback.eval_env.observation_space
        if not isinstance(space, spaces.Dict) or "return_to_go" not in space.spaces:
            raise ConditioningError(
                "an EvalCallback evaluates in an environment that shows no return-to-go: give it "
                "EvalCallback(ReturnToGo(env, target_return), ...), or use fit(eval_env=env, "
                "eval_freq=...)",
                setting="eval_env",
            )
        check_returns_unscaled(callback.eval_env)
        try:
            env = model.get_env()
        except (MissingDependencyError, UnknownTaskError):
            env = None
        if env is None:
            model.set_env(callback.eval_env)
    with warnings.catch_warnings():
        # True of algorithms that learn in their environment, unlike this one.
        warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
        return model._init_callback(list(callbacks))


def _walk(callbacks: Sequence[BaseCallback]) -> Iterator[BaseCallback]:
    """Yield every callback, those inside other callbacks included."""
    for callback in callbacks:
        yield callback
        inner = callback.callbacks if isinstance(callback, CallbackList) else []
        if isinstance(callback, EventCallback) and callback.callback is not None:
            inner = [callback.callback]
        yield from _walk(inner)


# What a callback finds in its locals where Stable-Baselines3 plays episodes.
_OF_ROLLOUTS = ("dones", "infos", "rewards", "actions", "new_obs", "rollout_buffer")


def _no_rollouts(what: str) -> ConfigError:
    message = (
        f"{what} needs the steps of an environment, and learning from a dataset takes none: say "
        f"how long to train with n_steps, or stop by an EvalCallback's scores "
        f"(StopTrainingOnRewardThreshold, StopTrainingOnNoModelImprovement)"
    )
    return ConfigError(message, setting="callback", value=what)


@contextmanager
def explain_missing_environment(model: BaseAlgorithm) -> Iterator[None]:
    """Convert what callbacks raise where there is no environment, or no steps in it.

    Raises:
        UnknownTaskError: A callback needs the model's environment, and there is none.
        ConfigError: A callback looks for the steps of an environment in its locals.
    """
    try:
        yield
    except KeyError as error:
        if error.args[:1] not in [(name,) for name in _OF_ROLLOUTS]:
            raise
        raise _no_rollouts(f"a callback that reads locals[{error}]") from error
    except AssertionError as error:
        if "get_env()" not in str(error) or model.get_env() is not None:
            raise
        raise UnknownTaskError(
            "a callback needs the model's environment, and neither the task nor the dataset names "
            "one: pass env= to DecisionMamba or call model.set_env; instead of ProgressBarCallback "
            "fit(progress_bar=True) needs none",
            setting="env",
        ) from error


class Evaluations(EvalCallback):
    """Stable-Baselines3's ``EvalCallback``, with a one-line report."""

    def __init__(self, env: VecEnv, eval_freq: int, n_eval_episodes: int, verbose: int) -> None:
        super().__init__(env, eval_freq=eval_freq, n_eval_episodes=n_eval_episodes, verbose=0)
        self._prints = verbose > 0
        self._returns: list[float] = []

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self._returns = locals_["episode_rewards"]  # filled by evaluate_policy

    def _on_step(self) -> bool:
        self._returns = []
        keep_going = super()._on_step()
        if self._returns and self._prints:
            mean, deviation = np.mean(self._returns), np.std(self._returns)
            print(  # noqa: T201  # a progress bar shows it above itself
                f"update {self.num_timesteps}: mean return {mean:.2f}, "
                f"standard deviation {deviation:.2f}, {len(self._returns)} episodes"
            )
        return keep_going


_REFRESH_SECONDS = 0.2  # between two reads of the loss, each of which synchronises with a GPU


class UpdateProgress(BaseCallback):
    """Show loss, updates per second and time left while ``fit`` runs, on stderr."""

    def _on_training_start(self) -> None:
        console = Console(stderr=True)
        total = self.locals["total_timesteps"] - self.model.num_timesteps
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} updates/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            # Other output to the same terminal is printed above the bar.
            redirect_stdout=console.is_jupyter or sys.stdout.isatty(),
        )
        self.progress.start()
        self.looked_at = -math.inf
        doing = "preparing kernels" if is_compiling() else "fit"
        self.bar = self.progress.add_task(doing, total=total, loss="-", rate="-")

    def _on_step(self) -> bool:
        task = self.progress.tasks[0]
        if time.monotonic() - self.looked_at >= _REFRESH_SECONDS:
            self.looked_at = time.monotonic()
            loss = float(self.locals["metrics"].loss)
            rate = f"{task.speed:.1f}" if task.speed else "-"
            self.progress.update(self.bar, description="fit", loss=f"{loss:.4f}", rate=rate)
        self.progress.advance(self.bar)
        return True

    def close(self) -> None:
        """Restore the terminal, also after an exception."""
        if hasattr(self, "progress"):
            self.progress.stop()

    def _on_training_end(self) -> None:
        self.close()


_WATCH_SECONDS = 10.0
_STARVED = 0.3  # threads that wait for a core, on average: updates wait for the slowest thread


class StarvationWatch(BaseCallback):
    """Warn once in a process that training waits for cores that something else uses."""

    has_warned = False

    def _on_training_start(self) -> None:
        self._begun, self._waited = time.perf_counter(), read_waiting_seconds()

    def _on_step(self) -> bool:
        seconds = time.perf_counter() - self._begun
        if seconds < _WATCH_SECONDS or StarvationWatch.has_warned:
            return True
        waiting = (read_waiting_seconds() - self._waited) / seconds
        if waiting > _STARVED:
            StarvationWatch.has_warned = True
            warn_caller(_describe_starvation(waiting))
        self._on_training_start()
        return True


def _describe_starvation(waiting: float) -> str:
    threads, advice = torch.get_num_threads(), "end what else computes here"
    if threads > 1 and not os.environ.keys() & PASSIVE_WAITING.keys():
        variables = " ".join(f"{name}={value}" for name, value in PASSIVE_WAITING.items())
        advice = f"start Python with {variables}, so that threads wait asleep, or {advice}"
    return (
        f"training is short of cores: in the last {_WATCH_SECONDS:.0f} s {waiting:.1f} of its "
        f"threads on average were ready and had none (torch has {threads} threads): {advice}"
    )


_ONE_PRESS_SECONDS = 1.0  # a launcher may repeat the signal of the terminal


class UpdateInterrupted(KeyboardInterrupt):
    """A second Ctrl-C ended an update half-way: the weights belong to no number of updates."""


class Interrupts:
    """Delays SIGINT, which would otherwise stop a model half-way through an update.

    A second Ctrl-C more than a second later is not delayed, since the block may hang.

    Attributes:
        is_pending: Whether an interrupt is delayed.
    """

    def __init__(self) -> None:
        self.is_pending = False
        self._first_at = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish a block before an interrupt that arrives meanwhile is raised.

        Nothing is delayed outside the main thread, or if SIGINT is ignored or has another handler,
        such as that of an outer block. An exception of the block replaces the interrupt.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            was_pending, self.is_pending = self.is_pending, False
        if was_pending:
            raise KeyboardInterrupt

    def _receive(self, signal_number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.is_pending:
            self.is_pending, self._first_at = True, now
        elif now - self._first_at >= _ONE_PRESS_SECONDS:
            raise UpdateInterrupted
