"""Breakout from a DQN-replay folder: learn, predict held-out players, play a game.

A small network for a CPU: 64 wide, two layers, eight steps of context. On 60,000 frames it learns
for about 3,000 updates, and by heart after that. For the paper's recipe leave ``SMALL`` out, and
take a GPU.

    python examples/breakout_from_dqn_replay.py path/to/dqn-replay/Breakout
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sb3_dmamba import DecisionMamba, Trajectories, load_trajectories
from sb3_dmamba.data import WindowSampler

SMALL: dict[str, Any] = {"hidden_size": 64, "n_layers": 2, "context_length": 8, "batch_size": 32}
SMALL |= {"channel_mixing": False, "warmup_updates": 100, "learning_rate": 1e-3}
HELD_OUT = 5  # every fifth episode


def split(dataset: Trajectories) -> tuple[Trajectories, Trajectories]:
    """Return the episodes to learn from, and those to predict."""
    held_out = np.arange(len(dataset)) % HELD_OUT == 0
    return dataset[~held_out], dataset[held_out]


@torch.inference_mode()
def predict_actions(model: DecisionMamba, dataset: Trajectories) -> NDArray[np.int64]:
    """Return the model's likeliest action at every step, (N,), given the steps before it.

    Windows do not overlap, so a step sees between none and ``context_length - 1`` before it.
    """
    model.policy.set_training_mode(False)
    predicted = []
    for batch in WindowSampler(dataset, model.config.context_length, 64).iterate_all():
        logits = model.policy.model(
            batch.observations, batch.actions, batch.returns_to_go, batch.timesteps
        )  # (B, K, actions)
        predicted.append(logits.argmax(dim=-1)[batch.padding_mask].numpy())
    return np.concatenate(predicted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="a game's folder of the DQN replay")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--games", type=int, default=3)
    parser.add_argument("--output", default="runs/breakout")
    options = parser.parse_args()

    dataset = load_trajectories(options.folder)
    print(dataset.summary())
    learned_from, held_out = split(dataset)
    model = DecisionMamba("breakout", seed=0, n_updates=options.updates, **SMALL)
    model.fit(learned_from, progress_bar=True)
    model.save(options.output)

    correct = predict_actions(model, held_out) == held_out.actions
    counts = np.bincount(held_out.actions)
    print(f"held-out actions predicted: {correct.mean():.1%}")
    print(f"always the commonest one:   {counts.max() / counts.sum():.1%}")
    names = model.task.actions if model.task is not None else ()
    recalls = [correct[held_out.actions == action].mean() for action in range(len(names))]
    for name, recall, count in zip(names, recalls, counts, strict=True):
        print(f"  {name:5} {recall:.1%} of {count}")
    print(f"mean over actions:          {np.mean(recalls):.1%}, by chance {1 / len(names):.1%}")
    best = float(dataset.returns.max())
    print(model.evaluate([best / 4, best], n_episodes=options.games, deterministic=False))


if __name__ == "__main__":
    main()
