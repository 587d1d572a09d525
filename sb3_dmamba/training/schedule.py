"""The learning rate over a run."""

from __future__ import annotations

import math

from sb3_dmamba.config import DecisionMambaConfig

__all__ = ["compute_learning_rate", "plan_schedule"]


def plan_schedule(config: DecisionMambaConfig, n_updates: int) -> dict[str, int | None]:
    """Return the warm-up and decay of a run, which it keeps when a later ``fit`` prolongs it.

    Args:
        config: ``warmup_updates`` and ``decay_updates``.
        n_updates: Updates that the run begins with.

    Returns:
        The two fields, the first as a number.
    """
    return {
        "warmup_updates": _count_warmup(config, n_updates),
        "decay_updates": config.decay_updates,
    }


def _count_warmup(config: DecisionMambaConfig, n_updates: int) -> int:
    return n_updates // 10 if config.warmup_updates is None else config.warmup_updates


def compute_learning_rate(config: DecisionMambaConfig, update: int, n_updates: int) -> float:
    """Return the learning rate of one update.

    Args:
        config: ``learning_rate``, ``warmup_updates``, ``lr_schedule``, ``decay_updates`` and
            ``final_lr_fraction``.
        update: Number of the update, from 0.
        n_updates: Updates of the whole run, those of earlier calls of ``fit`` included.

    Returns:
        A linear rise from ``learning_rate / warmup`` to ``learning_rate``, then the schedule;
        past the end of the decay the rate stays at its last value.

    Source: Chen et al. 2021 (arXiv:2106.01345), its Gym (warm-up) and Atari (cosine) code.
    """
    warmup = _count_warmup(config, n_updates)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    end = n_updates if config.decay_updates is None else config.decay_updates
    progress = min(1.0, (update - warmup) / max(1, end - warmup))
    if config.lr_schedule == "linear":
        return config.learning_rate * (1.0 - progress * (1.0 - config.final_lr_fraction))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    fraction = config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine
    return config.learning_rate * fraction
