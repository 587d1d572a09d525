"""A run, one training with its evaluations: its key, its folder and its result.

A run's folder is named by a hash of everything that decides its result (:attr:`Run.key`), so equal
runs of different experiments share a folder, and moved data is still the same data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, ExperimentError
from sb3_dmamba.io import write_atomically
from sb3_dmamba.tasks import Task

_FORMAT = 1
_KEY_LENGTH = 16


@dataclass(frozen=True)
class EvaluationPlan:
    """How a training is evaluated, and when."""

    target_returns: tuple[float, ...]
    n_episodes: int
    memories: tuple[str, ...] = ("window",)  # "none" for a peer without memory
    every: int = 0  # updates between two evaluations; the last weights are always evaluated
    seed: int = 10_000  # of each target's first episode, the same for every run
    deterministic: bool = True
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_returns", tuple(map(float, self.target_returns)))
        object.__setattr__(self, "memories", tuple(self.memories))
        for name in ("target_returns", "memories"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                message = f"{name}={values!r}: give at least one, each once"
                raise ConfigError(message, setting=name, value=values)
        for name, minimum in (("n_episodes", 1), ("every", 0), ("seed", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        limit = check_optional_integer("max_episode_steps", self.max_episode_steps, 1)
        object.__setattr__(self, "max_episode_steps", limit)

    def identity(self) -> dict[str, Any]:
        """Return all that decides the result, JSON-compatible, without fields that are None."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in fields.items() if value is not None}

    def evaluated_updates(self, n_updates: int) -> list[int]:
        """Return after which updates the weights are evaluated, the last one included."""
        along_the_way = range(self.every, n_updates, self.every) if self.every else []
        return [*along_the_way, n_updates]


@dataclass(frozen=True)
class DataSource:
    """A dataset: where it lies, and a hash of its values."""

    source: str  # a path or an id, as load_trajectories takes
    options: Mapping[str, Any]
    fingerprint: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))


