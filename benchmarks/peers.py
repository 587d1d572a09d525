"""The peer: d3rlpy's Decision Transformer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from benchmarks.contenders import Agreement, Contender, UnavailableError
from benchmarks.request import Request
from sb3_dmamba import Trajectories

_CHECKED_UPDATES = 30


def require_d3rlpy() -> Any:
    """Import d3rlpy.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import d3rlpy
    except ImportError as error:
        raise UnavailableError("d3rlpy is not installed: pip install d3rlpy") from error
    import structlog

    warnings = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=warnings)  # it tells of every replay buffer
    return d3rlpy


def make_peer(request: Request, *, compiled: bool = False) -> Any:
    """Return a Decision Transformer of the request's width, layers and context.

    Args:
        request: Size and device.
        compiled: Whether d3rlpy compiles the update and records it as a CUDA graph.

    Raises:
        UnavailableError: d3rlpy is not installed, or does not compile on this device.
    """
    d3rlpy = require_d3rlpy()
    if compiled and not request.on_gpu:
        raise UnavailableError(
            f"d3rlpy {d3rlpy.__version__} compiles on CUDA alone: on a CPU compile_graph=True "
            f"changes nothing"
        )
    shape = request.shape
    config = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=shape.batch_size,
        context_size=shape.context,
        num_layers=shape.n_layers,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([shape.width]),
        learning_rate=1e-3,  # so that its loss falls within the few updates of the gate
        compile_graph=compiled,
    )
    return config.create(device="cuda:0" if request.on_gpu else "cpu:0")


def make_buffer(data: Trajectories, slicer: Any = None) -> Any:
    """Return d3rlpy's replay buffer of the same episodes.

    Args:
        data: The episodes; of stacked frames, the single ones.
        slicer: What cuts windows out of them; None is d3rlpy's default.

    Raises:
        UnavailableError: d3rlpy is not installed.
    """
    d3rlpy = require_d3rlpy()
    episodes = []
    for each in data:
        observations = each.observations[:, None] if slicer else each.observations
        actions = each.actions if each.actions.ndim > 1 else each.actions[:, None]
        episodes.append(
            d3rlpy.dataset.Episode(observations, actions, each.rewards[:, None], each.terminated)
        )
    return d3rlpy.dataset.create_infinite_replay_buffer(episodes, trajectory_slicer=slicer)


def make_peer_update(data: Trajectories, request: Request, *, compiled: bool = False) -> Contender:
    """Return d3rlpy's update on a batch that was drawn before, in its favour.

    Raises:
        UnavailableError: As :func:`make_peer`.
    """
    peer = make_peer(request, compiled=compiled)
    buffer = make_buffer(data)
    batch = buffer.sample_trajectory_batch(request.shape.batch_size, request.shape.context)
    peer.build_with_dataset(buffer)
    modules = [each for each in vars(peer.impl.modules).values() if isinstance(each, nn.Module)]

    def update() -> float:
        try:
            return float(peer.update(batch)["loss"])
        except RuntimeError as error:  # torch.compile has no compiler, or a graph fails
            if not compiled:
                raise
            raise UnavailableError(f"compiling fails: {str(error).splitlines()[0]}") from error

    n_rows, n_steps = batch.masks.shape[:2]
    return Contender(
        update,
        lambda: check_learning(update, n_rows * n_steps, request),
        {
            "parameters": sum(each.numel() for module in modules for each in module.parameters()),
            "tokens": 3 * n_rows * n_steps,
        },
    )


def check_learning(update: Callable[[], float], n_steps: int, request: Request) -> Agreement:
    """Check a different network: it sees as many steps, and its loss is finite and falls.

    Its outputs have nothing to be compared with. The error is the last losses over the first.
    """
    expected = request.shape.batch_size * request.shape.context
    if n_steps != expected:
        return Agreement(f"steps of a batch, {n_steps} and not {expected},", math.inf, 0.0)
    losses = [update() for _ in range(_CHECKED_UPDATES)]
    ratio = float(np.mean(losses[-5:]) / np.mean(losses[:5]))
    what = f"losses after {_CHECKED_UPDATES} updates, over those before,"
    return Agreement(what, ratio, 0.95, "loss to {:.0%}")
