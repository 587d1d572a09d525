"""Mamba's own initialisation, or the official code's."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="init",
    title="Mamba's initialisation and the official code's",
    question=(
        "The official code draws every linear layer from N(0, 0.02) with zero bias, Mamba's "
        "included, so its step size starts near softplus(0) = 0.69 instead of 0.001 to 0.1. "
        "Does it matter?"
    ),
    variants={"mamba": Variant({"init": "mamba"}), "paper": Variant({"init": "paper"})},
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)
