"""Writes tests/compatibility/files and expected.npz: what version 0.1.0 wrote and did.

The committed files are 0.1.0's, of commit e96bfc8, written once by

    python -m tests.compatibility.make_files

with Python 3.11, torch 2.13, NumPy 2.4, Gymnasium 1.0, Minari 0.5.4, d3rlpy 2.8.1 and onnx 1.23.
**They stay as they are**: a later version must open them. A change of a format adds files of its
own version beside these. The script says how each was made; it refuses to write over them.

They are written in a fixed folder, which pickles and experiments record, and copied from there.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.experiments.catalogue import Experiment, Variant
from sb3_dmamba.experiments.engines import run_experiment
from sb3_dmamba.experiments.plan import Request
from sb3_dmamba.networks import DecisionMambaPolicy
from tests.compatibility.acting import (
    FILES,
    N_ENVS,
    Arrays,
    act,
    d3rlpy_window,
    draw_observations,
    weights_of,
)

WRITTEN = 1_700_000_000_000_000_000  # when every file of a store was last changed, in nanoseconds
WORK = Path(tempfile.gettempdir()) / "sb3_dmamba_0.1.0"

TINY: dict[str, Any] = {
    "hidden_size": 8,
    "n_layers": 1,
    "context_length": 4,
    "d_state": 3,
    "max_timestep": 20,
    "batch_size": 4,
    "return_scale": 10.0,
    "n_updates": 6,
    "warmup_updates": 2,
    "lr_schedule": "cosine",
    "dropout": 0.1,
}

EXPERIMENT = Experiment(
    name="compatibility",
    title="Files of 0.1.0",
    question="Are they still read?",
    variants={"mamba": Variant({"channel_mixing": False})},
    tasks=(),
    memories=("window", "stream"),
    n_episodes=2,
    seeds=(0,),
    settings={**TINY, "n_updates": 20},
)
REQUEST: dict[str, Any] = {"target_returns": (5.0, 10.0), "evaluations": 2, "n_updates": 20}

# Policies in files of their own: what a network may be made of.
POLICIES: dict[str, dict[str, Any]] = {
    "attention": {"mixer": "attention", "n_heads": 2},
    "convolution": {"mixer": "convolution", "filter_length": 3},
    "tanh": {"n_layers": 2, "embedding": "tanh", "channel_mixing": False, "time_encoding": "none"},
    "global": {"time_encoding": "global", "activation": "relu"},
    "paper": {"init": "paper", "expand": 1, "dt_rank": 2},
}
DISCRETE_POLICIES = ("convolution", "global")
WINDOW_ONLY = ("global",)


def walks() -> Trajectories:
    """Noise: continuous actions, episodes that end in every way."""
    rng = np.random.default_rng(0)
    lengths = (7, 3, 12)
    n_steps = sum(lengths)
    return Trajectories(
        observations=rng.normal(2.0, 3.0, size=(n_steps, 3)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (n_steps, 2)).astype(np.float32),
        rewards=rng.normal(size=n_steps).astype(np.float32),
        terminated=np.array([True, False, False]),
        truncated=np.array([False, True, False]),
        episode_offsets=np.cumsum([0, *lengths]),
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (2,), np.float32),
        source="noise",
    )


def cartpole() -> Trajectories:
    """Noise in CartPole's shape, with a reward of 1 a step."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 16, 6)
    n_steps = int(lengths.sum())
    env: Any = gym.make("CartPole-v1")
    return Trajectories(
        observations=rng.normal(size=(n_steps, 4)).astype(np.float32),
        actions=rng.integers(0, 2, n_steps),
        rewards=np.ones(n_steps, dtype=np.float32),
        terminated=np.ones(len(lengths), dtype=bool),
        truncated=np.zeros(len(lengths), dtype=bool),
        episode_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        observation_space=env.observation_space,
        action_space=env.action_space,
        env_id="CartPole-v1",
        env_kwargs={"max_episode_steps": 30},
        source="noise",
    )


