"""Which mixer."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

# One thing differs between the first three. The others are what Mamba may do without: its gate
# mixes channels (Table 3 of the paper), and it knows the order by itself.
_EQUAL = {"channel_mixing": True, "time_encoding": "timestep"}

EXPERIMENT = Experiment(
    name="mixers",
    title="Mamba, attention, convolution",
    question=(
        "Does Mamba do at least as well as attention (Decision Transformer) and local convolution "
        "(Decision ConvFormer) at equal updates, and what does each cost? The paper compares "
        "scores alone, the best of a run; here are the last weights, with the time they took."
    ),
    variants={
        "mamba": Variant({"mixer": "mamba", **_EQUAL}),
        "attention": Variant({"mixer": "attention", **_EQUAL}),
        "convolution": Variant({"mixer": "convolution", **_EQUAL}),
        "mamba, no mlp": Variant(
            {"mixer": "mamba", "channel_mixing": False, "time_encoding": "timestep"},
            description="as in the paper's Table 3",
        ),
        "mamba alone": Variant(
            {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"},
            description="no MLP and no time encoding",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
)
