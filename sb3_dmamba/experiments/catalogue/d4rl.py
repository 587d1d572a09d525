"""The nine locomotion datasets (Table 1 of the paper)."""

from __future__ import annotations

from typing import Any

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Published, Variant

__all__ = ["EXPERIMENT"]

# Ota 2024 (arXiv:2403.19925), Table 1: Decision Transformer and Decision Mamba.
_TABLE_1 = {
    "halfcheetah-medium-v2": ("42.6", "42.8"),
    "hopper-medium-v2": ("67.6", "83.5 ± 12.5"),
    "walker2d-medium-v2": ("74.0", "78.2"),
    "halfcheetah-medium-replay-v2": ("36.6", "39.6"),
    "hopper-medium-replay-v2": ("82.7", "82.6"),
    "walker2d-medium-replay-v2": ("66.6", "70.9"),
    "halfcheetah-medium-expert-v2": ("86.8", "91.9"),
    "hopper-medium-expert-v2": ("107.6", "111.1"),
    "walker2d-medium-expert-v2": ("108.1", "108.3"),
}


def _data_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Join the expert's and the medium data as the official runs do; a file is what it is."""
    is_name = source == task
    return {"medium_expert": "paper"} if is_name and "medium-expert" in task else {}


EXPERIMENT = Experiment(
    name="d4rl",
    title="Locomotion (D4RL)",
    question=(
        "Does the paper's Table 1 reproduce? Its recipe, seeds and targets on the nine datasets; "
        "100 episodes of each of five targets, ten times in a training. The paper reports the best "
        "evaluation of a training, so the last weights and the best ones are told apart here."
    ),
    variants={"mamba": Variant({"mixer": "mamba"})},
    tasks=tuple(_TABLE_1),
    n_episodes=100,
    seeds=(12, 23, 34, 45, 51),
    evaluations=10,
    published=Published(
        scores={
            task: {"DT": transformer, "DMamba": mamba}
            for task, (transformer, mamba) in _TABLE_1.items()
        },
        is_normalized=True,
        notes=(
            "DT and DMamba are the paper's Table 1, the maximum over the evaluations of a training "
            "(its author, in the issue tracker of the official code); ours are on version 4 of "
            "the environments, the nearest that needs no mujoco-py. The best published by a "
            "relative of this method is 83.2 on average (arXiv:2406.05427)."
        ),
    ),
    data_options=_data_options,
)
