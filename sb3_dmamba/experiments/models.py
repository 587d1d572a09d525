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
from sb3_dmamba.data.samplers import WindowSampler
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


_N_IMPORTANCE_BATCHES = 20


def measure_return_importance(
    model: DecisionMamba | Peer, trajectories: Trajectories
) -> float | None:
    """Return the loss with returns-to-go permuted among windows, as a multiple of the loss.

    At 1 the return says nothing about the actions that the rest of the window does not. None for
    a peer.

    Source: permutation importance, Breiman 2001.
    """
    if not isinstance(model, DecisionMamba):
        return None
    config = model.config
    sampler = WindowSampler(trajectories, config.context_length, config.batch_size, seed=0)
    generator = torch.Generator().manual_seed(0)
    network, device = model.policy.model.eval(), model.device
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        for index in range(_N_IMPORTANCE_BATCHES):
            batch = sampler.sample(index).to(device)
            observations, actions, returns_to_go, timesteps = batch.inputs()
            permuted = returns_to_go[torch.randperm(len(returns_to_go), generator=generator)]
            for place, given in enumerate((returns_to_go, permuted)):
                predictions = network(observations, actions, given, timesteps)
                losses = network.head.losses(predictions, actions)
                sums[place] += losses[batch.padding_mask].sum().double().cpu()
    return float(sums[1] / sums[0])


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
