"""A dict of flat arrays, with D4RL's keys or Gymnasium's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool
from numpy import ndarray

from sb3_dmamba.checks import near_names
from sb3_dmamba.data.mapping import as_array, iterate_rows
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import check_finite
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, flat_space, flatten_observation

__all__ = [
    "check_ends",
    "check_keys",
    "flatten_observations",
    "infer_action_space",
    "load_arrays",
]

_TERMINATED = ("terminals", "terminations", "terminated")
_TRUNCATED = ("timeouts", "truncations", "truncated")
_KEYS = ("observations", "actions", "rewards", *_TERMINATED, *_TRUNCATED)
_OTHERS = {  # what people call them
    "observations": ("observation", "obs", "states", "state"),
    "actions": ("action", "acts", "act"),
    "rewards": ("reward", "rews", "rew"),
}
_ENDS = ("dones", "done", "terminal", "ends")
_N_NAMED = 20
_FRAME_DIMENSIONS = 2  # from here on, uint8 observations are frames
_LARGEST_ACTION = 2**63 - 2  # of a Discrete space that starts at 0, whose size is an int64


def load_arrays(
    source: Mapping[str, Any],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    name: str = "arrays",
) -> Trajectories:
    """Cut flat arrays of steps into episodes.

    An episode ends where either flag is set; what follows the last flag is an episode that
    collection cut.

    Args:
        source: ``observations`` (N, ...) (a dict or tuple of arrays where ``observation_space`` is
            a Dict or Tuple), ``actions`` (N, ...), ``rewards`` (N,), and per step, (N,), at least
            one of ``terminals`` (or ``terminations``, ``terminated``) and ``timeouts`` (or
            ``truncations``, ``truncated``). Other keys, such as D4RL's ``infos/qpos``, are
            left alone.
        observation_space: The environment's. None: an unbounded Box, or frames of bytes.
        action_space: The environment's. None: Discrete, up to the largest integer that occurs, or
            a Box from -1 to 1 if no float lies outside.
        env_id: What ``gymnasium.make`` takes.
        env_kwargs: Its other arguments.
        name: Where the data came from, for people.

    Raises:
        DatasetError: A key is missing, given twice or nearly right, the arrays do not fit
            together, or the action space cannot be told from the data.
        SpaceError: A space cannot be learnt.
    """
    check_keys(source)
    rewards = as_array(source["rewards"])
    n_steps = rewards.size
    if not n_steps:
        raise DatasetError("the dataset is empty: it needs at least one episode of one step")
    _check_lengths(source)
    check_ends(source)
    terminated = _read_flags(source, _TERMINATED, n_steps)
    truncated = _read_flags(source, _TRUNCATED, n_steps)
    terminated = np.zeros(n_steps, dtype=bool) if terminated is None else terminated
    truncated = np.zeros(n_steps, dtype=bool) if truncated is None else truncated
    last_steps = np.flatnonzero(terminated | truncated)
    if not len(last_steps) or last_steps[-1] != n_steps - 1:
        last_steps = np.append(last_steps, n_steps - 1)

    actions = as_array(source["actions"])
    if actions.shape[:1] != (n_steps,) or actions.dtype.kind not in "iuf":
        raise DatasetError(
            f"actions have shape {actions.shape} and dtype {actions.dtype}: give one number or "
            f"vector for each of the {n_steps} rewards"
        )
    if action_space is None:
        action_space = infer_action_space(iterate_rows(actions))
    observations, flat = flatten_observations(source["observations"], observation_space)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated[last_steps],
        truncated=truncated[last_steps],
        episode_offsets=np.concatenate([[0], last_steps + 1]),
        observation_space=flat,
        action_space=check_action_space(action_space),
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        source=name,
    )


def check_keys(source: Mapping[Any, Any]) -> None:
    """Check that a dict has the arrays that are needed, and none whose name is nearly right.

    Raises:
        DatasetError: It does not; says what to rename.
    """
    for key in ("observations", "actions", "rewards"):
        if key not in source:
            renames = [f"rename {other!r} to {key!r}" for other in _OTHERS[key] if other in source]
            has = ", ".join(map(repr, list(source)[:_N_NAMED])) or "nothing"
            raise DatasetError(
                f"the dict has no {key!r}: it has {has}; "
                f"{renames[0] if renames else 'observations, actions and rewards are needed'}"
            )
    for key in source:
        if key not in _KEYS:
            close = near_names(str(key), _KEYS, cutoff=0.85)
            if close:
                raise DatasetError(
                    f"the dict has {key!r}: rename it to {close[0]!r}, or leave it out"
                )


def check_ends(source: Mapping[Any, Any]) -> None:
    """Check that a dict says where episodes end.

    Raises:
        DatasetError: It does not; says what to rename.
    """
    if not any(key in source for key in (*_TERMINATED, *_TRUNCATED)):
        done = next((key for key in _ENDS if key in source), None)
        hint = "give at least one, or where episodes end is unknown"
        if done is not None:
            hint = f"rename {done!r}, to 'terminals' where no time limit has ended an episode"
        raise DatasetError(
            f"neither 'terminals' nor 'timeouts' (nor Gymnasium's 'terminations', 'truncations') "
            f"is there: {hint}"
        )


def _check_lengths(source: Mapping[Any, Any]) -> None:
    """Check that there is one action, reward and flag for every step; name all where not."""
    shapes = {
        key: as_array(source[key]).shape
        for key in ("actions", "rewards", *_TERMINATED, *_TRUNCATED)
        if key in source
    }
    if math.prod(shapes["rewards"][1:]) != 1:
        raise DatasetError(f"rewards have shape {shapes['rewards']}: give one number a step")
    if len({shape[:1] for shape in shapes.values()}) > 1:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DatasetError(
            f"the arrays differ in their number of steps ({found}): give one of each for every step"
        )


def _read_flags(
    source: Mapping[str, Any], names: tuple[str, ...], n_steps: int
) -> Bool[ndarray, "N"] | None:
    given = [name for name in names if name in source]
    if not given:
        return None
    if len(given) > 1:
        raise DatasetError(f"the dict has {' and '.join(map(repr, given))}: give one of them")
    flags = as_array(source[given[0]])
    if flags.shape != (n_steps,):
        raise DatasetError(
            f"{given[0]} have shape {flags.shape}, and there are {n_steps} rewards: give one of "
            f"each for every step"
        )
    if flags.dtype.kind not in "biuf":
        raise DatasetError(f"{given[0]} are {flags.dtype}: give booleans")
    is_flag = np.asarray((flags == 0) | (flags == 1))
    if not is_flag.all():
        step = int(is_flag.argmin())
        raise DatasetError(f"{given[0]}[{step}] is {flags[step]}: only 0 and 1 are flags")
    return np.asarray(flags).astype(bool)


def flatten_observations(
    observations: Any, space: spaces.Space[Any] | None
) -> tuple[ndarray, spaces.Box]:
    """Return the flat observations and their space, told from the data where none is given.

    Raises:
        DatasetError: The observations do not fit the space.
    """
    if space is not None and not isinstance(space, spaces.Box):
        flat = flat_space(space)
        try:
            return flatten_observation(space, observations, batch=True), flat
        except SpaceError as error:
            raise DatasetError(f"observations: {error}") from error
    if isinstance(observations, (Mapping, tuple)):
        raise DatasetError(
            f"observations are a {type(observations).__name__}: pass observation_space, the Dict "
            f"or Tuple that they come from"
        )
    array = as_array(observations)
    if space is not None:
        return array, space
    if array.dtype == np.uint8 and array.ndim > _FRAME_DIMENSIONS:
        return array, spaces.Box(0, 255, array.shape[1:], np.uint8)
    return array, spaces.Box(-np.inf, np.inf, array.shape[1:], np.float32)


def infer_action_space(pieces: Iterable[ndarray]) -> spaces.Space[Any]:
    """Tell the action space from all actions.

    Args:
        pieces: The actions, in their order, some of them at a time.

    Raises:
        DatasetError: It cannot be told. Names the first action that stands in the way, if any.
    """
    n_steps, lows, highs = 0, [], []
    for piece in pieces:
        kind, is_vector = piece.dtype.kind, piece.ndim > 1
        if kind in "iu" and not is_vector:
            bad = np.flatnonzero((piece < 0) | (piece > _LARGEST_ACTION))
            if len(bad):
                raise DatasetError(
                    f"actions[{n_steps + int(bad[0])}] is {piece[bad[0]]}: pass action_space, the "
                    f"environment's Discrete"
                )
        elif kind == "f" and is_vector:
            check_finite("actions", piece, first=n_steps)
        n_steps += len(piece)
        lows.append(np.fmin.reduce(piece, axis=None))  # NaN is left out
        highs.append(np.fmax.reduce(piece, axis=None))
    low, high = np.fmin.reduce(lows), np.fmax.reduce(highs)
    if kind in "iu" and not is_vector:
        return spaces.Discrete(int(high) + 1)
    if kind == "f" and is_vector and max(-low, high) <= 1.0:
        return spaces.Box(-1.0, 1.0, piece.shape[1:], np.float32)
    raise DatasetError(
        f"the action space cannot be told from actions of shape {(n_steps, *piece.shape[1:])} and "
        f"dtype {piece.dtype}, {low} to {high}: pass action_space, the environment's"
    )
