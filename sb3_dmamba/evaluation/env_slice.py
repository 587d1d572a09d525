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

__all__ = ["EnvSlice", "StepResult", "serve"]

StepResult = tuple[list[Any], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


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
            self._games = [_Game(env) for env in self.envs]
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
        for slot in slots:
            self._games[slot].begin()
        return [
            self.envs[slot].reset(seed=int(seed))[0]
            for slot, seed in zip(slots, seeds, strict=True)
        ]

    def step(self, slots: Sequence[int], actions: NDArray[Any]) -> StepResult:
        """Take one step in each of ``slots``; where that costs a life, the game goes on.

        Returns:
            Observations, rewards (n,), what they are worth in the score (n,), and whether the
            episodes are over (n,).
        """
        observations = []
        rewards, scores = np.empty((2, len(slots)), dtype=np.float64)
        ended = np.empty(len(slots), dtype=np.bool_)
        for row, slot in enumerate(slots):
            action = int(actions[row]) if actions.ndim == 1 else actions[row]
            env, game = self.envs[slot], self._games[slot]
            observation, reward, terminated, truncated, _ = env.step(action)
            is_over = bool(terminated or truncated)
            if is_over and not truncated and game.goes_on():
                observation, is_over = env.reset()[0], False
            observations.append(observation)
            rewards[row] = reward
            scores[row] = game.score(reward)
            ended[row] = is_over
        return observations, rewards, scores, ended

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            if isinstance(env, gym.Env):
                env.close()  # type: ignore[no-untyped-call]
        self.envs = []


class _Game:
    """What an environment's wrappers hide of the game: where it really ends, what it really pays.

    Stable-Baselines3's ``EpisodicLifeEnv`` ends an episode with a life and steps unseen between
    two lives, its ``FireResetEnv`` steps unseen at a start, its ``ClipRewardEnv`` shows the
    rewards' signs. What all these steps earn is noted below them. They are known by their names
    and by the attribute ``was_real_done``: importing Stable-Baselines3 would take seconds.
    """

    def __init__(self, env: Any) -> None:
        chain = []
        while isinstance(env, gym.Wrapper):
            chain.append(env)
            env = env.env
        self._keeper: Any = next((each for each in [*chain, env] if _keeps_lives(each)), None)
        hiding = [each for each in chain if _hides_rewards(each)]
        self._rewards: _NotedRewards | None = None
        if hiding:
            self._rewards = _NotedRewards(hiding[-1].env)
            hiding[-1].env = self._rewards

    def begin(self) -> None:
        """Make the next reset start a game, even where the last one was left in its middle."""
        if self._keeper is not None:
            self._keeper.was_real_done = True

    def goes_on(self) -> bool:
        """Say, after an episode's end, whether it cost a life and not the game."""
        return self._keeper is not None and not self._keeper.was_real_done

    def score(self, reward: Any) -> float:
        """Return what the game paid since the last call, or since its start."""
        return float(reward) if self._rewards is None else self._rewards.take()


class _NotedRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Note the sum of the rewards that pass."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._sum = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._sum = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._sum += float(result[1])
        return result

    def take(self) -> float:
        noted, self._sum = self._sum, 0.0
        return noted


def _keeps_lives(env: Any) -> bool:
    return "was_real_done" in getattr(env, "__dict__", ())


def _hides_rewards(env: Any) -> bool:
    if isinstance(env, gym.Wrapper) and _keeps_lives(env):
        return True
    names = {kind.__name__ for kind in type(env).__mro__}
    return not names.isdisjoint({"EpisodicLifeEnv", "ClipRewardEnv", "FireResetEnv"})


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
