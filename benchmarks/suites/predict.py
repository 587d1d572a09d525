"""Acting beside d3rlpy: one prediction, and many environments at once."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.contenders import (
    Agreement,
    Candidate,
    Contender,
    Outcome,
    UnavailableError,
    gate,
    make_row,
    race,
)
from benchmarks.networks import make_config
from benchmarks.peers import make_peer
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation import StatefulActor
from sb3_dmamba.experiments.efficiency import ACTION_SPACE, OBSERVATION_SPACE, make_policy
from sb3_dmamba.experiments.report import draw_lines
from sb3_dmamba.networks import DecisionMambaPolicy

_PEER = "d3rlpy's stateful wrapper"
_TARGET = 3600.0
_CHECKED_STEPS = 30
_TOLERANCE = 1e-3  # of actions of size 1
_METHOD = (
    "untrained networks of the same width, layers and context act on noise in Hopper's shape. "
    "Before the stopwatch, our actions over 30 steps are compared with those of the plain torch "
    "reference on equal weights, and those of the two memories with each other while a window "
    "holds the whole episode; d3rlpy's, another network's, have to be finite, within their "
    "bounds and the same after a reset."
)


def measure(request: Request) -> Report:
    """Time predictions."""
    single, at = _measure_single(request)
    many = _measure_many(request)
    shape = request.shape
    title = f"One prediction, one environment, width {shape.width}, K {shape.context}"
    columns = [
        Column("name", ""),
        Column("ratio", "against d3rlpy", ".2f", 1.0, "x"),
        *(Column(f"step {step}", f"ms at step {step:,}", ".3f", 1e3) for step in at),
        Column("gate", "off by"),
    ]
    many_title = f"{max(COUNTS):,} environments and fewer at once, {shape.context} steps each"
    tables = [
        Table("single", title, columns, single.rows),
        Table("many", many_title, _MANY, many.rows),
    ]
    lines = {row["name"]: (at, [1e3 * row[f"step {step}"] for step in at]) for row in single.rows}
    draw = functools.partial(
        draw_lines, title=title, labels=("step of the episode", "ms a prediction"), lines=lines
    )
    left_out = {**single.left_out, **many.left_out}
    pictures = [Picture("predict", title, draw)]
    return Report("predict", "Acting", _METHOD, tables, pictures, left_out)


COUNTS = (1, 16, 100)
_MANY = (
    Column("name", ""),
    Column("environments", "environments", ","),
    Column("against one", "time a prediction against one at a time", ".2f", 1.0, "x"),
    Column("rate", "predictions a second", ",.0f"),
    Column("seconds", "ms for all", ".3f", 1e3),
    Column("gate", "off by"),
)


def make_actor(request: Request, memory: Memory, **settings: Any) -> StatefulActor:
    """Return an untrained policy of ours that keeps count of its return-to-go.

    Raises:
        UnavailableError: The policy cannot act with this memory.
    """
    return StatefulActor(_make_policy(request, memory, **settings), _TARGET)


def _make_policy(request: Request, memory: Memory, **settings: Any) -> DecisionMambaPolicy:
    try:
        config = make_config(request, memory=memory, **settings)
    except ConfigError as error:
        raise UnavailableError(str(error)) from error
    policy = make_policy(config, request.device)
    policy.set_training_mode(False)
    return policy


def make_peer_actor(request: Request) -> Any:
    """Return an untrained Decision Transformer of d3rlpy's in its stateful wrapper.

    Raises:
        UnavailableError: d3rlpy is not installed.
    """
    peer = make_peer(request)
    peer.create_impl(OBSERVATION_SPACE.shape, ACTION_SPACE.shape[0])
    return peer.as_stateful_wrapper(target_return=_TARGET)


def check_actor(request: Request, memory: Memory, **settings: Any) -> Agreement:
    """Compare our actions with the reference's, and with the other memory's until a window ends."""
    actions = _act(make_actor(request, memory, **settings))
    reference = _act(make_actor(request, memory, **{**settings, "backend": "reference"}))
    other: Memory = "stream" if memory == "window" else "window"
    elsewhere = _act(make_actor(request, other, **settings))
    both = slice(request.shape.context)
    errors = (np.abs(actions - reference), np.abs(actions[both] - elsewhere[both]))
    return Agreement("actions", max(float(error.max()) for error in errors), _TOLERANCE)


def check_peer_actor(actor: Any) -> Agreement:
    """Check another network's actions: in their bounds, and the same after a reset."""
    first, again = _act(actor), _act(actor)
    outside = float(np.maximum(np.abs(first) - 1.0, 0.0).max())
    return Agreement("actions", max(outside, float(np.abs(first - again).max())), _TOLERANCE)