def frames() -> Trajectories:
    """Noise in frames of bytes, stored once and stacked when drawn; actions from 5 on."""
    rng = np.random.default_rng(2)
    return Trajectories(
        observations=rng.integers(0, 256, (11, 6, 6), dtype=np.uint8),
        actions=rng.integers(5, 8, 11),
        rewards=rng.normal(size=11).astype(np.float32),
        terminated=np.array([True, True]),
        truncated=np.array([False, False]),
        episode_offsets=np.array([0, 4, 11]),
        observation_space=spaces.Box(0, 255, (3, 6, 6), np.uint8),
        action_space=spaces.Discrete(3, start=5),
        source="noise",
        frame_stack=3,
    )


def write_stores() -> None:
    """Write the three datasets as stores, and pickles of one of them."""
    for name, data in (("walks", walks()), ("cartpole", cartpole()), ("frames", frames())):
        store = WORK / "stores" / name
        data.save(store)
        for file in store.iterdir():
            os.utime(file, ns=(WRITTEN, WRITTEN))
    pickles = WORK / "pickles"
    pickles.mkdir()
    (pickles / "store.pickle").write_bytes(pickle.dumps(Trajectories.open(WORK / "stores/walks")))
    (pickles / "memory.pickle").write_bytes(pickle.dumps(cartpole()))
    (pickles / "episode.pickle").write_bytes(pickle.dumps(walks()[0]))


def write_model(expected: Arrays) -> None:
    """Write a model with its optimiser after 3 of 6 updates, and what it does; export it."""
    data = walks()
    model = DecisionMamba(None, seed=3, **TINY).fit(data, 3)
    model.save(WORK / "model.zip")
    observations = draw_observations(data)
    for memory in ("window", "stream"):
        actions, state = act(model.policy, memory, observations)
        expected[f"model/{memory}"] = actions
        (WORK / f"pickles/state_{memory}.pickle").write_bytes(pickle.dumps(state))
        expected[f"model/{memory}/later"] = act(model.policy, memory, observations, state)[0]
        model.export(WORK / f"{memory}.onnx", memory=memory)
    model.export(WORK / "window.pt2", memory="window")
    compress(WORK / "window.pt2")
    model.fit(data, 3)
    expected.update({f"model/continued/{name}": each for name, each in weights_of(model).items()})

    carried = DecisionMamba(None, seed=4, **TINY, carry_state=True)
    carried.fit(data, 3).save(WORK / "carried.zip")
    carried.fit(data, 3)
    expected.update({f"carried/continued/{name}": e for name, e in weights_of(carried).items()})


def write_policies(expected: Arrays) -> None:
    """Write policies of several networks, with weights that matter."""
    (WORK / "policies").mkdir()
    for number, (name, settings) in enumerate(POLICIES.items()):
        data = cartpole() if name in DISCRETE_POLICIES else walks()
        torch.manual_seed(number)
        config = DecisionMambaConfig(**{**TINY, **settings})
        policy = DecisionMambaPolicy(data.observation_space, data.action_space, config)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
        policy.set_training_mode(False)
        policy.save(WORK / f"policies/{name}.zip")
        for memory in ("window", "stream") if name not in WINDOW_ONLY else ("window",):
            actions, _ = act(policy, memory, draw_observations(data))
            expected[f"policy/{name}/{memory}"] = actions


