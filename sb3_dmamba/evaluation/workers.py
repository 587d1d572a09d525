"""Environments of an evaluation, stepped in this process or in worker processes.

A worker runs this file on its own, not as a part of ``sb3_dmamba.evaluation``: so it imports
neither torch nor Stable-Baselines3, and starts as fast as the environments allow.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.envs import register
from sb3_dmamba.envs.stepping import (
    CheckedEnv,
    Lives,
    close_envs,
    find_flattened,
    keeps_lives,
    make_envs,
    reset_environment,
    step_environment,
    wrappers_of,
)
from sb3_dmamba.errors import EvaluationError, StepError

StepResult = tuple[list[Any], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]
"""Observations, rewards (n,), what they are worth in the score (n,), and which episodes ended."""

_BOOTSTRAP = """
import importlib.util, pickle, sys
sys.path[:], path = pickle.load(sys.stdin.buffer)
spec = importlib.util.spec_from_file_location("_worker", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.serve()
"""
_GRACE = 5.0  # seconds a worker has to close its environments before it is killed


class LocalEnvs:
    """All environments in this process, numbered from 0.

    ``description`` has the first one's "observation_space", "action_space" and "env_id".
    """

    def __init__(self, make_env: Callable[[], Any], n_envs: int) -> None:
        self._envs = make_envs("make_env", make_env, n_envs)
        self._lives = [Lives(env) for env in self._envs]
        self._games = [_note_hidden_rewards(env) for env in self._envs]
        first = self._envs[0]
        self.description: dict[str, Any] = {
            "observation_space": getattr(first, "observation_space", None),
            "action_space": getattr(first, "action_space", None),
            "flattened": find_flattened(first),
            "env_id": getattr(getattr(first, "spec", None), "id", None),
        }

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Start an episode in each environment of ``ids``; returns the first observations."""
        for each in ids:
            self._lives[each].begin_new_game()
        shown = []
        for row, (each, seed) in enumerate(zip(ids, seeds, strict=True)):
            try:
                shown.append(reset_environment(self._envs[each], seed=int(seed))[0])
            except StepError as error:
                error.index = row
                raise
        return shown

    def step(self, ids: Sequence[int], actions: NDArray[Any]) -> StepResult:
        """Take one step in each environment of ``ids``; where it costs a life, the game goes on."""
        observations = []
        rewards, scores = np.empty((2, len(ids)), dtype=np.float64)
        ended = np.empty(len(ids), dtype=np.bool_)
        for row, each in enumerate(ids):
            action = int(actions[row]) if actions.ndim == 1 else actions[row]
            env, game = self._envs[each], self._games[each]
            try:
                observation, reward, terminated, truncated, _ = step_environment(env, action)
            except StepError as error:
                error.index = row
                raise
            is_over = bool(terminated or truncated)
            if is_over and not truncated and self._lives[each].game_goes_on():
                observation, is_over = reset_environment(env)[0], False
            observations.append(observation)
            rewards[row] = reward
            scores[row] = reward if game is None else game.take()
            ended[row] = is_over
        return observations, rewards, scores, ended

    def close(self) -> None:
        """Close every environment."""
        close_envs(self._envs)
        self._envs = []


class _NotedRewards(CheckedEnv):
    """Note the sum of the rewards that pass since the last look, or since a game's start."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._sum = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._sum = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self._sum += float(result[1])
        return result

    def take(self) -> float:
        noted, self._sum = self._sum, 0.0
        return noted


def _note_hidden_rewards(env: gym.Env[Any, Any]) -> _NotedRewards | None:
    """Note a game's rewards below the wrappers that hide some; None where no wrapper does.

    Stable-Baselines3's ``EpisodicLifeEnv`` steps unseen between two lives, its ``FireResetEnv`` at
    a start, and its ``ClipRewardEnv`` shows the rewards' signs. They are known by their names:
    importing Stable-Baselines3 would take seconds.
    """
    hiding = [each for each in wrappers_of(env)[:-1] if keeps_lives(each) or _hides_rewards(each)]
    if not hiding:
        return None
    hiding[-1].env = noted = _NotedRewards(hiding[-1].env)
    return noted


def _hides_rewards(wrapper: Any) -> bool:
    names = {kind.__name__ for kind in type(wrapper).__mro__}
    return not names.isdisjoint({"EpisodicLifeEnv", "ClipRewardEnv", "FireResetEnv"})


class WorkerEnvs:
    """:class:`LocalEnvs` shared out over processes: number i is with worker i modulo n_workers.

    Raises EvaluationError: a worker died or ``make_env`` cannot be pickled. What ``make_env`` or an
    environment raises in a worker is raised here, with the worker's traceback as its cause.
    """

    def __init__(self, make_env: Callable[[], Any], n_envs: int, n_workers: int) -> None:
        try:
            pickled = cloudpickle.dumps(make_env)
        except Exception as error:
            message = (
                f"make_env={make_env!r} cannot be sent to worker processes ({error}): pass "
                f"n_workers=0, or make it from things that can be pickled"
            )
            raise EvaluationError(message, setting="make_env", value=make_env) from error
        n_workers = min(n_workers, n_envs)
        self._workers: list[_Worker] = []
        try:
            for index in range(n_workers):
                self._workers.append(_Worker(index))
            for worker in self._workers:
                worker.send("start", pickled, len(range(worker.index, n_envs, n_workers)))
            descriptions = [worker.receive() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.description: dict[str, Any] = descriptions[0]

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Start an episode in each environment of ``ids``; returns the first observations."""
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
    ) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """Send every worker its rows of a request, then yield (rows, result) of each."""
        slots, owners = np.divmod(np.asarray(ids, dtype=np.int64), len(self._workers))
        asked = []
        for worker in self._workers:
            rows = np.flatnonzero(owners == worker.index)
            if len(rows):
                worker.send(name, slots[rows].tolist(), argument[rows])
                asked.append((worker, rows))
        for worker, rows in asked:
            try:
                result = worker.receive()
            except StepError as error:
                error.index = int(rows[error.index])
                raise
            yield rows, result


