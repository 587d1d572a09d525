"""How many steps of context (Table 4 of the paper)."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_LENGTHS = (20, 1, 5, 10, 30, 50, 100)

EXPERIMENT = Experiment(
    name="context-length",
    title="Steps of context",
    question=(
        "How much does the context length K matter? The paper's ablation finds other effects on "
        "Breakout than on Qbert, and leaves the question open. K 1 sees the present alone."
    ),
    variants={f"K {length}": Variant({"context_length": length}) for length in _LENGTHS},
    tasks=("hopper",),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)
