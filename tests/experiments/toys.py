"""A tiny dataset of CartPole's shape, a tiny experiment on it, and results without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.experiments.catalogue import Experiment, Variant
from sb3_dmamba.experiments.plan import Plan, Request, make_plan
from sb3_dmamba.experiments.runs import Evaluation, RunFolder, write_json

TINY = {"hidden_size": 8, "n_layers": 1, "d_state": 2, "context_length": 3, "batch_size": 4}
TOY = Experiment(
    name="toy",
    title="A toy",
    question="Does it work?",
    variants={
        "mamba": Variant({"channel_mixing": False}),
        "attention": Variant({"mixer": "attention"}),
    },
    tasks=(),
    memories=("window", "stream"),
    n_episodes=3,
    seeds=(0, 1),
    settings=TINY,
)


def cartpole_data(seed: int = 0, n_episodes: int = 6) -> Trajectories:
    """Noise in CartPole's shape: episodes of 5 to 15 steps, a reward of 1 each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 16, n_episodes)
    n_steps = int(lengths.sum())
    env = gym.make("CartPole-v1")
    return Trajectories(
        observations=rng.normal(size=(n_steps, 4)).astype(np.float32),
        actions=rng.integers(0, 2, n_steps),
        rewards=np.ones(n_steps, dtype=np.float32),
        terminated=np.ones(n_episodes, dtype=bool),
        truncated=np.zeros(n_episodes, dtype=bool),
        episode_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        observation_space=env.observation_space,  # type: ignore[arg-type]
        action_space=env.action_space,  # type: ignore[arg-type]
        env_id="CartPole-v1",
        source="toy",
    )


def save_data(folder: Path, seed: int = 0) -> Path:
    """Write the dataset; return where it lies."""
    cartpole_data(seed).save(folder)
    return folder


def toy_plan(folder: Path, experiment: Experiment = TOY, **request: Any) -> Plan:
    """Plan a toy experiment on data in a folder (written if it is not there)."""
    data = folder / "data"
    if not data.exists():
        save_data(data)
    given = {"data": (str(data),), "n_updates": 20, "target_returns": (5.0, 10.0, 14.0), **request}
    return make_plan(experiment, Request(cells=folder / "cells", **given))


def fake_result(
    folder: RunFolder,
    returns: Mapping[tuple[str, float], Any],
    updates: tuple[int, ...] = (20,),
    growth: float = 0.0,
) -> None:
    """Write a run's result by hand: episodes by memory and target, growing by evaluation."""
    rows = [
        Evaluation(
            update,
            memory,
            target,
            np.asarray(episodes, dtype=np.float64) + growth * index,
            np.full(len(episodes), 7),
        ).to_dict()
        for index, update in enumerate(updates)
        for (memory, target), episodes in returns.items()
    ]
    losses = [[1, 0.9], [10, 0.5], [20, 0.25]]
    write_json(folder.result, {"n_parameters": 123, "losses": losses, "evaluations": rows})


def changed(instance: Any, **changes: Any) -> Any:
    """Return a copy of a dataclass with some fields changed."""
    return dataclasses.replace(instance, **changes)
