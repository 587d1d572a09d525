"""Time of drawing a batch of windows, beside d3rlpy's sampler on the same episodes.

``python -m benchmarks.sampler`` draws from both in turn, in one process, and prints the median.
Ours returns torch tensors with time steps and a mask; d3rlpy's returns NumPy arrays, which its
update then still converts. Both leave out the copy to a device.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Num
from numpy import ndarray
from rich.console import Console
from rich.table import Table

from sb3_dmamba.data import Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import MissingDependencyError


@dataclass(frozen=True)
class Case:
    """A shape of data to draw from.

    Args:
        name: For the table.
        observation_space: What the observations are.
        n_episodes: Episodes in the data.
        length: Steps in each.
    """

    name: str
    observation_space: spaces.Box
    n_episodes: int
    length: int


CASES = (
    Case("Hopper", spaces.Box(-np.inf, np.inf, (11,), np.float32), 600, 333),
    Case("4 frames of 84 x 84", spaces.Box(0, 255, (4, 84, 84), np.uint8), 20, 200),
)


def make_trajectories(case: Case) -> Trajectories:
    """Return random episodes of a case's shape."""
    generator = np.random.default_rng(0)
    n_steps = case.n_episodes * case.length
    shape = (n_steps, *case.observation_space.shape)
    observations: Num[ndarray, "N *obs"]
    if case.observation_space.dtype == np.uint8:
        observations = generator.integers(0, 256, shape, dtype=np.uint8)
    else:
        observations = generator.standard_normal(shape, dtype=np.float32)
    ends = np.ones(case.n_episodes, dtype=bool)
    return Trajectories(
        observations=observations,
        actions=generator.uniform(-1, 1, (n_steps, 3)).astype(np.float32),
        rewards=generator.standard_normal(n_steps, dtype=np.float32),
        terminated=ends,
        truncated=~ends,
        episode_offsets=np.arange(0, n_steps + 1, case.length),
        observation_space=case.observation_space,
        action_space=spaces.Box(-1.0, 1.0, (3,), np.float32),
    )


def make_d3rlpy_buffer(data: Trajectories) -> Any:
    """Return d3rlpy's replay buffer of the same episodes."""
    try:
        from d3rlpy.dataset import Episode, create_infinite_replay_buffer
    except ImportError as error:
        raise MissingDependencyError("d3rlpy", "compare with its sampler", "d3rlpy") from error
    episodes = [
        Episode(e.observations, e.actions, e.rewards[:, None], terminated=True) for e in data
    ]
    return create_infinite_replay_buffer(episodes)


def check_windows(data: Trajectories, context_length: int) -> None:
    """Raise unless windows are slices of the episodes: a wrong sampler's time means nothing."""
    steps = np.random.default_rng(1).integers(data.n_steps, size=16)
    batch = WindowSampler(data, context_length, 16).window_at(steps)
    for row, step in enumerate(steps):
        episode, start = divmod(int(step), int(data.lengths[0]))
        expected = data[episode].observations[start : start + context_length]
        found = batch.observations[row].numpy()
        if not np.array_equal(found[: len(expected)], expected) or found[len(expected) :].any():
            raise RuntimeError(f"the window from step {step} is not its episode's slice")


def measure(functions: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Call the functions in turn and return each one's median time in seconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function(repeat)
            if repeat >= 3:  # warm by then
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def batch_megabytes(batch: WindowBatch) -> float:
    """Return the size of a batch's tensors in MB."""
    tensors = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    return sum(t.nbytes for t in (*tensors, batch.padding_mask)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100, help="measured batches a case")
    options = parser.parse_args()

    table = Table(
        title=f"One batch of {options.batch_size} windows of {options.context_length} steps, "
        f"median of {options.repeats} ({os.cpu_count()} cores)"
    )
    for heading in ("data", "sb3_dmamba [ms]", "d3rlpy [ms]", "times as fast", "batch [MB]"):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for case in CASES:
        data = make_trajectories(case)
        check_windows(data, options.context_length)
        sampler = WindowSampler(data, options.context_length, options.batch_size)
        buffer = make_d3rlpy_buffer(data)

        def theirs(_: int, buffer: Any = buffer) -> object:
            return buffer.sample_trajectory_batch(options.batch_size, options.context_length)

        times = measure({"ours": sampler.sample, "theirs": theirs}, options.repeats)
        table.add_row(
            case.name,
            f"{times['ours'] * 1e3:.3f}",
            f"{times['theirs'] * 1e3:.3f}",
            f"{times['theirs'] / times['ours']:.1f}",
            f"{batch_megabytes(sampler.sample(0)):.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
