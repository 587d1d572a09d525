"""What an exported policy should know of where it acts and what for."""

from __future__ import annotations

from typing import Any

from sb3_dmamba.atari import is_atari
from sb3_dmamba.environments import Surroundings
from sb3_dmamba.errors import ConfigError

__all__ = ["describe_use"]

_ATARI_FRAME_STACK = 4  # AtariGame's default


def describe_use(surroundings: Surroundings) -> dict[str, Any]:
    """Return task, environment, dataset and targets, in what JSON can hold; None is unknown.

    Args:
        surroundings: The model's.
    """
    task, dataset = surroundings.task, surroundings.dataset
    env_id, env_kwargs = dataset.env_id, dict(dataset.env_kwargs)
    if task is not None and task.env_id is not None:
        env_kwargs = {**task.env_kwargs, **(env_kwargs if task.env_id == env_id else {})}
        env_id = task.env_id
    if surroundings.given is not None:  # what its arguments were is not recorded everywhere
        spec = getattr(surroundings.given, "spec", None)
        named = surroundings.given if isinstance(surroundings.given, str) else None
        env_id, env_kwargs = getattr(spec, "id", named), {}
    default_stack = _ATARI_FRAME_STACK if is_atari(env_id) else None
    try:
        target_return: float | None = surroundings.target_return
        target_returns = list(surroundings.target_returns())
    except ConfigError:
        target_return, target_returns = surroundings.given_target_return, []
    return {
        "task": None if task is None else task.name,
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "frame_stack": env_kwargs.get("frame_stack", default_stack),
        "dataset": dataset.source or None,
        "target_return": target_return,
        "target_returns": target_returns,
        "clip_rewards": surroundings.clip_rewards,
        "delayed_rewards": surroundings.delayed_rewards,
    }
