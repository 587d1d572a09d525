"""What Mamba and attention cost (left out by the paper)."""

from __future__ import annotations

from sb3_dmamba.experiments.measuring import Measurement

__all__ = ["MEASUREMENT"]

MEASUREMENT = Measurement(
    name="efficiency",
    title="Time, memory and operations",
    question=(
        "The paper does not explore efficiency, which is what Mamba is known for. What does an "
        "update cost, and a step of acting, in time, memory and operations, as the context grows?"
    ),
    variants={
        "mamba": {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"},
        "mamba+mlp": {"mixer": "mamba", "channel_mixing": True, "time_encoding": "none"},
        "attention+mlp": {"mixer": "attention", "channel_mixing": True},
        "convolution+mlp": {"mixer": "convolution", "channel_mixing": True},
    },
    function="sb3_dmamba.experiments.efficiency:measure_efficiency",
    rebuilder="sb3_dmamba.experiments.efficiency:rebuild_efficiency",
)
