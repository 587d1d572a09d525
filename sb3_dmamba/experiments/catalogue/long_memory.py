"""A task that needs memory beyond the window."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_MAMBA = {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"}

EXPERIMENT = Experiment(
    name="long-memory",
    title="Memory beyond the window",
    question=(
        "In a T-maze the side to turn to is shown at the first step and needed 50 steps later. A "
        "window of 20 steps cannot hold both, so what reaches more than half of the rewards "
        "remembers by other means: a longer window, or a state that training has taught to last. "
        "Does Mamba's state learn that, at the same cost for every step?"
    ),
    variants={
        "windows of 20": Variant({**_MAMBA, "context_length": 20}),
        "burn-in of 40": Variant({**_MAMBA, "context_length": 20, "burn_in": 40}),
        "carried state": Variant({**_MAMBA, "context_length": 20, "carry_state": True}),
        "windows of 60": Variant({**_MAMBA, "context_length": 60}),
        "attention, windows of 60": Variant(
            {"mixer": "attention", "time_encoding": "timestep", "context_length": 60}
        ),
    },
    tasks=("tmaze-50",),
    memories=("window", "stream"),
    n_episodes=100,
)
