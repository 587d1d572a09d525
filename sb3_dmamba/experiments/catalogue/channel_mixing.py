"""With or without an MLP in each block (Table 3 of the paper)."""

from __future__ import annotations

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

_MAMBA = {"mixer": "mamba", "time_encoding": "timestep"}
_TIMELESS = {"mixer": "mamba", "time_encoding": "none"}

EXPERIMENT = Experiment(
    name="channel-mixing",
    title="With and without channel mixing",
    question=(
        "Does Mamba need the MLP that follows it in each block? The paper's Table 3 removes it and "
        "finds comparable scores, the best of each run. A wider Mamba without an MLP tells "
        "capacity from mixing; the time encoding, which Mamba can do without as well, is taken "
        "away from both."
    ),
    variants={
        "mamba+mlp": Variant({**_MAMBA, "channel_mixing": True}),
        "mamba": Variant({**_MAMBA, "channel_mixing": False}),
        "mamba, expand 4": Variant(
            {**_MAMBA, "channel_mixing": False, "expand": 4},
            description="twice the inner width and no MLP",
        ),
        "mamba+mlp, no time": Variant({**_TIMELESS, "channel_mixing": True}),
        "mamba, no time": Variant({**_TIMELESS, "channel_mixing": False}),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)
