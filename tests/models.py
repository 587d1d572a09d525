"""Tiny models, and how to tell two of them apart to the last bit."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "n_layers": 2,
    "context_length": 5,
    "d_state": 4,
    "batch_size": 8,
    "return_scale": 10.0,
    "n_updates": 12,
    "lr_schedule": "cosine",
}
MIXERS: tuple[str, ...] = get_args(get_type_hints(DecisionMambaConfig)["mixer"])


def tiny_model(task: Any = None, **settings: Any) -> DecisionMamba:
    """A model that trains in milliseconds, with dropout and a schedule that matter."""
    return DecisionMamba(task, **{"seed": 3, **TINY, **settings})


def everything_in(model: DecisionMamba) -> dict[str, Tensor]:
    """Copy all that training changes: weights, moments and counters."""
    assert model._updater is not None
    counters = (model.num_timesteps, model._total_timesteps, model._n_updates)
    return {
        **{f"weights {name}": each.clone() for name, each in model.policy.state_dict().items()},
        **{f"moments {name}": each.clone() for name, each in model._updater.state().items()},
        "counters": torch.tensor(counters),
    }


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Name what is not bitwise equal."""
    names = first.keys() | second.keys()
    return sorted(
        name
        for name in names
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    )


def global_generators() -> list[Any]:
    """Return the state of torch's and NumPy's.

    Python's is not among them: the type checker of the test suite draws from it.
    """
    state: Any = np.random.get_state()  # noqa: NPY002  # nobody should have used it
    return [torch.get_rng_state().tolist(), state[1].tolist(), state[2]]


class Recorder(BaseCallback):
    """Notes the counters, learning rates and losses it sees; stops where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.seen: list[int] = []
        self.learning_rates: list[float] = []
        self.losses: list[float] = []
        self.starts = self.ends = 0

    def _on_training_start(self) -> None:
        self.starts += 1

    def _on_training_end(self) -> None:
        self.ends += 1

    def _on_step(self) -> bool:
        self.seen.append(self.num_timesteps)
        self.learning_rates.append(self.locals["metrics"].learning_rate)
        self.losses.append(float(self.locals["metrics"].loss))
        return self.num_timesteps != self.stop_at


class Memory(KVWriter):
    """A logger's output that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None:
        pass


def use_memory(model: DecisionMamba) -> Memory:
    """Let a model log to memory."""
    memory = Memory()
    model.set_logger(Logger(None, [memory]))
    return memory
