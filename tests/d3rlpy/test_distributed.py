"""Two processes that train one model with d3rlpy's ``enable_ddp``, over Gloo.

Run as a program, this is one of the two: it trains both algorithms and writes what it counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.optimizers import SGDFactory

from sb3_dmamba.d3rlpy import as_replay_buffer
from sb3_dmamba.d3rlpy.algo import TokenSchedule
from sb3_dmamba.d3rlpy.dataset import WindowReplayBuffer
from tests.d3rlpy.cases import CONTEXT, OURS, SMALL, fit, make_config, vector_encoder, weights_of
from tests.toys import random_trajectories
from tests.training.test_distributed import finish, start

LENGTHS = (1, 2, 9, 3, 1, 12, 2, 30)  # most windows have padding, and each batch another number
N_UPDATES = 6
BATCH_SIZE: int = SMALL["batch_size"]
SEED = 4
RATES: dict[str, Any] = {"learning_rate": 0.1, "warmup_tokens": 40, "final_tokens": 400}


def make_buffer(name: str, seed: int) -> WindowReplayBuffer:
    """Ragged episodes for one of our two algorithms."""
    n_actions = 3 if name.startswith("discrete") else None
    data = random_trajectories(LENGTHS, action_size=3, n_actions=n_actions)
    return as_replay_buffer(data, seed=seed)


def draw(name: str, seed: int, batch_size: int = BATCH_SIZE) -> list[Any]:
    """Return the batches of a run."""
    buffer = make_buffer(name, seed)
    return [buffer.sample_trajectory_batch(batch_size, CONTEXT) for _ in range(N_UPDATES)]


def train(name: str, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train, and return what was logged and counted, and the weights."""
    settings = RATES if name.startswith("discrete") else {"learning_rate": 0.1}
    settings = {**settings, "encoder_factory": vector_encoder(), "optim_factory": SGDFactory()}
    algo = make_config(name, seed=2, **settings).create(enable_ddp=True)
    values = fit(algo, make_buffer(name, seed), N_UPDATES).values
    result = {
        "learning_rate": values.get("learning_rate"),
        "n_tokens": int(algo.impl.progress.n_tokens),
        "own_tokens": [int(batch.masks.sum()) for batch in draw(name, seed)],
    }
    return result, weights_of(algo)


def main() -> None:
    """Train the one with a seed for both processes, the other with a seed for each."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank = d3rlpy.distributed.init_process_group("gloo")
    results, weights = {}, {}
    for name, seed in zip(OURS, (SEED, SEED + rank), strict=True):
        results[name], weights[name] = train(name, seed)
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    torch.save(weights, folder / f"weights-{rank}.pt")
    batches = draw("mamba", SEED)
    np.save(folder / f"observations-{rank}.npy", [batch.observations for batch in batches])
    d3rlpy.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of the two processes."""
    place = tmp_path_factory.mktemp("d3rlpy")
    processes = start(["-m", __name__, str(place)], place)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    return place


def test_every_process_ends_with_the_same_weights(folder: Path) -> None:
    first, second = (torch.load(folder / f"weights-{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_tokens_of_all_processes_are_counted(folder: Path) -> None:
    results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]
    schedule = TokenSchedule(**RATES)
    for name in OURS:
        own = np.array([each[name]["own_tokens"] for each in results])  # (processes, updates)
        assert (own[0] != own[1]).any()
        assert [each[name]["n_tokens"] for each in results] == [own.sum()] * 2
        if name.startswith("discrete"):
            expected = [schedule.compute(int(n)) for n in own.sum(axis=0).cumsum()]
            assert min(expected) < max(expected)
            for each in results:
                np.testing.assert_allclose(each[name]["learning_rate"], expected, rtol=1e-12)


def test_processes_share_the_batches_of_a_larger_one(folder: Path) -> None:
    """Each draws a batch of its own; together they are those of one process with both's size."""
    parts = [np.load(folder / f"observations-{rank}.npy") for rank in (0, 1)]
    assert all(part.shape[1] == BATCH_SIZE for part in parts)
    whole = draw("mamba", SEED, 2 * BATCH_SIZE)
    expected = np.stack([batch.observations for batch in whole])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


if __name__ == "__main__":
    main()
