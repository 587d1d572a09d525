"""Four games (Table 2 of the paper)."""

from __future__ import annotations

from typing import Any

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Published, Variant

__all__ = ["EXPERIMENT"]

# Ota 2024 (arXiv:2403.19925), Table 2, raw scores: Decision Transformer and Decision Mamba.
_TABLE_2 = {
    "breakout": ("76.9", "70.6"),
    "qbert": ("2215.8", "5786.0"),
    "pong": ("17.1", "1.6 ± 15.3"),
    "seaquest": ("1129.3", "992.1"),
}


def _data_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Draw what the paper draws from the DQN replay; other kinds of data are what they are."""
    from pathlib import Path

    is_replay = any(Path(source).glob("**/replay_logs")) or Path(source).name == "replay_logs"
    if not is_replay:
        return {}
    recipe = {"n_buffers": 50, "trajectories_per_buffer": 10, "n_steps": 500_000}
    return {**recipe, "seed": seed}


EXPERIMENT = Experiment(
    name="atari",
    title="Atari (DQN replay)",
    question=(
        "Does the paper's Table 2 reproduce? Its recipe and seeds on four games: ten passes over "
        "500,000 steps of the DQN replay, 10 episodes with drawn actions after each. Scores are "
        "raw and of whole games; the return asked for counts clipped rewards, as the data does."
    ),
    variants={"mamba": Variant({"mixer": "mamba"})},
    tasks=tuple(_TABLE_2),
    n_episodes=10,
    seeds=(123, 231, 312),
    evaluations=10,
    deterministic=False,
    published=Published(
        scores={
            task: {"DT": transformer, "DMamba": mamba}
            for task, (transformer, mamba) in _TABLE_2.items()
        },
        is_normalized=False,
        notes=(
            "DT and DMamba are the paper's Table 2, the maximum over the evaluations of a training "
            "(its author, in the issue tracker of the official code)."
        ),
    ),
    data_options=_data_options,
    keep_data=True,
)
