"""Datasets and problems that experiments run on, by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dmamba.data.sources import find_source, load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import ATARI_ID
from sb3_dmamba.errors import UnknownTaskError
from sb3_dmamba.experiments.runs import DataSource
from sb3_dmamba.tasks import Task, get_reference_scores, get_task

# The paper's shape at a laptop's budget: a tenth of its updates, so a schedule that decays, and
# more dropout and weight decay, with which the loss on episodes left out still falls at the end
# (docs/results.md). In bf16 it takes 0.7 of the time on a CPU that multiplies in it.
_HOPPER: dict[str, Any] = {
    "precision": "bf16",
    "hidden_size": 128,
    "n_layers": 3,
    "context_length": 20,
    "batch_size": 64,
    "n_updates": 10_000,
    "learning_rate": 1e-3,
    "warmup_updates": 1000,
    "lr_schedule": "linear",
    "final_lr_fraction": 0.1,
    "dropout": 0.2,
    "weight_decay": 0.1,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "n_layers": 2,
    "context_length": 20,
    "batch_size": 64,
    "n_updates": 1500,
    "learning_rate": 1e-3,
    "warmup_updates": 150,
    "lr_schedule": "linear",
    "final_lr_fraction": 0.1,
    "dropout": 0.1,
}
_BREAKOUT: dict[str, Any] = {
    "hidden_size": 128,
    "n_layers": 3,
    "context_length": 10,
    "encoder": "nature_cnn",
    "embedding": "tanh",
    "batch_size": 64,
    "n_updates": 3000,
    "learning_rate": 6e-4,
    "warmup_updates": 300,
    "lr_schedule": "cosine",
    "final_lr_fraction": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "return_scale": 10.0,
    "max_timestep": 10_000,
}


def list_problems() -> list[Task]:
    """Return the tasks, the first being the default of most experiments."""
    return [
        Task(
            name="hopper",
            env_id="Hopper-v5",
            dataset="hopper/medium-v0",
            # Five within the data's range, evenly, and one beyond any episode's reach.
            target_returns=(1000.0, 1600.0, 2300.0, 3000.0, 3600.0, 7200.0),
            reference=get_reference_scores("Hopper-v5"),
            overrides=_HOPPER,
            description="Hopper-v5 of mixed quality",
        ),
        Task(
            name="pendulum",
            env_id="Pendulum-v1",
            dataset="pendulum/mixed-v0",
            target_returns=(-1400.0, -1000.0, -600.0, -300.0, -100.0),
            # Of more steps the actions before say so much of the next one that the model repeats
            # itself: at K 20 and 2,500 updates it no longer follows the target.
            overrides={
                **_SMALL,
                "context_length": 5,
                "return_scale": 1000.0,
                "max_timestep": 200,
            },
            description="Pendulum-v1, several agents with random actions in between",
        ),
        Task(
            name="cartpole",
            env_id="CartPole-v1",
            dataset="cartpole/mixed-v0",
            target_returns=(20.0, 60.0, 120.0, 250.0, 500.0),
            overrides={**_SMALL, "return_scale": 100.0, "max_timestep": 500},
            description="CartPole-v1, several agents with random actions in between",
        ),
        Task(
            name="breakout-small",
            env_id=ATARI_ID,
            env_kwargs={
                "game": "Breakout",
                "sticky_actions": 0.0,
                "terminal_on_life_loss": False,
            },
            dataset="dqn-replay/Breakout",
            target_returns=(10.0, 30.0, 60.0, 90.0),
            overrides=_BREAKOUT,
            clip_rewards=True,
            description="Breakout from frames of a scripted player",
        ),
    ]


def generic_task(source: str, trajectories: Trajectories) -> Task:
    """Return a task for data that no task has: a small recipe, scaled by the data.

    Args:
        source: What was loaded.
        trajectories: The data; says the environment, the scale of returns and the longest episode.
    """
    largest = float(np.abs(trajectories.returns).max()) or 1.0
    return Task(
        name=Path(source).stem if Path(source).exists() else source,
        env_id=trajectories.env_id,
        env_kwargs=trajectories.env_kwargs,
        dataset=source,
        reference=get_reference_scores(trajectories.env_id or ""),
        overrides={
            **_SMALL,
            "return_scale": 10.0 ** math.floor(math.log10(largest)),
            "max_timestep": int(trajectories.lengths.max()),
        },
        description=f"data at {source}",
    )


_ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
_CHUNK_BYTES = 1 << 24
_LENGTH = 24


def compute_fingerprint(trajectories: Trajectories) -> str:
    """Return a hash of a dataset's values, spaces and environment.

    Read in chunks: memory-mapped data is never held at once.

    Args:
        trajectories: The data.
    """
    digest = hashlib.sha256()
    for name in _ARRAYS:
        array = getattr(trajectories, name)
        digest.update(f"{name} {np.dtype(array.dtype).str} {tuple(array.shape)}\n".encode())
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).data)
    for space in (trajectories.observation_space, trajectories.action_space):
        digest.update(_describe(space))
    described = {
        "env_id": trajectories.env_id,
        "env_kwargs": dict(trajectories.env_kwargs),
        "frame_stack": trajectories.frame_stack,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:_LENGTH]


def _describe(space: spaces.Space[Any]) -> bytes:
    if isinstance(space, spaces.Box):
        bounds = (
            np.ascontiguousarray(space.low).tobytes() + np.ascontiguousarray(space.high).tobytes()
        )
        return f"Box {space.shape} {space.dtype}".encode() + bounds
    return repr(space).encode()


def resolve_data(text: str) -> tuple[Task | None, str]:
    """Read one ``--data``.

    Args:
        text: A task's name, ``NAME=SOURCE``, or a source.

    Returns:
        The task (None where the data alone must say) and what to load.

    Raises:
        UnknownTaskError: A task that has no data of its own is named without any.
    """
    problems = {problem.name: problem for problem in list_problems()}
    by_source = {problem.dataset: problem for problem in list_problems()}
    name, equals, source = text.partition("=")
    if equals and (name in problems or _is_task(name)):
        return problems.get(name) or get_task(name), source
    if text in problems:
        return problems[text], str(problems[text].dataset)
    if text in by_source:
        return by_source[text], text
    if _is_task(text):
        task = get_task(text)
        if task.dataset is None:
            raise UnknownTaskError(
                f"{text} has no data of its own: say where it lies with --data {text}=PATH"
            )
        return (task if task.target_returns else None), task.dataset
    return None, text


def _is_task(name: str) -> bool:
    if Path(name).exists():
        return False
    try:
        get_task(name)
    except UnknownTaskError:
        return False
    return True


class LoadedData:
    """A source under different options, each loaded and hashed once.

    Args:
        source: What ``load_trajectories`` takes.
        stores: Folder for the stores of sources that can be converted (the DQN replay); None
            converts nothing. Other sources are loaded from where they lie.
    """

    def __init__(self, source: str, stores: Path | None) -> None:
        self._source = source
        self._stores = stores
        self._described: dict[str, DataSource] = {}
        self._last: tuple[str, Trajectories] | None = None

    def get(self, options: Mapping[str, Any]) -> Trajectories:
        """Load the data; what was loaded last is at hand."""
        key = _name_options(options)
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once may not fit into memory
            source, rest = self._place(options)
            self._last = key, load_trajectories(source, **rest)
        return self._last[1]

    def describe(self, options: Mapping[str, Any]) -> DataSource:
        """Return what the data is under some options, and where a cell finds it."""
        key = _name_options(options)
        if key not in self._described:
            fingerprint = compute_fingerprint(self.get(options))
            source, rest = self._place(options)
            self._described[key] = DataSource(source, rest, fingerprint)
        return self._described[key]

    def _place(self, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the source and its options, or the store that it was converted to."""
        if self._stores is None or not _can_be_converted(self._source):
            return self._source, dict(options)
        name = f"{Path(self._source).resolve()} {_name_options(options)}"
        store = self._stores / hashlib.sha256(name.encode()).hexdigest()[:16]
        if not store.exists():
            load_trajectories(self._source, **options, store=store)
        return str(store), {}


def _name_options(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))


def _can_be_converted(source: str) -> bool:
    """Whether ``load_trajectories`` takes ``store=`` for this kind of source."""
    kind = find_source(source)
    return kind is not None and "store" in kind.option_names()
