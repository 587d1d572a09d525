"""How many environments and worker processes an evaluation uses when nobody says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from sb3_dmamba.evaluation.env_slice import EnvSlice

__all__ = ["DEFAULT_MAX_ENVS", "choose_n_workers"]

DEFAULT_MAX_ENVS = 128
"""Environments alive at once at most, unless ``n_envs`` says otherwise."""

_WORTHWHILE_SECONDS = 20.0  # a worker takes 1 to 5 s to import what an environment needs
_WORTHWHILE_STEP_SECONDS = 2e-3  # a request to a worker and its answer take 0.2 to 0.5 ms
_PROBE_SECONDS = 0.1
_PROBE_STEPS = 200
_ASSUMED_STEPS = 1000  # an episode's, where the environment has no limit


def choose_n_workers(
    make_env: Callable[[], Any],
    n_envs: int,
    n_jobs: int,
    seed: int,
    max_episode_steps: int | None = None,
) -> int:
    """Decide how many processes should step the environments, by what a step costs.

    Steps one environment with random actions for up to 0.1 s of processor time (which a busy
    machine does not stretch). One worker per usable core is worth its start where the steps of all
    episodes, were each to reach its step limit (1000 where there is none), would take 20 s longer
    in one process, and worth its messages where one step of all environments takes 2 ms longer.
    Otherwise the environments stay in this process.

    Args:
        make_env: Makes one environment.
        n_envs: Environments alive at once.
        n_jobs: Episodes in all.
        seed: Seed of the probe's environment and actions.
        max_episode_steps: The caller's step limit.

    Returns:
        The number of workers; 0 is this process.
    """
    n_cores = _count_usable_cores()
    n_workers = min(n_cores, n_envs)
    if n_workers < 2:
        return 0
    step_seconds, limit = _measure_step(make_env, seed)
    limits = [steps for steps in (limit, max_episode_steps) if steps is not None]
    n_steps = min(limits, default=_ASSUMED_STEPS)
    saved_share = 1.0 - 1.0 / n_workers
    saved_in_all = step_seconds * n_steps * n_jobs * saved_share
    saved_a_step = step_seconds * n_envs * saved_share
    pays = saved_in_all > _WORTHWHILE_SECONDS and saved_a_step > _WORTHWHILE_STEP_SECONDS
    return n_workers if pays else 0


def _count_usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _measure_step(make_env: Callable[[], Any], seed: int) -> tuple[float, int | None]:
    """Return the seconds of an average step, and the environment's step limit."""
    envs = EnvSlice(make_env, 1)
    try:
        description = envs.describe()
        if description["not_an_env"] is not None:
            return 0.0, None  # the caller complains
        env = envs.envs[0]
        env.action_space.seed(seed)
        env.reset(seed=seed)
        spent, n_steps = 0.0, 0
        while spent < _PROBE_SECONDS and n_steps < _PROBE_STEPS:
            action = env.action_space.sample()
            started = time.process_time()
            _, _, terminated, truncated, _ = env.step(action)
            spent += time.process_time() - started
            n_steps += 1
            if terminated or truncated:
                env.reset()
        return spent / n_steps, description["max_episode_steps"]
    finally:
        envs.close()