@dataclass(frozen=True)
class Run:
    """One training with its evaluations.

    Of a peer, ``algorithm`` is its name (``"d3rlpy:IQL"``), ``algorithm_settings`` are fields of
    its config, and ``config`` has the number of updates alone.
    """

    data: DataSource
    task: Task
    config: DecisionMambaConfig
    seed: int
    evaluation: EvaluationPlan
    label: str = field(default="", compare=False)  # in messages
    algorithm: str = ""
    algorithm_settings: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return all that decides the result, JSON-compatible.

        Settings as in the paper are left out: later versions' new settings change no old keys.
        """
        defaults, task = DecisionMambaConfig.from_recipe("paper").to_dict(), self.task
        environment = {"id": task.env_id, "kwargs": dict(task.env_kwargs)}
        return {
            "format": _FORMAT,
            "data": self.data.fingerprint,
            "environment": {**environment, "clip_rewards": task.clip_rewards},
            "config": {k: v for k, v in self.config.to_dict().items() if v != defaults[k]},
            "seed": self.seed,
            "evaluation": self.evaluation.identity(),
            **self._peer(),
        }

    def _peer(self) -> dict[str, Any]:
        if not self.algorithm:
            return {}  # runs from before there were peers keep their keys
        settings = dict(self.algorithm_settings)
        return {"algorithm": self.algorithm, "algorithm_settings": settings}

    @property
    def key(self) -> str:
        """Name of the run's folder: a hash of :meth:`identity`."""
        return _hash(self.identity())

    @property
    def cost_key(self) -> str:
        """A hash of all that decides what an update costs."""
        return _hash({**self.identity(), "seed": None, "evaluation": None})

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
            **self._peer(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Run:
        """Build a run from what :meth:`to_dict` returned."""
        if (found := fields.get("format")) != _FORMAT:
            message = f"the run has format {found!r} and this version reads {_FORMAT}"
            raise ConfigError(message, setting="format", value=found)
        try:
            return cls(
                data=DataSource(**fields["data"]),
                task=Task.from_dict(fields["task"]),
                config=DecisionMambaConfig.from_dict(fields["config"]),
                seed=fields["seed"],
                evaluation=EvaluationPlan(**fields["evaluation"]),
                label=fields["label"],
                algorithm=fields.get("algorithm", ""),
                algorithm_settings=fields.get("algorithm_settings", {}),
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a run's description: {error!r}") from error


def _hash(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


# --- Folder --------------------------------------------------------------------------------------

_LOCK_SECONDS = 1.0  # of one attempt to take a lock


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, text.encode("utf-8"))


def write_json(path: Path, document: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(document, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """Read a JSON file; return the default where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return default


class RunFolder:
    """The folder of one run."""

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
    def prepare(cls, parent: Path, run: Run) -> RunFolder:
        """Return the folder of a run, with its description in it."""
        folder = cls(parent / run.key)
        if folder.description.exists():
            now, before = run.config.to_dict(), folder.read_run().config.to_dict()
            if changed := {k: (old, now[k]) for k, old in before.items() if old != now[k]}:
                message = (
                    f"{folder.path} was trained when these settings had other defaults (before, "
                    f"now): {changed}; set them with --set, or name another folder with --cells"
                )
                raise ExperimentError(message, setting="cells", value=str(parent))
        write_json(folder.description, run.to_dict(), indent=1)  # the data may have moved
        return folder

    @property
    def is_done(self) -> bool:
        """Whether the result is there."""
        return self.result.exists()

    def read_run(self) -> Run:
        """Read the run's description."""
        try:
            return Run.from_dict(json.loads(self.description.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ExperimentError(f"there is no run at {self.path}") from error
        except (json.JSONDecodeError, ConfigError) as error:
            raise ExperimentError(f"{self.description} cannot be read: {error}") from error

    def read_result(self) -> RunResult:
        """Read the result of a run that is done."""
        try:
            fields = json.loads(self.result.read_text(encoding="utf-8"))
            return RunResult(
                losses=tuple((int(update), float(loss)) for update, loss in fields["losses"]),
                evaluations=tuple(map(Evaluation.from_dict, fields["evaluations"])),
                n_parameters=int(fields["n_parameters"]),
                return_importance=fields.get("return_importance"),
            )
        except FileNotFoundError as error:
            raise ExperimentError(f"the run {self.path} is not done") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            fix = "delete it, and the same command gathers the evaluations again"
            raise ExperimentError(f"{self.result} cannot be read ({error!r}): {fix}") from error

    def read_json(self, path: Path, default: Any) -> Any:
        """Read a JSON file of the folder; return the default where it is absent or damaged."""
        return read_json(path, default)

    def discard(self) -> None:
        """Remove what an unfinished attempt left, for a run that cannot go on from it."""
        shutil.rmtree(self.evaluations, ignore_errors=True)
        for path in (self.losses, self.machine):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the run's lock, which one process has at a time.

        The operating system releases the lock when a process ends, however it ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        while True:
            try:
                lock.acquire(timeout=_LOCK_SECONDS)
                break
            except Timeout:
                if while_waiting is not None:
                    while_waiting()
        try:
            yield
        finally:
            lock.release()


# --- Result --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of one target, at one point of a training."""

    update: int
    memory: str
    target_return: float
    returns: NDArray[np.float64]  # (n_episodes,)
    lengths: NDArray[np.int64]  # (n_episodes,)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {**vars(self), "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Evaluation:
        """Build one from what :meth:`to_dict` returned."""
        returns = np.array(fields["returns"], dtype=np.float64)
        lengths = np.array(fields["lengths"], dtype=np.int64)
        return cls(**{**fields, "returns": returns, "lengths": lengths})


@dataclass(frozen=True, eq=False)
class RunResult:
    """Everything that tables are made of; it does not depend on the machine's speed or the time."""

    losses: tuple[tuple[int, float], ...]  # update, and the mean since the entry before
    evaluations: tuple[Evaluation, ...]  # by update, memory and target
    n_parameters: int
    return_importance: float | None = None  # of a model of ours, see measure_return_importance

    @cached_property
    def last_update(self) -> int:
        """Updates of the last weights."""
        return max(evaluation.update for evaluation in self.evaluations)


_LOSS_POINTS = 100


class LossCurve:
    """Mean training losses over equal intervals; an open interval's sum stays on the device."""

    def __init__(self, folder: RunFolder, update: int, n_updates: int) -> None:
        self._path = folder.losses
        self._every = max(1, n_updates // _LOSS_POINTS)
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
        """Write the curve for a checkpoint that is about to be written."""
        # for this checkpoint and the one before: a crash may leave either
        self._open = [*self._open[-1:], [update, float(self._sum), self._count]]
        write_json(self._path, {"entries": self.entries, "open": self._open})


# --- Fingerprint of a dataset --------------------------------------------------------------------

_ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
_CHUNK_BYTES = 1 << 24
_FINGERPRINT_LENGTH = 24


def compute_fingerprint(trajectories: Trajectories) -> str:
    """Return a hash of a dataset's values, read in chunks, and its spaces and environment."""
    digest = hashlib.sha256()
    for name in _ARRAYS:
        array = getattr(trajectories, name)
        digest.update(f"{name} {np.dtype(array.dtype).str} {tuple(array.shape)}\n".encode())
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).data)
    for space in (trajectories.observation_space, trajectories.action_space):
        digest.update(_space_bytes(space))
    described = {
        "env_id": trajectories.env_id,
        "env_kwargs": dict(trajectories.env_kwargs),
        "frame_stack": trajectories.frame_stack,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def _space_bytes(space: spaces.Space[Any]) -> bytes:
    if not isinstance(space, spaces.Box):  # whose repr leaves out bounds
        return repr(space).encode()
    head = f"Box {space.shape} {space.dtype}".encode()
    return head + space.low.tobytes() + space.high.tobytes()
