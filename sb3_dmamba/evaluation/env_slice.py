"""The environments that one process steps, and the loop of a worker process around them.

A worker runs this file on its own, so it imports nothing of this package (nor torch): it starts
as fast as the environments allow.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["EnvSlice", "serve"]


class EnvSlice:
    """Some environments of an evaluation, addressed by their place in the slice.

    Args:
        make_env: Makes one ``gymnasium.Env``.
        n_envs: How many to make.
    """

    def __init__(self, make_env: Callable[[], Any], n_envs: int) -> None:
        self.envs: list[Any] = []  # Environments, or what make_env made instead
        try:
            for _ in range(n_envs):
                self.envs.append(make_env())
        except BaseException:
            self.close()
            raise

    def describe(self) -> dict[str, Any]:
        """Return the first environment's spaces, name and step limit, and how many differ."""
        env = self.envs[0]
        spec = getattr(env, "spec", None)
        return {
            "not_an_env": None if isinstance(env, gym.Env) else repr(env),
            "observation_space": getattr(env, "observation_space", None),
            "action_space": getattr(env, "action_space", None),
            "env_id": getattr(spec, "id", None),
            "max_episode_steps": getattr(spec, "max_episode_steps", None),
            "n_distinct": len({id(env) for env in self.envs}),
        }

    def reset(self, slots: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Start an episode in each of ``slots`` and return the first observations."""
        return [
            self.envs[slot].reset(seed=int(seed))[0]
            for slot, seed in zip(slots, seeds, strict=True)
        ]

    def step(
        self, slots: Sequence[int], actions: NDArray[Any]
    ) -> tuple[list[Any], NDArray[np.float64], NDArray[np.bool_]]:
        """Take one step in each of ``slots``.

        Returns:
            Observations, rewards (n,) and whether the episodes are over (n,).
        """
        observations = []
        rewards = np.empty(len(slots), dtype=np.float64)
        ended = np.empty(len(slots), dtype=np.bool_)
        for row, slot in enumerate(slots):
            action = int(actions[row]) if actions.ndim == 1 else actions[row]
            observation, reward, terminated, truncated, _ = self.envs[slot].step(action)
            observations.append(observation)
            rewards[row] = reward
            ended[row] = terminated or truncated
        return observations, rewards, ended

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            if isinstance(env, gym.Env):
                env.close()  # type: ignore[no-untyped-call]
        self.envs = []


def serve() -> None:
    """Answer requests from stdin on stdout until stdin ends; the worker process's main.

    A request is ``(name of a method of EnvSlice, *arguments)``, an answer ``(True, result)`` or
    ``(False, (exception or None, traceback text))``. The first request is ``("start", make_env
    pickled by cloudpickle, n_envs)``.
    """
    requests = sys.stdin.buffer
    # what an environment prints must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes stdin
    envs: EnvSlice | None = None
    try:
        while True:
            try:
                name, *arguments = pickle.load(requests)
            except EOFError:
                return
            try:
                if name == "start":
                    envs = EnvSlice(pickle.loads(arguments[0]), arguments[1])
                    result = envs.describe()
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
