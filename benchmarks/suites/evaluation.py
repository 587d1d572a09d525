"""Whole evaluations in an environment beside d3rlpy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.contenders import Agreement, Candidate, Contender, UnavailableError, race
from benchmarks.networks import make_config
from benchmarks.pictures import draw_bars
from benchmarks.reports import Column, Picture, Report, Table
from benchmarks.request import Request
from benchmarks.suites.predict import make_peer_actor
from sb3_dmamba.config import Memory
from sb3_dmamba.evaluation import evaluate_targets
from sb3_dmamba.experiments.efficiency import make_policy

_ENV_ID = "Hopper-v5"
_PEER = "d3rlpy, one episode after the other"
_METHOD = (
    "untrained networks of the same width, layers and context act in Hopper-v5, made not to end "
    "when the hopper falls, so that every episode is as long and fills every window. Ours are "
    "asked for all targets at once, in one process. Before the stopwatch, each has to take every "
    "step of every episode, with finite returns."
)


@dataclass(frozen=True)
class Plan:
    """What is evaluated."""

    targets: tuple[float, ...] = (1800.0, 3600.0, 7200.0, 36_000.0, 72_000.0)
    n_episodes: int = 20
    n_steps: int = 200

    @property
    def total(self) -> int:
        """Steps of the whole evaluation."""
        return len(self.targets) * self.n_episodes * self.n_steps


def measure(request: Request) -> Report:
    """Time the evaluations."""
    plan = Plan((1800.0, 3600.0), 2, 10) if request.quick else Plan()
    memories: tuple[Memory, ...] = ("window", "stream")
    candidates = [
        Candidate(
            f"ours: Mamba, {memory}, together", functools.partial(_ours, request, plan, memory)
        )
        for memory in memories
    ]
    candidates.append(Candidate(_PEER, functools.partial(_theirs, request, plan)))
    outcome = race(candidates, request.make_timer(3))
    base = outcome.seconds(_PEER)
    simulator = _time_simulator(plan)
    for row in outcome.rows:
        row["faster"] = None if base is None else base / row["seconds"]
        row["rate"] = plan.total / row["seconds"]
        row["simulator"] = simulator * plan.total / row["seconds"]
    title = (
        f"{len(plan.targets)} targets x {plan.n_episodes} episodes of {_ENV_ID}, "
        f"{plan.n_steps} steps each"
    )
    note = (
        f"A step of the simulator alone takes {1e6 * simulator:.0f} us here, which is the share "
        "named."
    )
    table = Table("evaluation", title, _COLUMNS, outcome.rows, [note])
    bars = {row["name"]: (row["rate"],) * 3 for row in outcome.rows}
    draw = functools.partial(draw_bars, title=title, label="steps a second", bars=bars)
    pictures = [Picture("evaluation", title, draw)] if bars else []
    return Report("evaluation", "Evaluating", _METHOD, [table], pictures, outcome.left_out)


_COLUMNS = (
    Column("name", ""),
    Column("faster", "times as fast", ".1f", 1.0, "x"),
    Column("rate", "steps a second", ",.0f"),
    Column("simulator", "of it simulator", ".0%"),
    Column("seconds", "s", ".2f"),
    Column("low", "quartiles", ".2f"),
    Column("high", "", ".2f"),
)


def make_env(n_steps: int) -> gym.Env[Any, Any]:
    """Return a hopper that may lie on the ground.

    Raises:
        UnavailableError: MuJoCo is not installed.
    """
    try:
        return gym.make(_ENV_ID, terminate_when_unhealthy=False, max_episode_steps=n_steps)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UnavailableError(
            "MuJoCo is not installed: pip install 'sb3-dmamba[mujoco]'"
        ) from error


def _time_simulator(plan: Plan) -> float:
    """Return the seconds of a step of the environment alone, NaN where there is none."""
    try:
        env = make_env(plan.n_steps)
    except UnavailableError:
        return float("nan")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(plan.n_steps)]
    started = time.perf_counter()
    for action in actions:
        env.step(action)
    return (time.perf_counter() - started) / plan.n_steps


def _ours(request: Request, plan: Plan, memory: Memory) -> Contender:
    make_env(plan.n_steps)  # or it is missing
    policy = make_policy(make_config(request, memory=memory, channel_mixing=False), request.device)
    policy.set_training_mode(False)
    make = functools.partial(make_env, plan.n_steps)

    def evaluate() -> tuple[int, list[float]]:
        results = evaluate_targets(policy, make, list(plan.targets), plan.n_episodes).results
        n_steps = sum(int(each.lengths.sum()) for each in results)
        return n_steps, np.concatenate([each.returns for each in results]).tolist()

    return Contender(evaluate, functools.partial(check_episodes, evaluate, plan))


def _theirs(request: Request, plan: Plan) -> Contender:
    env, actor = make_env(plan.n_steps), make_peer_actor(request)

    def evaluate(n_episodes: int = len(plan.targets) * plan.n_episodes) -> tuple[int, list[float]]:
        n_steps, returns = 0, []
        for _ in range(n_episodes):
            actor.reset()
            observation, reward, over, total = env.reset()[0], 0.0, False, 0.0
            while not over:
                action = actor.predict(observation, reward)
                observation, earned, terminated, truncated, _ = env.step(action)
                reward, over = float(earned), bool(terminated or truncated)
                n_steps, total = n_steps + 1, total + reward
            returns.append(total)
        return n_steps, returns

    return Contender(evaluate, functools.partial(check_episodes, evaluate, plan))


def check_episodes(evaluate: Callable[[], tuple[int, list[float]]], plan: Plan) -> Agreement:
    """Check that every step of every episode was taken, with finite returns."""
    n_steps, returns = evaluate()
    is_whole = n_steps == plan.total and len(returns) == len(plan.targets) * plan.n_episodes
    error = 0.0 if is_whole and bool(np.isfinite(returns).all()) else float("inf")
    return Agreement("steps and returns", error, 0.0)
