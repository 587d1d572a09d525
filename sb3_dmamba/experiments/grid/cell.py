"""A cell: one training with its evaluations, and the name that everything in it decides."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.tasks import Task

__all__ = ["Cell", "DataSource", "EvaluationPlan"]

_FORMAT = 1
_KEY_LENGTH = 16


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked of the weights, and when.

    Args:
        target_returns: Returns to ask for, in the environment's units.
        n_episodes: Episodes of each target.
        memories: The memories to act with, one evaluation each.
        every: Updates between two evaluations; 0 evaluates the last weights alone. The last
            weights always are.
        seed: Environment seed of each target's first episode, the same for every cell.
        deterministic: Whether a discrete action is the likeliest one, or drawn.
        max_episode_steps: Episodes are cut after this many steps; None leaves it to the
            environment.

    Raises:
        ConfigError: There is nothing to ask for, or a count is out of its range.
    """

    target_returns: tuple[float, ...]
    n_episodes: int
    memories: tuple[Memory, ...] = ("window",)
    every: int = 0
    seed: int = 10_000
    deterministic: bool = True
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_returns", tuple(map(float, self.target_returns)))
        object.__setattr__(self, "memories", tuple(self.memories))
        for name in ("target_returns", "memories"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values!r}: give at least one, each once")
        for name, minimum in (("n_episodes", 1), ("every", 0), ("seed", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        limit = check_optional_integer("max_episode_steps", self.max_episode_steps, 1)
        object.__setattr__(self, "max_episode_steps", limit)

    def identity(self) -> dict[str, Any]:
        """Return all that decides the result, JSON-compatible; what is not asked is left out."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in fields.items() if value is not None}

    def evaluated_updates(self, n_updates: int) -> list[int]:
        """Return after which updates the weights are evaluated, the last one included."""
        along_the_way = range(self.every, n_updates, self.every) if self.every else []
        return [*along_the_way, n_updates]


@dataclass(frozen=True)
class DataSource:
    """What is learnt from: where it lies, and what it is.

    Args:
        source: What ``load_trajectories`` takes: a path or an id.
        options: Its options.
        fingerprint: Of the arrays that it holds (:func:`compute_fingerprint`): the same data in
            another place is the same data, and changed data is other data.
    """

    source: str
    options: Mapping[str, Any]
    fingerprint: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))


@dataclass(frozen=True)
class Cell:
    """One training with its evaluations.

    Args:
        data: What it learns from.
        task: Where it acts: environment and whether rewards are clipped.
        config: Settings of the model and its training.
        seed: Seed of weights, batches and dropout.
        evaluation: What is asked of the weights.
    """

    data: DataSource
    task: Task
    config: DecisionMambaConfig
    seed: int
    evaluation: EvaluationPlan
    label: str = field(default="", compare=False)

    def identity(self) -> dict[str, Any]:
        """Return all that decides the result, JSON-compatible.

        Settings at their defaults are left out, so a setting that a later version adds makes no
        new cell of an old one; :class:`CellFolder` compares the whole config besides.
        """
        defaults = DecisionMambaConfig().to_dict()
        config = self.config.to_dict()
        return {
            "format": _FORMAT,
            "data": self.data.fingerprint,
            "environment": {
                "id": self.task.env_id,
                "kwargs": dict(self.task.env_kwargs),
                "clip_rewards": self.task.clip_rewards,
            },
            "config": {name: value for name, value in config.items() if value != defaults[name]},
            "seed": self.seed,
            "evaluation": self.evaluation.identity(),
        }

    @property
    def key(self) -> str:
        """Name of the cell's folder: a hash of :meth:`identity`."""
        text = json.dumps(self.identity(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            "format": _FORMAT,
            "label": self.label,
            "data": dataclasses.asdict(self.data),
            "task": self.task.to_dict(),
            "config": self.config.to_dict(),
            "seed": self.seed,
            "evaluation": dataclasses.asdict(self.evaluation),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Cell:
        """Build a cell from what :meth:`to_dict` returned.

        Raises:
            ConfigError: It was written by another version, or changed.
        """
        if fields.get("format") != _FORMAT:
            raise ConfigError(
                f"the cell has format {fields.get('format')!r} and this version reads {_FORMAT}"
            )
        try:
            return cls(
                data=DataSource(**fields["data"]),
                task=Task.from_dict(fields["task"]),
                config=DecisionMambaConfig.from_dict(fields["config"]),
                seed=fields["seed"],
                evaluation=EvaluationPlan(**fields["evaluation"]),
                label=fields["label"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a cell's description: {error!r}") from error
