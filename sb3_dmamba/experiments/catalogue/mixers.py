"""Which mixer."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

# The channel mixing is each architecture's own: Table 3 of the paper removes Mamba's at no loss.
# So is the time encoding: the Decision Transformer and ConvFormer have it, and it is how attention
# knows the order at all.
EXPERIMENT = Experiment(
    name="mixers",
    title="Mamba, attention, convolution",
    question=(
        "Does Mamba do at least as well as attention (Decision Transformer) and local convolution "
        "(Decision ConvFormer) at equal updates, and what does each cost? The paper compares "
        "scores alone, the best of a run; here are the last weights, with the time they took."
    ),
    variants={
        "mamba": Variant({"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"}),
        "attention": Variant(
            {"mixer": "attention", "channel_mixing": True, "time_encoding": "timestep"}
        ),
        "convolution": Variant(
            {"mixer": "convolution", "channel_mixing": True, "time_encoding": "timestep"}
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
)
