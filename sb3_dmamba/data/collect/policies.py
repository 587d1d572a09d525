"""Policies of every kind as one: a batch of observations in, a batch of actions out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from jaxtyping import Bool, Float64
from numpy import ndarray

from sb3_dmamba.data.collect.envs import Envs
from sb3_dmamba.data.spaces import flatten_observation
from sb3_dmamba.errors import ConfigError, DatasetError

__all__ = ["Act", "as_actor", "check_actions", "derive_action_seed"]

Act = Callable[[Any, Float64[ndarray, "n"], Bool[ndarray, "n"], Bool[ndarray, "n"]], Any]
"""From observations, the last rewards, where episodes start, and where the next step only resets:
one action for each environment."""

_ACTIONS = 0xAC7105  # tells the seed of actions from those of environments
_TOLERANCE = 1e-5  # of a bound: what a trip through float32 may cost


def as_actor(policy: Any, envs: Envs, deterministic: bool, seed: int | None) -> Act:
    """Tell what kind of policy it is.

    Args:
        policy: ``"random"``, a Stable-Baselines3 model or policy, a d3rlpy algorithm, anything
            with ``predict(x, reward)`` and ``reset()``, or a function of one observation.
        envs: What it will act in.
        deterministic: Whether to take the most likely action rather than draw one.
        seed: For ``"random"``.

    Raises:
        ConfigError: It is none of these, or cannot act in so many environments.
    """
    if isinstance(policy, str) and policy == "random":
        return _act_at_random(envs, seed)
    parameters = _parameters(getattr(policy, "predict", None))
    if "episode_start" in parameters:
        return _ask_sb3(policy, deterministic)
    if "reward" in parameters and callable(getattr(policy, "reset", None)):
        return _ask_stateful(policy, envs)
    if callable(getattr(policy, "as_stateful_wrapper", None)):
        raise ConfigError(
            f"{type(policy).__name__} acts by its past rewards: pass "
            f"policy.as_stateful_wrapper(target_return)"
        )
    if parameters:
        return _ask_d3rlpy(policy, envs, deterministic)
    if callable(policy):
        return _ask_function(policy, envs)
    raise ConfigError(
        f"policy={policy!r}: give a Stable-Baselines3 or d3rlpy model, a function from one "
        f'observation to an action, or "random"'
    )


def check_actions(
    actions: Any, space: spaces.Box | spaces.Discrete, is_taken: Bool[ndarray, "n"], step: int
) -> ndarray:
    """Return the actions as the environments take them.

    Args:
        actions: One for each environment.
        space: The action space.
        is_taken: Which of them will be taken; the others may be anything.
        step: Number of the step, for messages.

    Raises:
        DatasetError: They do not fit the space, or are not finite in its dtype or in the float32
            of the recording; names the step.
    """
    array = np.asarray(actions)
    is_box, n = isinstance(space, spaces.Box), len(is_taken)
    shape = (n, *(space.shape or ()))
    if array.size != n * int(np.prod(shape[1:])) or array.dtype.kind not in (
        "iuf" if is_box else "iu"
    ):
        raise DatasetError(
            f"at step {step} the policy returned actions of shape {array.shape} and dtype "
            f"{array.dtype} for {n} environment(s) with the action space {space}"
        )
    array = array.reshape(shape)
    taken: ndarray
    if isinstance(space, spaces.Discrete):
        inside = (array >= space.start) & (array < space.start + space.n)
        taken = array.astype(np.int64)
    else:
        with np.errstate(over="ignore"):  # too large is infinite, which is refused below
            taken = array.astype(space.dtype)
            recorded = taken.astype(np.float32)
        low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
        inside = (array >= low - _slack(low)) & (array <= high + _slack(high))
        inside &= np.isfinite(taken) & np.isfinite(recorded)
    inside[~is_taken] = True
    if not inside.all():
        raise DatasetError(
            f"at step {step} the policy chose {array[~inside][0]}, outside {space}: clip or scale "
            f"its actions in a function, collect(lambda observation: ..., ...)"
        )
    return taken


def _slack(bound: Float64[ndarray, "A"]) -> Float64[ndarray, "A"]:
    slack: ndarray = _TOLERANCE * np.maximum(1.0, np.abs(bound))
    return slack


def derive_action_seed(seed: int) -> int:
    """Return a seed for a space to draw actions from.

    Spaces and environments make the same generator of the same seed: with ``seed`` itself, the
    actions would follow the environment's own random numbers.
    """
    return int(np.random.SeedSequence([seed, _ACTIONS]).generate_state(1, np.uint64)[0])


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _act_at_random(envs: Envs, seed: int | None) -> Act:
    space = copy.deepcopy(envs.action_space)
    space.seed(None if seed is None else derive_action_seed(seed))
    return lambda *_: np.stack([np.asarray(space.sample()) for _ in range(envs.n)])


def _ask_sb3(policy: Any, deterministic: bool) -> Act:
    state: Any = None

    def act(observations: Any, rewards: Any, starts: Bool[ndarray, "n"], resets: Any) -> Any:
        nonlocal state
        actions, state = policy.predict(
            observations, state=state, episode_start=starts, deterministic=deterministic
        )
        return actions

    return act


def _ask_d3rlpy(policy: Any, envs: Envs, deterministic: bool) -> Act:
    choose = policy.predict if deterministic else getattr(policy, "sample_action", policy.predict)
    view = _as_d3rlpy_sees(envs.observation_space, policy)
    return lambda observations, *_: choose(view(observations))


def _ask_stateful(policy: Any, envs: Envs) -> Act:
    if envs.n != 1:
        raise ConfigError(
            f"{type(policy).__name__} remembers one episode, and there are {envs.n} environments: "
            f"give one"
        )
    view = _as_d3rlpy_sees(envs.observation_space, policy)
    action: Any = None

    def act(
        observations: Any,
        rewards: Float64[ndarray, "n"],
        starts: Bool[ndarray, "n"],
        resets: Bool[ndarray, "n"],
    ) -> Any:
        nonlocal action
        if resets[0]:
            return action  # is not taken
        if starts[0]:
            policy.reset()
        seen = view(observations)
        one = [part[0] for part in seen] if isinstance(seen, list) else seen[0]
        action = np.asarray(policy.predict(one, 0.0 if starts[0] else float(rewards[0])))[None]
        return action

    return act


def _ask_function(policy: Callable[[Any], Any], envs: Envs) -> Act:
    batched = batch_space(envs.observation_space, envs.n)
    return lambda observations, *_: np.stack(
        [np.asarray(policy(each)) for each in iterate(batched, observations)]
    )


def _as_d3rlpy_sees(space: spaces.Space[Any], policy: Any) -> Callable[[Any], Any]:
    """Return what makes d3rlpy's observations: arrays, lists of arrays, or else the flat view."""
    if isinstance(space, spaces.Box):
        return lambda observations: observations
    shape = getattr(getattr(policy, "_algo", policy), "observation_shape", ())
    if isinstance(space, spaces.Tuple) and shape and not isinstance(shape[0], (int, np.integer)):
        return list
    return lambda observations: flatten_observation(space, observations, batch=True)