Envs = LocalEnvs | WorkerEnvs


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
        self.send([str(entry) for entry in sys.path], __file__)

    def send(self, *request: Any) -> None:
        try:
            self._requests.write(pickle.dumps(request, protocol=5))
            self._requests.flush()
        except OSError:
            raise self._died() from None

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

    def _died(self) -> EvaluationError:
        try:
            status = f"exit status {self._process.wait(_GRACE)}"
        except subprocess.TimeoutExpired:
            status = "still running, but its answers cannot be read"
        return EvaluationError(
            f"worker process {self.index} stopped while stepping environments ({status}; what it "
            "printed is on stderr): pass n_workers=0 to see the failure in this process"
        )


def serve() -> None:
    """Answer requests from stdin on stdout until stdin ends; the worker process's main.

    A request is ``(name of a method of LocalEnvs, *arguments)``, an answer ``(True, result)`` or
    ``(False, (exception or None, traceback text))``. The first request is ``("start", make_env
    pickled by cloudpickle, n_envs)``.
    """
    requests = sys.stdin.buffer
    # what an environment prints must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes stdin
    register()  # importing the package again will not, in gymnasium.make("sb3_dmamba:...")
    envs: LocalEnvs | None = None
    try:
        while True:
            try:
                name, *arguments = pickle.load(requests)
            except EOFError:
                return
            try:
                if name == "start":
                    envs = LocalEnvs(pickle.loads(arguments[0]), arguments[1])
                    result: Any = envs.description
                else:
                    result = getattr(envs, name)(*arguments)
                answer: Any = (True, result)
            except Exception as error:
                answer = (False, _portable(error))
            answers.write(pickle.dumps(answer, protocol=5))
            answers.flush()
    except BrokenPipeError:  # the parent hung up while a step was under way
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
    finally:
        if envs is not None:
            envs.close()


def _portable(error: Exception) -> tuple[Exception | None, str]:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None, text
    return error, text
