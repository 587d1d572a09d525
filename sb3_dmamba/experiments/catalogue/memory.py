"""A window of the last steps, or the state of the whole episode."""

from __future__ import annotations

from typing import Any

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]


def _long_windows(recipe: DecisionMambaConfig) -> dict[str, Any]:
    batch_size = max(1, round(recipe.batch_size / 3))
    return {"context_length": 3 * recipe.context_length, "batch_size": batch_size}


def _burn_in(recipe: DecisionMambaConfig) -> dict[str, Any]:
    return {"burn_in": 2 * recipe.context_length}


EXPERIMENT = Experiment(
    name="memory",
    title="Window and stream",
    question=(
        "The paper encodes the last K steps anew at each step. Carrying the recurrent state "
        "instead costs the same at every step and is another policy, one that training on windows "
        "of K steps has not seen. How much does it lose, and what training makes up for it?"
    ),
    variants={
        "windows": Variant(description="windows of K steps, as the paper trains"),
        "long windows": Variant(
            relative=_long_windows,
            description="windows of 3 K steps, and a third of them in a batch",
        ),
        "burn-in": Variant(
            relative=_burn_in,
            description="the 2 K steps before each window of K bring the state to its start",
        ),
        "carried state": Variant(
            {"carry_state": True},
            description="truncated backpropagation through time: windows follow each other",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)
