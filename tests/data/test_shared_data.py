"""The recorded datasets, against the table that came with them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sb3_dmamba.data import load_trajectories

# id: episodes, steps, mean, std, min, max, terminated, truncated, env_id, max_episode_steps
TABLE = {
    "hopper/medium-v0": (610, 200384, 1165.8, 438.1, 614.9, 3691.0, 604, 6, "Hopper-v5", 1000),
    "hopper/medium-replay-v0": (
        *(1118, 200714, 511.4, 420.5, 3.7, 2910.7, 1118, 0, "Hopper-v5", 1000),
    ),
    "hopper/expert-v0": (103, 100131, 3502.7, 397.6, 1752.8, 3625.4, 6, 97, "Hopper-v5", 1000),
    "walker2d/medium-replay-v0": (
        *(971, 201518, 564.1, 664.2, -25.1, 4088.0, 963, 8, "Walker2d-v5", 1000),
    ),
    "pendulum/mixed-v0": (250, 50000, -666.6, 430.6, -1832.5, -0.4, 0, 250, "Pendulum-v1", 200),
    "cartpole/mixed-v0": (303, 20512, 67.7, 114.0, 10, 500, 287, 16, "CartPole-v1", 500),
}


@pytest.mark.parametrize("dataset_id", TABLE)
def test_statistics(shared_data: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    start = time.perf_counter()
    data = load_trajectories(dataset_id)
    assert time.perf_counter() - start < 10.0  # measured below 1
    summary = data.summary()
    found = (
        summary.episodes,
        summary.steps,
        *(round(getattr(summary.returns, name), 1) for name in ("mean", "std", "min", "max")),
        summary.terminated,
        summary.truncated,
        data.env_id,
        data.env_kwargs["max_episode_steps"],
    )
    assert found == TABLE[dataset_id]
    assert summary.cut == 0


def test_by_folder(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    data = load_trajectories(shared_data / "minari" / "cartpole" / "mixed-v0")
    assert (len(data), data.source) == (303, "minari:cartpole/mixed-v0")
