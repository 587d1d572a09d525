"""Step environments: one checked step, lost lives below other wrappers, autoreset modes.

Imports neither torch nor Stable-Baselines3, so that worker processes of an evaluation start fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_dmamba.errors import ConfigError, StepError
from sb3_dmamba.io import warn_caller


def make_envs(name: str, make_env: Callable[[], Any], n_envs: int) -> list[gym.Env[Any, Any]]:
    """Make environments with a user's function; close them again where one cannot be made."""
    envs: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(n_envs):
            env = make_env()
            if not isinstance(env, gym.Env) or any(env is each for each in envs):
                problem = f"{name}() returned {env!r}: expected a new gymnasium.Env"
                raise ConfigError(problem, setting=name, value=env)
            envs.append(env)
    except BaseException:
        close_envs(envs)
        raise
    return envs


def close_envs(envs: Sequence[gym.Env[Any, Any]]) -> None:
    """Close every environment."""
    for env in envs:
        env.close()  # type: ignore[no-untyped-call]


_RETURNED = {
    "step": "5 values (observation, reward, terminated, truncated, info), as Gymnasium's step has",
    "reset": "2 values (observation, info), as Gymnasium's reset has",
    "step_wait": "4 values (observations, rewards, dones, infos), as Stable-Baselines3's step has",
}
_UNPACKING = re.compile(r"values to unpack \(expected ([25])\b")
_NO_NUMBER = re.compile(r"float\(\) argument|string to float|array element with a sequence")
# modules that read what an environment returns; an error of a process is passed on, and not theirs
_READERS = re.compile(r"stable_baselines3\.common\.|gymnasium\.(wrappers|vector)\b(?!.*async)")


