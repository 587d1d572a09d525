"""The model that a run trains: opened, fitted to its data, and the cost of its updates."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.runs import Run, RunFolder, compute_fingerprint

if TYPE_CHECKING:
    from sb3_dmamba.experiments.peers import Peer

_N_WARM_UP, _N_MEASURED = 20, 80  # updates; the former are the first of the latter


class _EveryUpdate(BaseCallback):
    def __init__(self, after_update: Callable[[torch.Tensor | None], None]) -> None:
        super().__init__()
        self.after_update = after_update

    def _on_step(self) -> bool:
        self.after_update(self.locals["metrics"].loss)
        return True


def fit_model(
    model: DecisionMamba | Peer,
    trajectories: Trajectories,
    n_steps: int | None,
    after_update: Callable[[torch.Tensor | None], None],
) -> None:
    """Train for ``n_steps`` updates (a peer, its run's); ``after_update`` is given each loss."""
    if isinstance(model, DecisionMamba):
        model.set_logger(Logger(None, []))
        model.fit(trajectories, n_steps, callback=_EveryUpdate(after_update))
    else:  # of a peer, d3rlpy keeps the loss to itself
        model.fit(trajectories, lambda: after_update(None))


def measure_update_seconds(run: Run) -> float:
    """Measure the processor time of an update of a training, on one thread of the CPU."""
    n_threads = torch.get_num_threads()
    times: list[float] = []
    torch.set_num_threads(1)
    try:
        # d3rlpy prints
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            shortened = dataclasses.replace(run, config=run.config.replace(n_updates=_N_MEASURED))
            model = open_model(shortened, "cpu")
            fit_model(
                model, load_data(run), _N_MEASURED, lambda _: times.append(time.process_time())
            )
    finally:
        torch.set_num_threads(n_threads)
    return (times[-1] - times[_N_WARM_UP - 1]) / (_N_MEASURED - _N_WARM_UP)


def open_model(run: Run, device: str, folder: RunFolder | None = None) -> DecisionMamba | Peer:
    """Return the model of a run: new, or as the last checkpoint in the folder has it."""
    if run.algorithm:
        from sb3_dmamba.experiments.peers import Peer  # imports d3rlpy

        return Peer(run, device)
    if folder is not None and folder.model.exists():
        return DecisionMamba.load(folder.model, device=device)
    return DecisionMamba(run.task, config=run.config, seed=run.seed, device=device)


def load_data(run: Run) -> Trajectories:
    """Load a run's data.

    Raises:
        ExperimentError: The data has changed since the run was planned.
    """
    trajectories = load_trajectories(run.data.source, **run.data.options)
    fingerprint = compute_fingerprint(trajectories)
    if fingerprint != run.data.fingerprint:
        message = (
            f"the data at {run.data.source} has changed since {run.label} was planned "
            f"(fingerprint {run.data.fingerprint}, now {fingerprint}): run the experiment again"
        )
        raise ExperimentError(message, setting="data", value=run.data.source)
    return trajectories
