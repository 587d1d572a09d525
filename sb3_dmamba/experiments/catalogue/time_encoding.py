"""With or without the step in the episode."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

# Mamba without the MLP, whose cells `channel-mixing` and `mixers` train too.
_MAMBA = {"mixer": "mamba", "channel_mixing": False}
_ATTENTION = {"mixer": "attention", "channel_mixing": True}

EXPERIMENT = Experiment(
    name="time-encoding",
    title="With and without a time encoding",
    question=(
        "The paper's models see which step of the episode it is, by a learned embedding that "
        "attention was given to tell the order and that Mamba can do without. It tells more than "
        "the order: where episodes fail at a certain step, a model may learn to fail there too. "
        "Does it help, and is what it does a matter of the mixer?"
    ),
    variants={
        "mamba, timestep": Variant({**_MAMBA, "time_encoding": "timestep"}),
        "mamba, none": Variant({**_MAMBA, "time_encoding": "none"}),
        "attention, timestep": Variant({**_ATTENTION, "time_encoding": "timestep"}),
        "attention, none": Variant(
            {**_ATTENTION, "time_encoding": "none"},
            description="the order is known by the causal mask alone",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)
