"""Acting and evaluating beside d3rlpy's Decision Transformer: python -m benchmarks.evaluation.

Same environment (Hopper-v5), same width, layers and context, untrained networks, one process. The
two ways alternate, and medians are compared: ratios count, not milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import d3rlpy
import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.evaluation import StatefulActor, evaluate_targets
from sb3_dmamba.networks import DecisionMambaPolicy

ENV_ID = "Hopper-v5"
CONTEXT = 20
TARGETS = [1800.0, 3600.0, 7200.0, 36_000.0, 72_000.0]
N_EPISODES = 20
N_STEPS = 200


def make_env() -> gym.Env[Any, Any]:
    # an untrained hopper falls after 20 steps; one that hops fills every window
    return gym.make(ENV_ID, terminate_when_unhealthy=False, max_episode_steps=N_STEPS)


def make_policy(memory: str) -> DecisionMambaPolicy:
    torch.manual_seed(0)
    env = make_env()
    assert isinstance(env.observation_space, spaces.Box)
    config = DecisionMambaConfig(context_length=CONTEXT, channel_mixing=False).replace(
        memory=memory
    )
    return DecisionMambaPolicy(env.observation_space, env.action_space, config)


def make_peer() -> Any:
    env = make_env()
    config = d3rlpy.algos.DecisionTransformerConfig(
        context_size=CONTEXT,
        num_layers=3,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([128]),
    )
    peer = config.create(device="cpu:0")
    assert env.observation_space.shape is not None
    assert env.action_space.shape is not None
    peer.create_impl(env.observation_space.shape, env.action_space.shape[0])
    return peer.as_stateful_wrapper(target_return=3600.0)


def time_steps(actor: Any, n_steps: int, at: tuple[int, int]) -> dict[int, float]:
    """Return the median seconds of the 40 predictions around each step of ``at``."""
    observation = np.zeros(11, dtype=np.float32)
    actor.reset()
    seconds = np.empty(n_steps)
    for step in range(n_steps):
        started = time.perf_counter()
        actor.predict(observation, 1.0)
        seconds[step] = time.perf_counter() - started
    return {step: float(np.median(seconds[max(0, step - 20) : step + 20])) for step in at}


def measure_latency(rounds: int = 3) -> Table:
    actors: dict[str, Any] = {
        "d3rlpy": make_peer(),
        "window": StatefulActor(make_policy("window"), 3600.0),
        "stream": StatefulActor(make_policy("stream"), 3600.0),
    }
    at = (40, 1000)  # d3rlpy's and ours' windows are full at both
    taken: dict[str, list[dict[int, float]]] = {name: [] for name in actors}
    for actor in actors.values():
        time_steps(actor, 50, (20, 40))  # compiles and warms up
    for _ in range(rounds):
        for name, actor in actors.items():
            taken[name].append(time_steps(actor, 1030, at))
    median = {
        name: {step: float(np.median([each[step] for each in times])) for step in at}
        for name, times in taken.items()
    }
    table = Table(title=f"One prediction, one environment, K {CONTEXT}")
    for column in ("", *(f"ms at step {step}" for step in at), "against d3rlpy"):
        table.add_column(column, justify="right")
    for name, by_step in median.items():
        ratio = by_step[1000] / median["d3rlpy"][1000]
        table.add_row(name, *(f"{1e3 * by_step[step]:.2f}" for step in at), f"{ratio:.2f}x")
    return table


def measure_evaluation(rounds: int = 2) -> Table:
    peer = make_peer()
    env = make_env()

    def one_after_the_other() -> int:
        n_steps = 0
        for _ in range(len(TARGETS) * N_EPISODES):
            peer.reset()
            observation, reward, over = env.reset()[0], 0.0, False
            while not over:
                action = peer.predict(observation, reward)
                observation, earned, terminated, truncated, _ = env.step(action)
                reward, over, n_steps = float(earned), terminated or truncated, n_steps + 1
        return n_steps

    def together(memory: str) -> Callable[[], int]:
        policy = make_policy(memory)
        return lambda: sum(
            int(result.lengths.sum())
            for result in evaluate_targets(policy, make_env, TARGETS, N_EPISODES).results
        )

    ways = {
        "d3rlpy, one after the other": one_after_the_other,
        "window, together": together("window"),
        "stream, together": together("stream"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        if name != "d3rlpy, one after the other":
            way()  # compiles and warms up
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            n_steps = way()
            rates[name].append(n_steps / (time.perf_counter() - started))
    table = Table(
        title=f"{len(TARGETS)} targets x {N_EPISODES} episodes of {ENV_ID}, {N_STEPS} steps each"
    )
    for column in ("", "steps a second", "faster"):
        table.add_column(column, justify="right")
    base = float(np.median(rates["d3rlpy, one after the other"]))
    for name, values in rates.items():
        rate = float(np.median(values))
        table.add_row(name, f"{rate:,.0f}", f"{rate / base:.1f}x")
    return table


def main() -> None:
    console = Console()
    console.print(measure_latency(), measure_evaluation())


if __name__ == "__main__":
    main()
