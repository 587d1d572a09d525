"""A task that needs memory beyond the window."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_MAMBA = {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"}
_ATTENTION = {"mixer": "attention", "channel_mixing": True, "time_encoding": "timestep"}
# The task's recipe carries the state over whole episodes: each variant says what it does instead.
_WINDOWS = {"carry_state": False}
_WHOLE = {"context_length": 64, "carry_state": True}

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
        "windows of 20": Variant({**_MAMBA, **_WINDOWS, "context_length": 20}),
        "burn-in of 40": Variant({**_MAMBA, **_WINDOWS, "context_length": 20, "burn_in": 40}),
        "carried state": Variant({**_MAMBA, "context_length": 20, "carry_state": True}),
        "windows of 64": Variant({**_MAMBA, **_WINDOWS, "context_length": 64}),
        "whole episodes": Variant(
            {**_MAMBA, **_WHOLE},
            description="windows of 64 that follow each other from an episode's first step on",
        ),
        "attention, whole episodes": Variant({**_ATTENTION, **_WHOLE}),
    },
    tasks=("tmaze-50",),
    memories=("window", "stream"),
    n_episodes=100,
)
