"""Two processes that train one model with d3rlpy's ``enable_ddp``, over Gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.d3rlpy.algo import TokenSchedule
from tests.d3rlpy import distributed_worker as worker
from tests.d3rlpy.cases import OURS
from tests.training.test_distributed import finish, start

SETTINGS = [f"{name}, {which}" for name in OURS for which in ("own seeds", "one seed")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of the two processes of ``distributed_worker``."""
    place = tmp_path_factory.mktemp("d3rlpy")
    processes = start(["-m", worker.__name__, str(place)], place)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    """Logged and counted values of each process."""
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def test_every_process_ends_with_the_same_weights(folder: Path) -> None:
    first, second = (torch.load(folder / f"weights-{rank}.pt") for rank in (0, 1))
    assert list(first) == SETTINGS
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("key", SETTINGS)
def test_tokens_of_all_processes_are_counted(key: str, results: list[dict[str, Any]]) -> None:
    own = np.array([each[key]["own_tokens"] for each in results])  # (processes, updates)
    assert (own[0] != own[1]).any()
    assert [each[key]["n_tokens"] for each in results] == [own.sum()] * 2
    if key.startswith("discrete"):
        schedule = TokenSchedule(**worker.RATES)
        expected = [schedule.compute(int(n)) for n in own.sum(axis=0).cumsum()]
        assert min(expected) < max(expected)
        for each in results:
            np.testing.assert_allclose(each[key]["learning_rate"], expected, rtol=1e-12)


def test_processes_share_the_batches_of_a_larger_one(folder: Path) -> None:
    """Each draws a batch of its own; together they are those of one process with both's size."""
    parts = [np.load(folder / f"observations-{rank}.npy") for rank in (0, 1)]
    assert all(part.shape[1] == worker.BATCH_SIZE for part in parts)
    whole = worker.draw("mamba", worker.SEED, 2 * worker.BATCH_SIZE)
    expected = np.stack([batch.observations for batch in whole])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)
