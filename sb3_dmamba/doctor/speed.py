"""How fast it is here, in a few seconds: updates and steps of acting, beside one another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.doctor.places import BUNDLED_TASK
from sb3_dmamba.tasks import get_task

__all__ = ["Speed", "measure_speed"]

_WARM_UPS = 3  # updates before the clock starts: kernels are compiled, or a graph is recorded
_ENDLESS = 10**9


@dataclass(frozen=True)
class Speed:
    """What was measured, a second.

    Args:
        task: Whose network and data it was.
        device: Where.
        threads: Threads of the CPU.
        first_update_seconds: What the first update took, compiling included.
        updates: Updates with these threads.
        updates_on_one_thread: Updates with one; None where that is the same, or on a GPU.
        window_steps: Steps of acting in window memory, one environment, its window full.
        stream_steps: Likewise in stream memory.
    """

    task: str
    device: str
    threads: int
    first_update_seconds: float
    updates: float
    updates_on_one_thread: float | None
    window_steps: float
    stream_steps: float


def measure_speed(seconds: float, device: str = "auto") -> Speed:
    """Train and act on the bundled dataset's recipe for a few seconds.

    Args:
        seconds: In all, about; starting up comes on top.
        device: As ``DecisionMamba`` takes it.
    """
    trajectories = load_trajectories(get_task(BUNDLED_TASK).dataset)
    model = DecisionMamba(BUNDLED_TASK, seed=0, device=device)
    threads = torch.get_num_threads()
    compares = model.device.type == "cpu" and threads > 1
    share = seconds / (4 if compares else 3)
    first, updates = _time_updates(model, trajectories, share)
    alone = None
    if compares:
        torch.set_num_threads(1)
        try:
            _, alone = _time_updates(model, trajectories, share)
        finally:
            torch.set_num_threads(threads)
    return Speed(
        task=BUNDLED_TASK,
        device=str(model.device),
        threads=threads,
        first_update_seconds=first,
        updates=updates,
        updates_on_one_thread=alone,
        window_steps=_time_acting(model, "window", share),
        stream_steps=_time_acting(model, "stream", share),
    )


class _Clock(BaseCallback):
    """Ends a training after some seconds, and knows how fast it was."""

    def __init__(self, seconds: float, wait: Callable[[], None]) -> None:
        super().__init__()
        self.seconds = seconds
        self.wait = wait
        self.n_updates = 0
        self.first = self.begun = self.elapsed = 0.0

    def _on_training_start(self) -> None:
        self.begun = time.perf_counter()

    def _on_step(self) -> bool:
        self.n_updates += 1
        if self.n_updates <= _WARM_UPS:
            self.wait()
            if self.n_updates == 1:
                self.first = time.perf_counter() - self.begun
            self.begun = time.perf_counter()
            return True
        self.elapsed = time.perf_counter() - self.begun
        if self.elapsed < self.seconds:
            return True
        self.wait()  # until what was only sent to a GPU is done
        self.elapsed = time.perf_counter() - self.begun
        return False


def _time_updates(
    model: DecisionMamba, trajectories: Trajectories, seconds: float
) -> tuple[float, float]:
    """Return the seconds of the first update, and the updates a second of later ones."""
    clock = _Clock(seconds, _waiting_for(model.device))
    model.fit(trajectories, _ENDLESS, callback=clock, log_interval=_ENDLESS)
    return clock.first, (clock.n_updates - _WARM_UPS) / clock.elapsed


def _time_acting(model: DecisionMamba, memory: Memory, seconds: float) -> float:
    """Return the steps a second, of one environment whose window is full."""
    space = model.policy.observation_space
    seen = {
        "observation": np.zeros((1, *space.shape), space.dtype),
        "return_to_go": np.full((1, 1), 1000.0, np.float32),
    }
    state = model.policy.initial_state(1, memory)
    for _ in range(model.config.context_length + 1):
        _, state = model.predict(seen, state)
    n_steps, begun = 0, time.perf_counter()
    while True:
        _, state = model.predict(seen, state)  # its actions are on the CPU: nothing is left to do
        n_steps += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds:
            return n_steps / elapsed


def _waiting_for(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