def write_run() -> None:
    """Write a checkpoint half-way, and the model at the end, by ``dmamba train``."""
    settings = {name: value for name, value in TINY.items() if name != "n_updates"}
    command = ["train", "CartPole-v1", "--dataset", str(WORK / "stores/cartpole"), "--updates", "6"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    command += ["--seed", "5", "--checkpoint-every", "3", "--output", str(WORK / "run")]
    run_command(*command)
    (WORK / "run/progress.csv").unlink()
    (WORK / "run/checkpoints/model_6_steps.zip").unlink()


def write_d3rlpy(expected: Arrays) -> None:
    """Write algorithms of both kinds as d3rlpy does, and what they do."""
    import d3rlpy

    from sb3_dmamba.d3rlpy import DecisionMambaConfig as Continuous
    from sb3_dmamba.d3rlpy import DiscreteDecisionMambaConfig, from_sb3

    (WORK / "d3rlpy").mkdir()
    fields: dict[str, Any] = {
        "context_size": 4,
        "batch_size": 4,
        "num_layers": 1,
        "d_state": 3,
        "max_timestep": 20,
        "seed": 6,
    }
    made = {
        "continuous": (Continuous, walks(), d3rlpy.preprocessing.MinMaxRewardScaler(-5.0, 9.0)),
        "discrete": (DiscreteDecisionMambaConfig, cartpole(), None),
    }
    for name, (kind, data, scaler) in made.items():
        encoder = d3rlpy.models.VectorEncoderFactory([8], exclude_last_activation=True)
        algo = kind(**fields, encoder_factory=encoder, reward_scaler=scaler).create()
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # d3rlpy draws from it
        algo.fit(
            data.to_d3rlpy(),
            n_steps=3,
            n_steps_per_epoch=3,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
        )
        algo.save(WORK / f"d3rlpy/{name}.d3")
        if name == "continuous":
            algo.save_model(WORK / f"d3rlpy/{name}.pt")
            compress(WORK / f"d3rlpy/{name}.pt")
        expected[f"d3rlpy/{name}"] = np.asarray(algo.predict(d3rlpy_window(data, 4)))

    ours = from_sb3(DecisionMamba.load(WORK / "model.zip"))
    ours.save(WORK / "d3rlpy/converted.d3")  # has our encoder, optimiser and schedule in it
    expected["d3rlpy/converted"] = np.asarray(ours.predict(d3rlpy_window(walks(), 4)))


def write_minari() -> None:
    """Write Minari datasets that name our environments."""
    made: dict[str, tuple[str, dict[str, Any], int]] = {
        "tmaze": ("sb3_dmamba:sb3_dmamba/TMaze-v0", {"length": 3}, 1),
        "pong": (
            "sb3_dmamba:sb3_dmamba/Atari-v0",
            {"game": "Pong", "screen_size": 8, "frame_stack": 2},
            2,
        ),
    }
    os.environ["MINARI_DATASETS_PATH"] = str(WORK / "minari")
    for name, (env_id, kwargs, stack) in made.items():
        data = collect("random", env_id, 8, seed=0, env_kwargs=kwargs, frame_stack=stack)
        data.to_minari(f"{name}-v0")


def write_experiment() -> None:
    """Run an experiment of one training, and keep its folder; write an evaluation's report."""
    cells = WORK / "cells"
    data = (str(WORK / "stores/cartpole"),)
    run_experiment(EXPERIMENT, Request(cells=cells, data=data, **REQUEST), WORK / "report", "-")
    shutil.rmtree(WORK / "report")
    (cell,) = cells.iterdir()
    for name in ("lock", "log.txt"):
        (cell / name).unlink(missing_ok=True)
    machine = json.loads((cell / "machine.json").read_text())
    for session in machine:
        session["machine"] = "a CPU"
    (cell / "machine.json").write_text(json.dumps(machine) + "\n")
    model = DecisionMamba.load(WORK / "run/model.zip")
    model.evaluate((5.0, 10.0), 3, seed=0, n_workers=0).to_json(WORK / "evaluation.json")


def compress(path: Path) -> None:
    """Put a large file into a gzip, for this repository's sake."""
    content = gzip.compress(path.read_bytes(), 9, mtime=0)
    path.with_name(f"{path.name}.gz").write_bytes(content)
    path.unlink()


def run_command(*arguments: str) -> None:
    """Run ``dmamba``."""
    subprocess.run([sys.executable, "-m", "sb3_dmamba", *arguments], check=True)


def main() -> None:
    """Write everything anew, where nothing is."""
    if FILES.exists():
        raise SystemExit(f"{FILES} is there: these files are not made again")
    assert sb3_dmamba.__version__ == "0.1.0"
    assert N_ENVS == 2
    torch.set_num_threads(1)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    expected: Arrays = {}
    write_stores()
    write_model(expected)
    write_policies(expected)
    write_run()
    write_d3rlpy(expected)
    write_minari()
    write_experiment()
    np.savez_compressed(WORK / "expected.npz", **expected)  # type: ignore[arg-type]
    shutil.copytree(WORK, FILES)
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
