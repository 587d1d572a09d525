"""How wide and how deep."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_SIZES = ((128, 3), (32, 3), (64, 3), (256, 3), (128, 1), (128, 2), (128, 6))

EXPERIMENT = Experiment(
    name="size",
    title="Width and depth",
    question=(
        "Which size does the data call for? The paper uses width 128 or 256 and 3 layers on "
        "locomotion, 6 on Atari, and tries no other."
    ),
    variants={
        f"width {width}, {layers} layer{'s' if layers > 1 else ''}": Variant(
            {"hidden_size": width, "n_layers": layers}
        )
        for width, layers in _SIZES
    },
    tasks=("hopper",),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)
