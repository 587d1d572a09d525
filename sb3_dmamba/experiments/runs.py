"""A run: one training with its evaluations; its key, folder and result."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConfigError, ExperimentError
from sb3_dmamba.paths import write_atomically
from sb3_dmamba.tasks import Task

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


_WAIT_SECONDS = 1.0  # between two looks at whether waiting for another process still makes sense


def write_text(path: Path, text: str) -> None:
    """Write a text file, which is there whole or not at all."""
    write_atomically(path, text.encode("utf-8"))


def write_json(path: Path, document: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(document, indent=indent, allow_nan=False) + "\n")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of one target, at one point of a training.

    Args:
        update: Updates that the weights had had.
        memory: How it remembered while acting.
        target_return: The return asked for.
        returns: The returns achieved, (n_episodes,) float64.
        lengths: Steps of the episodes, (n_episodes,) int64.
    """

    update: int
    memory: str
    target_return: float
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {**vars(self), "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Evaluation:
        """Build one from what :meth:`to_dict` returned."""
        returns = np.array(fields["returns"], dtype=np.float64)
        lengths = np.array(fields["lengths"], dtype=np.int64)
        return cls(**{**fields, "returns": returns, "lengths": lengths})


@dataclass(frozen=True, eq=False)
class CellResult:
    """All that tables are made of; nothing in it depends on the machine's speed or the time.

    Args:
        losses: Mean training loss since the entry before, by the update it ends with.
        evaluations: In the order of update, memory and target.
        n_parameters: Of the model.
    """

    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[Evaluation, ...]
    n_parameters: int

    @cached_property
    def last_update(self) -> int:
        """Updates of the last weights."""
        return max(evaluation.update for evaluation in self.evaluations)


class CellFolder:
    """The folder of one cell.

    Args:
        path: The folder; its name is the cell's key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = path / "cell.json"
        self.model = path / "model.zip"
        self.losses = path / "losses.json"
        self.evaluations = path / "evaluations"
        self.result = path / "result.json"
        self.progress = path / "progress.json"
        self.machine = path / "machine.json"
        self.log = path / "log.txt"

    @classmethod
    def prepare(cls, cells: Path, cell: Cell) -> CellFolder:
        """Return the folder of a cell, with its description in it.

        Raises:
            ExperimentError: It holds a training under defaults that have changed since.
        """
        folder = cls(cells / cell.key)
        if folder.description.exists():
            found = folder.read_cell()
            changed = {
                name: (old, cell.config.to_dict()[name])
                for name, old in found.config.to_dict().items()
                if old != cell.config.to_dict()[name]
            }
            if changed:
                raise ExperimentError(
                    f"{folder.path} was trained when these settings had other defaults (before, "
                    f"now): {changed}; set them with --set, or name another folder with --cells"
                )
        # Data that moved is still the same data: the description says where it lies now.
        write_json(folder.description, cell.to_dict(), indent=1)
        return folder

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result.exists()

    def read_cell(self) -> Cell:
        """Read what the cell is.

        Raises:
            ExperimentError: There is no cell, or it cannot be read.
        """
        try:
            return Cell.from_dict(json.loads(self.description.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ExperimentError(f"there is no cell at {self.path}") from error
        except (json.JSONDecodeError, ConfigError) as error:
            raise ExperimentError(f"{self.description} cannot be read: {error}") from error

    def read_result(self) -> CellResult:
        """Read the result of a cell that is done.

        Raises:
            ExperimentError: It is not, or the file was changed.
        """
        try:
            fields = json.loads(self.result.read_text(encoding="utf-8"))
            return CellResult(
                losses=tuple((int(update), float(loss)) for update, loss in fields["losses"]),
                evaluations=tuple(map(Evaluation.from_dict, fields["evaluations"])),
                n_parameters=int(fields["n_parameters"]),
            )
        except FileNotFoundError as error:
            raise ExperimentError(f"the cell {self.path} is not done") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ExperimentError(
                f"{self.result} cannot be read ({error!r}): delete it, and the evaluations are "
                "gathered again"
            ) from error

    def read_json(self, path: Path, default: Any) -> Any:
        """Read a JSON file of the folder; what is absent or damaged is the default."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return default

    @contextlib.contextmanager
    def locked(self, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait until no other process works on the cell, then keep others away.

        The operating system gives the lock back when a process ends, however it ends.

        Args:
            while_waiting: Called every now and then while another process has the lock; what it
                raises ends the wait.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        while True:
            try:
                lock.acquire(timeout=_WAIT_SECONDS)
                break
            except Timeout:
                if while_waiting is not None:
                    while_waiting()
        try:
            yield
        finally:
            lock.release()


_POINTS = 100


class LossCurve:
    """Mean losses over equal stretches of updates.

    The sum of a stretch stays on the device until the stretch ends or a checkpoint needs it.

    Args:
        folder: Where it is kept.
        update: The checkpoint from which training goes on.
        n_updates: Updates of the whole training.
    """

    def __init__(self, folder: CellFolder, update: int, n_updates: int) -> None:
        self._path = folder.losses
        self._every = max(1, n_updates // _POINTS)
        kept = folder.read_json(self._path, {"entries": [], "open": []})
        # The curve is written before the model, so it may be one checkpoint ahead of it.
        self.entries: list[list[float]] = [each for each in kept["entries"] if each[0] <= update]
        self._open = [each for each in kept["open"] if each[0] <= update]
        begun = [each for each in self._open if each[0] == update]
        self._sum: Any = begun[0][1] if begun else 0.0
        self._count: int = begun[0][2] if begun else 0

    def add(self, update: int, loss: Tensor) -> None:
        """Count the loss of an update."""
        self._sum = self._sum + loss.detach().double()
        self._count += 1
        if update % self._every == 0:
            self.entries.append([update, float(self._sum) / self._count])
            self._sum, self._count = 0.0, 0

    def write(self, update: int) -> None:
        """Keep the curve for a checkpoint that is about to be written.

        The stretch that has begun is kept for this checkpoint and for the one before, whichever
        of them a crash leaves.
        """
        self._open = [*self._open[-1:], [update, float(self._sum), self._count]]
        write_json(self._path, {"entries": self.entries, "open": self._open})