def call_environment(name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``step``, ``reset`` or ``step_wait``; StepError unless it returns its number of values.

    The environment's wrappers may be the ones that cannot take what it returns.
    """
    count = int(_RETURNED[name][0])
    try:
        result = method(*args, **kwargs)
    except (AttributeError, TypeError, ValueError) as error:
        reader, read = _find_reader(error)
        if isinstance(read.get("self"), gym.Wrapper) and set(_OF_A_STEP) <= set(read):
            reward, *flags = (read[each] for each in _OF_A_STEP)
            _check_step(reward, *flags)
            if np.ndim(reward):
                problem = f"a wrapper could not read reward={reward!r}: expected a number"
                raise StepError(problem, setting="reward", value=reward) from error
        is_number = name != "reset" and _NO_NUMBER.search(str(error)) is not None
        if not (is_number or _UNPACKING.search(str(error)) or _READERS.match(reader)):
            raise
        expected = "a number as reward" if is_number else _RETURNED[name]
        problem = f"a wrapper could not read what {name} returned ({error}): expected {expected}"
        setting = "reward" if is_number else name
        raise StepError(problem, setting=setting, value=str(error)) from error
    is_tuple = isinstance(result, (tuple, list))
    if is_tuple and len(result) == count and (name != "reset" or isinstance(result[1], dict)):
        return result
    got = f"{len(result)} values" if is_tuple else f"one {type(result).__name__}"
    problem = f"{name} returned {got}: expected {_RETURNED[name]}"
    raise StepError(problem, setting=name, value=result)


_OF_A_STEP = ("reward", "terminated", "truncated", "info")


def _find_reader(error: BaseException) -> tuple[str, dict[str, Any]]:
    """Return the module that an error is of, NumPy left out, and the local variables there."""
    found: tuple[str, dict[str, Any]] = "", {}
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if not module.startswith("numpy."):
            found = module, trace.tb_frame.f_locals
        trace = trace.tb_next
    return found


def reset_environment(env: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Reset an environment; StepError unless it returned an observation and a dict."""
    observation, info = call_environment("reset", env.reset, **kwargs)
    return observation, info


def step_environment(env: gym.Env[Any, Any], action: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Step an environment; StepError unless it returned Gymnasium's five values, well-formed.

    A reward that is an array of one number is returned as that number.
    """
    result = call_environment("step", env.step, action)
    observation, reward, terminated, truncated, info = result
    return observation, *_check_step(reward, terminated, truncated, info)


def _check_step(
    reward: Any, terminated: Any, truncated: Any, info: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    if not (isinstance(reward, float) and math.isfinite(reward)):  # else nothing to look at
        values = check_rewards(reward)
        reward = float(values[0]) if np.ndim(reward) else reward
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_flag(flag):
            problem = f"the environment returned {name}={flag!r}: expected True or False"
            raise StepError(problem, setting=name, value=flag, choices=(True, False))
    if not isinstance(info, dict):
        problem = f"the environment returned info={info!r}: expected a dict"
        raise StepError(problem, setting="info", value=info)
    terminated, truncated = (
        bool(flag) if isinstance(flag, np.ndarray) else flag for flag in (terminated, truncated)
    )
    return reward, terminated, truncated, info


def check_rewards(
    rewards: Any, n: int = 1, counted: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return a step's rewards as (n,) float64; StepError unless those ``counted`` are finite."""
    try:
        given = np.asarray(rewards)  # RuntimeError for a tensor with a gradient
        if given.dtype.kind not in "biuf" or np.ma.is_masked(rewards):
            raise TypeError(given.dtype)
        values: NDArray[np.float64] = given.astype(np.float64).reshape(n)
    except (TypeError, ValueError, RuntimeError):
        problem = f"the environment returned reward={rewards!r}: expected {n} finite number(s)"
        raise StepError(problem, setting="reward", value=rewards) from None
    wrong = ~np.isfinite(values)
    if counted is not None:
        wrong &= counted
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        value = float(values[index])
        problem = f"the environment returned reward={value!r}: expected a finite number"
        place = index if n > 1 else None
        raise StepError(problem, setting="reward", value=value, index=place)
    return values


def _is_flag(value: Any) -> bool:
    try:
        return value in (False, True)  # as are 0 and 1, and NumPy's
    except (TypeError, ValueError):  # an array of several
        return False


LONG_EPISODE = 10_000
"""Steps of an episode after which :func:`warn_of_long_episode` says how to end it."""


def warn_of_long_episode(fix: str) -> None:
    """Warn that an episode has run for :data:`LONG_EPISODE` steps, and how to cut it."""
    warn_caller(
        f"an episode has run for {LONG_EPISODE:,} steps and has not ended: if the environment "
        f"never ends it, {fix}, which cuts episodes"
    )


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment whose steps and resets are checked before wrappers see them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment, as :func:`reset_environment` does."""
        return reset_environment(self.env, seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Step the environment, as :func:`step_environment` does."""
        return step_environment(self.env, action)


def wrappers_of(env: Any) -> list[Any]:
    """Return the wrappers of an environment, the outermost first, and the environment itself."""
    chain = [env]
    while isinstance(chain[-1], gym.Wrapper):
        chain.append(chain[-1].env)
    return chain


def find_flattened(env: Any) -> gym.Space[Any] | None:
    """Return the space that a ``FlattenObservation`` among the wrappers flattens; None without."""
    for each in wrappers_of(env)[:-1]:
        is_flat = type(each).__name__ == "FlattenObservation"
        if is_flat and each.observation_space is env.observation_space:
            space: gym.Space[Any] = each.env.observation_space
            return space
    return None


def keeps_lives(env: Any) -> bool:
    """Whether this wrapper or game ends episodes with lives, and has ``was_real_done``."""
    return "was_real_done" in getattr(env, "__dict__", ())


class Lives:
    """The lives of a game, wherever below its wrappers they are counted; False where nowhere."""

    def __init__(self, env: Any) -> None:
        self._keeper = next(filter(keeps_lives, wrappers_of(env)), None)

    def __bool__(self) -> bool:
        return self._keeper is not None

    def begin_new_game(self) -> None:
        """Make the next reset start a game, even in the middle of one."""
        if self._keeper is not None:
            self._keeper.was_real_done = True

    def game_goes_on(self) -> bool:
        """Whether the last episode ended with a life and not with the game."""
        return self._keeper is not None and not self._keeper.was_real_done


def has_lost_life(info: Mapping[str, Any]) -> bool | None:
    """Whether the end of an episode cost a life and not the game; None where nothing says.

    ``info`` is the last step's: other wrappers may have stepped since the reset, so that
    ``was_real_done`` is stale.
    """
    if "is_lost_life" in info:
        return bool(info["is_lost_life"])
    if "lives" in info:
        return bool(info["lives"] > 0) and not info.get("TimeLimit.truncated", False)
    return None


def autoreset_mode(env: gym.vector.VectorEnv[Any, Any, Any]) -> str:
    """Return how a vector environment resets: "NextStep", "SameStep" or "Disabled"."""
    mode = env.metadata.get("autoreset_mode")  # Gymnasium 1.0 has none: always the next step
    return "NextStep" if mode is None else str(getattr(mode, "value", mode))
