"""What each of two processes does in test_distributed.py, with d3rlpy's ``enable_ddp``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.optimizers import SGDFactory

from sb3_dmamba.d3rlpy import as_replay_buffer
from sb3_dmamba.d3rlpy.dataset import WindowReplayBuffer
from tests.d3rlpy.cases import CONTEXT, SMALL, fit, make_config, vector_encoder, weights_of
from tests.toys import random_trajectories

LENGTHS = (1, 2, 9, 3, 1, 12, 2, 30)  # most windows have padding, and each batch another number
N_UPDATES = 6
BATCH_SIZE: int = SMALL["batch_size"]
SEED = 4
RATES: dict[str, Any] = {"learning_rate": 0.1, "warmup_tokens": 40, "final_tokens": 400}


def make_buffer(name: str, seed: int) -> WindowReplayBuffer:
    """Ragged episodes for one of our two algorithms."""
    n_actions = 3 if name.startswith("discrete") else None
    return as_replay_buffer(
        random_trajectories(LENGTHS, action_size=3, n_actions=n_actions), seed=seed
    )


def draw(name: str, seed: int, batch_size: int = BATCH_SIZE) -> list[Any]:
    """Return the batches of a run."""
    buffer = make_buffer(name, seed)
    return [buffer.sample_trajectory_batch(batch_size, CONTEXT) for _ in range(N_UPDATES)]


def train(name: str, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train, and return what was logged and counted, and the weights."""
    settings = RATES if name.startswith("discrete") else {"learning_rate": 0.1}
    config = make_config(
        name, seed=2, encoder_factory=vector_encoder(), optim_factory=SGDFactory(), **settings
    )
    algo = config.create(enable_ddp=True)
    values = fit(algo, make_buffer(name, seed), N_UPDATES).values
    result = {
        "learning_rate": values.get("learning_rate"),
        "n_tokens": int(algo.impl.progress.n_tokens),
        "own_tokens": [int(batch.masks.sum()) for batch in draw(name, seed)],
    }
    return result, weights_of(algo)


def main() -> None:
    """Train both algorithms, with a seed for each process and with one for both."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank = d3rlpy.distributed.init_process_group("gloo")
    results, weights = {}, {}
    for name in ("mamba", "discrete mamba"):
        for which, seed in (("own seeds", SEED + rank), ("one seed", SEED)):
            key = f"{name}, {which}"
            results[key], weights[key] = train(name, seed)
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    torch.save(weights, folder / f"weights-{rank}.pt")
    batches = draw("mamba", SEED)
    np.save(folder / f"observations-{rank}.npy", [batch.observations for batch in batches])
    d3rlpy.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
