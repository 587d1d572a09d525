"""Measuring an update and a step of acting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sb3_dmamba import Trajectories
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.experiments.efficiency.counts import count_flops
from sb3_dmamba.experiments.efficiency.gate import ACTION_SPACE, OBSERVATION_SPACE, make_policy
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.state import ActingState
from sb3_dmamba.training.losses import compute_loss
from sb3_dmamba.training.updater import Updater

__all__ = ["Cost", "count_kept", "describe_clock", "measure_cost"]

_STEPS_OF_UPDATE = 1280  # 64 windows of 20
_WARM_UPS = 2
_REPEATS = 7
_LEAST_SECONDS = 0.02  # of one repeat


@dataclass(frozen=True)
class Cost:
    """What a variant costs with one context length.

    Args:
        variant: The variant.
        context_length: Steps of context, K.
        batch_size: Windows of an update, chosen so that updates of every K see as many steps.
        update_us: Microseconds of an update (batch, forward, backward, optimiser), by token.
        kept_bytes: Bytes that the forward pass keeps for the backward pass, by token.
        window_ms: Milliseconds of a step of acting in window memory, one environment.
        stream_ms: Likewise in stream memory; NaN where the variant has none.
        window_state_bytes: What window memory holds of an episode.
        stream_state_bytes: What stream memory does; NaN likewise.
        flops: Operations of the blocks' forward pass, by token.
    """

    variant: str
    context_length: int
    batch_size: int
    update_us: float
    kept_bytes: float
    window_ms: float
    stream_ms: float
    window_state_bytes: float
    stream_state_bytes: float
    flops: float


def describe_clock(device: str) -> str:
    """Say what times are measured with."""
    if _is_processor_time(device):
        return "processor time of one thread, which other work on the machine does not stretch"
    return "wall time"


def measure_cost(variant: str, config: DecisionMambaConfig, device: str) -> Cost:
    """Measure a variant.

    Args:
        variant: Its name.
        config: Its settings.
        device: Where.
    """
    length = config.context_length
    batch_size = max(1, _STEPS_OF_UPDATE // length)
    config = config.replace(batch_size=batch_size)
    policy = make_policy(config, device)
    sampler = WindowSampler(_make_data(length), length, batch_size)
    updater = Updater(policy, config, seed=0)
    n_tokens = 3 * length * batch_size
    kept = count_kept(policy, sampler)
    update = _time(lambda: updater.update(sampler, 0, 0, 10), device)
    policy.set_training_mode(False)
    window_ms, window_bytes = _measure_acting(policy, "window", length, device)
    stream_ms, stream_bytes = float("nan"), float("nan")
    if config.time_encoding != "global":
        stream_ms, stream_bytes = _measure_acting(policy, "stream", length, device)
    return Cost(
        variant=variant,
        context_length=length,
        batch_size=batch_size,
        update_us=1e6 * update / n_tokens,
        kept_bytes=kept / n_tokens,
        window_ms=window_ms,
        stream_ms=stream_ms,
        window_state_bytes=window_bytes,
        stream_state_bytes=stream_bytes,
        flops=count_flops(config),
    )


def _measure_acting(
    policy: DecisionMambaPolicy, memory: Memory, length: int, device: str
) -> tuple[float, float]:
    """Return the milliseconds of a step once the window is full, and the bytes of the state."""
    observation = np.zeros((1, *OBSERVATION_SPACE.shape), dtype=np.float32)
    target = np.full(1, 1000.0, dtype=np.float32)
    state = policy.initial_state(1, memory)
    if memory == "window":  # as after many steps, of which the window's are all there is
        age = torch.full_like(state.tensors["timestep"], length)
        state = ActingState(memory, {**state.tensors, "timestep": age})
    else:
        for _ in range(length):
            _, state = policy.act(observation, target, state)
    n_bytes = sum(rows.numel() * rows.element_size() for rows in state.tensors.values())
    seconds = _time(lambda: policy.act(observation, target, state), device)
    return 1e3 * seconds, float(n_bytes)


def count_kept(policy: DecisionMambaPolicy, sampler: WindowSampler) -> float:
    """Return the bytes that one forward pass keeps for its backward pass."""
    weights = {each.untyped_storage().data_ptr() for each in policy.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    policy.set_training_mode(True)
    batch = sampler.sample(0).to(policy.device)
    bf16 = policy.config.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16),
    ):
        loss = compute_loss(policy, batch)  # alive until all are counted, so no place is shared
    del loss
    return float(sum(kept.values()))


def _time(run: Callable[[], object], device: str) -> float:
    """Return the median seconds of a call."""
    is_cuda = device.startswith("cuda")
    clock = time.process_time if _is_processor_time(device) else time.perf_counter

    def measure(n: int) -> float:
        if is_cuda:
            torch.cuda.synchronize(device)
        started = clock()
        for _ in range(n):
            run()
        if is_cuda:
            torch.cuda.synchronize(device)
        return clock() - started

    for _ in range(_WARM_UPS):
        once = measure(1)
    n = max(1, int(_LEAST_SECONDS / max(once, 1e-6)))
    return float(np.median([measure(n) / n for _ in range(_REPEATS)]))


def _is_processor_time(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def _make_data(length: int) -> Trajectories:
    """Return noise in Hopper's shape, its episodes longer than a window."""
    rng = np.random.default_rng(0)
    n_episodes, steps = 4, max(1000, 2 * length)
    n_steps = n_episodes * steps
    return Trajectories(
        observations=rng.normal(size=(n_steps, *OBSERVATION_SPACE.shape)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n_steps, *ACTION_SPACE.shape)).astype(np.float32),
        rewards=np.ones(n_steps, dtype=np.float32),
        terminated=np.ones(n_episodes, dtype=bool),
        truncated=np.zeros(n_episodes, dtype=bool),
        episode_offsets=np.arange(0, n_steps + 1, steps),
        observation_space=OBSERVATION_SPACE,
        action_space=ACTION_SPACE,
        source="noise",
    )
