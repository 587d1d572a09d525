"""The tasks that experiments run on by a short name, sized for two CPU cores.

They are not public benchmarks: whoever has data of another place gives it as ``NAME=SOURCE``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmamba.atari import ATARI_ID
from sb3_dmamba.data import Trajectories
from sb3_dmamba.tasks import Task, get_reference_scores

__all__ = ["generic_task", "list_problems"]

# The paper's shape at a laptop's budget: a tenth of its updates, so a schedule that decays, and
# more dropout and weight decay, with which the loss on episodes left out still falls at the end
# (docs/results.md). In bf16 it takes 0.7 of the time on a CPU that multiplies in it.
_HOPPER: dict[str, Any] = {
    "precision": "bf16",
    "hidden_size": 128,
    "n_layers": 3,
    "context_length": 20,
    "batch_size": 64,
    "n_updates": 10_000,
    "learning_rate": 1e-3,
    "warmup_updates": 1000,
    "lr_schedule": "linear",
    "final_lr_fraction": 0.1,
    "dropout": 0.2,
    "weight_decay": 0.1,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "n_layers": 2,
    "context_length": 20,
    "batch_size": 64,
    "n_updates": 1500,
    "learning_rate": 1e-3,
    "warmup_updates": 150,
    "lr_schedule": "linear",
    "final_lr_fraction": 0.1,
    "dropout": 0.1,
}
_BREAKOUT: dict[str, Any] = {
    "hidden_size": 128,
    "n_layers": 3,
    "context_length": 10,
    "encoder": "nature_cnn",
    "embedding": "tanh",
    "batch_size": 64,
    "n_updates": 3000,
    "learning_rate": 6e-4,
    "warmup_updates": 300,
    "lr_schedule": "cosine",
    "final_lr_fraction": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "return_scale": 10.0,
    "max_timestep": 10_000,
}


def list_problems() -> list[Task]:
    """Return the tasks, the first being the default of most experiments."""
    return [
        Task(
            name="hopper",
            env_id="Hopper-v5",
            dataset="hopper/medium-v0",
            # Five within the data's range, evenly, and one beyond any episode's reach.
            target_returns=(1000.0, 1600.0, 2300.0, 3000.0, 3600.0, 7200.0),
            reference=get_reference_scores("Hopper-v5"),
            overrides=_HOPPER,
            description="Hopper-v5 of mixed quality",
        ),
        Task(
            name="pendulum",
            env_id="Pendulum-v1",
            dataset="pendulum/mixed-v0",
            target_returns=(-1400.0, -1000.0, -600.0, -300.0, -100.0),
            # Of more steps the actions before say so much of the next one that the model repeats
            # itself: at K 20 and 2,500 updates it no longer follows the target.
            overrides={
                **_SMALL,
                "context_length": 5,
                "return_scale": 1000.0,
                "max_timestep": 200,
            },
            description="Pendulum-v1, several agents with random actions in between",
        ),
        Task(
            name="cartpole",
            env_id="CartPole-v1",
            dataset="cartpole/mixed-v0",
            target_returns=(20.0, 60.0, 120.0, 250.0, 500.0),
            overrides={**_SMALL, "return_scale": 100.0, "max_timestep": 500},
            description="CartPole-v1, several agents with random actions in between",
        ),
        Task(
            name="breakout-small",
            env_id=ATARI_ID,
            env_kwargs={
                "game": "Breakout",
                "sticky_actions": 0.0,
                "terminal_on_life_loss": False,
            },
            dataset="dqn-replay/Breakout",
            target_returns=(10.0, 30.0, 60.0, 90.0),
            overrides=_BREAKOUT,
            clip_rewards=True,
            description="Breakout from frames of a scripted player",
        ),
    ]


def generic_task(source: str, trajectories: Trajectories) -> Task:
    """Return a task for data that no task has: a small recipe, scaled by the data.

    Args:
        source: What was loaded.
        trajectories: The data; says the environment, the scale of returns and the longest episode.
    """
    largest = float(np.abs(trajectories.returns).max()) or 1.0
    return Task(
        name=Path(source).stem if Path(source).exists() else source,
        env_id=trajectories.env_id,
        env_kwargs=trajectories.env_kwargs,
        dataset=source,
        reference=get_reference_scores(trajectories.env_id or ""),
        overrides={
            **_SMALL,
            "return_scale": 10.0 ** math.floor(math.log10(largest)),
            "max_timestep": int(trajectories.lengths.max()),
        },
        description=f"data at {source}",
    )
