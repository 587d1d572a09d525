"""A window of the last steps, or the state of the whole episode."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="memory",
    title="Window and stream",
    question=(
        "The paper encodes the last K steps anew at each step. Carrying the recurrent state "
        "instead costs the same at every step and is another policy, one that training on windows "
        "of K steps has not seen. How much does it lose, and what training makes up for it?"
    ),
    variants={
        "windows of 20": Variant({"context_length": 20}),
        "windows of 60": Variant(
            {"context_length": 60, "batch_size": 22},
            description="a third of the windows, so about as many steps in an update",
        ),
        "burn-in of 20": Variant(
            {"context_length": 20, "burn_in": 20},
            description="20 steps before each window warm the state up",
        ),
        "carried state": Variant(
            {"context_length": 20, "carry_state": True},
            description="truncated backpropagation through time: windows follow each other",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"},
)