def _act(actor: Any) -> np.ndarray:
    generator = np.random.default_rng(0)
    actor.reset()
    shape = (_CHECKED_STEPS, *OBSERVATION_SPACE.shape)
    observations = generator.standard_normal(shape, dtype=np.float32)
    return np.stack([actor.predict(each, 1.0) for each in observations])


def _measure_single(request: Request) -> tuple[Outcome, tuple[int, ...]]:
    """Time predictions along an episode, the peer's too; windows are full at all places."""
    at, reach = ((10, 20), 4) if request.quick else ((40, 1000), 20)
    bare = {"channel_mixing": False}
    ours: dict[str, tuple[Memory, dict[str, Any]]] = {
        "ours: Mamba, window": ("window", bare),
        "ours: Mamba, stream": ("stream", bare),
        "ours: attention + MLP, window": ("window", {"mixer": "attention"}),
    }
    actors: dict[str, Any] = {}

    def make(name: str, memory: Memory, settings: dict[str, Any]) -> Contender:
        actors[name] = make_actor(request, memory, **settings)
        return Contender(lambda: None, lambda: check_actor(request, memory, **settings))

    def make_theirs() -> Contender:
        actors[_PEER] = make_peer_actor(request)
        return Contender(lambda: None, lambda: check_peer_actor(actors[_PEER]))

    candidates = [
        Candidate(name, functools.partial(make, name, *each)) for name, each in ours.items()
    ]
    ready, left_out = gate([*candidates, Candidate(_PEER, make_theirs)])
    observation = np.zeros(OBSERVATION_SPACE.shape, dtype=np.float32)
    runs = {
        name: (actors[name].reset, functools.partial(actors[name].predict, observation, 1.0))
        for name in ready
    }
    timings = request.make_timer(3).measure_along(runs, max(at) + reach, at, reach)
    rows = []
    for name, (_, agreement) in ready.items():
        row = make_row(name, timings[name][max(at)], agreement)
        rows.append(row | {f"step {step}": timings[name][step].median for step in at})
    outcome = Outcome(rows, left_out)
    outcome.add_ratio("ratio", _PEER)
    return outcome, at


def _measure_many(request: Request) -> Outcome:
    """Time a step of many environments whose windows are full."""
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    memories: tuple[Memory, ...] = ("window", "stream")
    for memory in memories:
        candidates = [
            Candidate(str(count), functools.partial(_make_batched, request, memory, count))
            for count in COUNTS
        ]
        outcome = race(candidates, request.make_timer())
        one = outcome.seconds("1")
        for row in outcome.rows:
            count = int(row["name"])
            row |= {"name": f"ours: Mamba, {memory}", "environments": count}
            row["rate"] = count / row["seconds"]
            row["against one"] = None if one is None else row["seconds"] / count / one
            rows.append(row)
        left_out |= {f"{memory}, {name}": why for name, why in outcome.left_out.items()}
    return Outcome(rows, left_out)


def _make_batched(request: Request, memory: Memory, count: int) -> Contender:
    policy = _make_policy(request, memory, channel_mixing=False)
    observations = np.zeros((count, *OBSERVATION_SPACE.shape), dtype=np.float32)
    returns = np.full(count, _TARGET, dtype=np.float32)
    state = policy.initial_state(count, memory)
    for _ in range(request.shape.context):
        _, state = policy.act(observations, returns, state)
    return Contender(
        lambda: policy.act(observations, returns, state),
        lambda: check_actor(request, memory, channel_mixing=False),
    )
