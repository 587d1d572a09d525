"""Rewards that are paid at the end of an episode."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_MAMBA = {"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"}
_ATTENTION = {"mixer": "attention", "channel_mixing": True, "time_encoding": "timestep"}
_DELAYED = {"reward_mode": "delayed"}

EXPERIMENT = Experiment(
    name="sparse",
    title="Delayed rewards",
    question=(
        "What is lost where an episode's return is known at its end alone, so that the "
        "return-to-go says nothing about how things stand? The Decision Transformer's authors "
        "report little loss on such data; the paper does not try. A model of such data acts with a "
        "return-to-go that stays what was asked for; what is scored is the same in all variants."
    ),
    variants={
        "mamba, dense": Variant(_MAMBA),
        "mamba, delayed": Variant(_MAMBA, _DELAYED),
        "attention, dense": Variant(_ATTENTION),
        "attention, delayed": Variant(_ATTENTION, _DELAYED),
    },
    tasks=("hopper", "pendulum"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)
