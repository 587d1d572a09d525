"""Environments stepped in this process or in worker processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, cast

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.errors import EvaluationError
from sb3_dmamba.evaluation import env_slice
from sb3_dmamba.evaluation.env_slice import EnvSlice, StepResult

_BOOTSTRAP = """
import importlib.util, pickle, sys
sys.path[:], path = pickle.load(sys.stdin.buffer)
spec = importlib.util.spec_from_file_location("_env_slice", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.serve()
"""
_GRACE = 5.0  # seconds a worker has to close its environments before it is killed


class Envs(Protocol):
    """Environments numbered from 0, wherever they are stepped."""

    description: dict[str, Any]

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Start an episode in each environment of ``ids``."""

    def step(self, ids: Sequence[int], actions: NDArray[Any]) -> StepResult:
        """Take one step in each environment of ``ids``."""

    def close(self) -> None:
        """Close them all."""


class LocalEnvs(EnvSlice):
    """All environments in this process."""

    def __init__(self, make_env: Callable[[], Any], n_envs: int) -> None:
        super().__init__(make_env, n_envs)
        self.description = self.describe()


class WorkerEnvs:
    """Environments shared out over worker processes: number i is with worker i modulo n_workers.

    Args:
        make_env: Makes one ``gymnasium.Env``; pickled by cloudpickle.
        n_envs: Environments in all.
        n_workers: Processes; at most ``n_envs`` are started.

    Raises:
        EvaluationError: A worker died or ``make_env`` cannot be pickled. What ``make_env`` or an
            environment raises in a worker is raised here, with the worker's traceback as its cause.
    """

    def __init__(self, make_env: Callable[[], Any], n_envs: int, n_workers: int) -> None:
        try:
            pickled = cloudpickle.dumps(make_env)
        except Exception as error:
            raise EvaluationError(
                f"make_env={make_env!r} cannot be sent to worker processes ({error}): "
                "pass n_workers=0, or make it from things that can be pickled"
            ) from error
        n_workers = min(n_workers, n_envs)
        self._workers: list[_Worker] = []
        try:
            for _ in range(n_workers):
                self._workers.append(_Worker(len(self._workers)))
            for worker in self._workers:
                share = len(range(worker.index, n_envs, n_workers))
                worker.send("start", pickled, share)
            descriptions = [worker.receive() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.description: dict[str, Any] = descriptions[0]
        self.description["n_distinct"] = sum(each["n_distinct"] for each in descriptions)

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Start an episode in each environment of ``ids``."""
        observations: list[Any] = [None] * len(ids)
        for rows, result in self._ask("reset", ids, np.asarray(seeds)):
            for row, observation in zip(rows, result, strict=True):
                observations[row] = observation
        return observations

    def step(self, ids: Sequence[int], actions: NDArray[Any]) -> StepResult:
        """Take one step in each environment of ``ids``, the workers side by side."""
        observations: list[Any] = [None] * len(ids)
        rewards, scores = np.empty((2, len(ids)), dtype=np.float64)
        ended = np.empty(len(ids), dtype=np.bool_)
        for rows, result in self._ask("step", ids, actions):
            shown, rewards[rows], scores[rows], ended[rows] = result
            for row, observation in zip(rows, shown, strict=True):
                observations[row] = observation
        return observations, rewards, scores, ended

    def close(self) -> None:
        """End the workers; one that does not leave by itself is killed."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _ask(
        self, name: str, ids: Sequence[int], argument: NDArray[Any]
    ) -> list[tuple[NDArray[np.int64], Any]]:
        """Send every worker its rows of a request, then collect (rows, result) from each."""
        slots, owners = np.divmod(np.asarray(ids, dtype=np.int64), len(self._workers))
        asked = []
        for worker in self._workers:
            rows = np.flatnonzero(owners == worker.index)
            if len(rows):
                worker.send(name, slots[rows].tolist(), argument[rows])
                asked.append((worker, rows))
        return [(rows, worker.receive()) for worker, rows in asked]


class _Worker:
    """One worker process and the pipes to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._write(([str(entry) for entry in sys.path], str(Path(env_slice.__file__))))

    def send(self, *request: Any) -> None:
        self._write(request)

    def receive(self) -> Any:
        try:
            succeeded, result = pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._died() from None
        if succeeded:
            return result
        error, text = result
        if error is None:
            raise EvaluationError(f"an environment failed in a worker process:\n{text}")
        raise error from EvaluationError(f"raised in worker process {self.index}:\n{text}")

    def hang_up(self) -> None:
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def join(self) -> None:
        try:
            self._process.wait(_GRACE)
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def _write(self, message: Any) -> None:
        try:
            self._requests.write(pickle.dumps(message, protocol=5))
            self._requests.flush()
        except OSError:
            raise self._died() from None

    def _died(self) -> EvaluationError:
        try:
            status = f"exit status {self._process.wait(_GRACE)}"
        except subprocess.TimeoutExpired:
            status = "still running, but its answers cannot be read"
        return EvaluationError(
            f"worker process {self.index} stopped while stepping environments ({status}; what it "
            "printed is on stderr): pass n_workers=0 to see the failure in this process"
        )
