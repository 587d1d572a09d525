"""What a run does otherwise than its task's recipe says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sb3_dmamba.config import DecisionMambaConfig

if TYPE_CHECKING:
    from sb3_dmamba.tasks import Task

__all__ = ["describe_changes"]


def describe_changes(config: DecisionMambaConfig, task: Task | None) -> str | None:
    """Name the settings that are not the recipe's.

    Args:
        config: The run's settings.
        task: What has the recipe; None: the paper's defaults are it.

    Returns:
        Each with its value and the recipe's in parentheses, or None where there is none. What
        follows from another number of updates (a shorter warm-up) is not named.
    """
    recipe = DecisionMambaConfig() if task is None else task.config()
    followed = recipe
    if config.n_updates != recipe.n_updates and task is not None:
        followed = task.config(n_updates=config.n_updates)
    named = []
    for name in (field.name for field in dataclasses.fields(config)):
        before = recipe if name == "n_updates" else followed
        if getattr(config, name) != getattr(before, name):
            named.append(f"{name}={getattr(config, name)!r} ({getattr(before, name)!r})")
    return ", ".join(named) or None
