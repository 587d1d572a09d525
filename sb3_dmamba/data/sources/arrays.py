"""Flat arrays of steps: the dict source, and what the other sources build ``Trajectories`` with."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_optional_integer, near_names
from sb3_dmamba.data.mapping import as_array, iterate_rows
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import check_finite
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.spaces import check_action_space, flat_space, flatten_observation, observation_dtype

REQUIRED = ("observations", "actions", "rewards")
TERMINATED = ("terminals", "terminations", "terminated")
TRUNCATED = ("timeouts", "truncations", "truncated")
DONES = ("dones", "done")  # either of both, as the old gym has it
STARTS = ("episode_starts", "episode_start")  # the step after either
KEYS = (*REQUIRED, *TERMINATED, *TRUNCATED)
FLAGS = (*TERMINATED, *TRUNCATED, *DONES)

_FLAG_LIKE = re.compile(  # names that others give to the ends of episodes, their starts, or both
    r"(infos?[/._])?(TimeLimit[._])?(?P<not>not_?|non_?)?(is_?|has_?|episode_?|ep_?|traj(ectory)?_?|env_?|step_?|next_?)*"
    r"(term(inal|inate|inated|ination)?|done|time_?(out|limit)|trunc(ate|ated|ation)?|end|ended|last"
    r"|absorbing|(?P<start>first|start|init|initial))s?(_?(flag|float|mask|bool|step)s?)?"
    r"|(?P<alive>masks?|continues?|cont|alive|discounts?)"
    r"|(?P<id>(episode|ep|traj(ectory)?)_?(id|idx|index|num|number)s?)",
    re.IGNORECASE,
)

_SYNONYMS = {
    "observations": ("observation", "obs", "states", "state"),
    "actions": ("action", "acts", "act"),
    "rewards": ("reward", "rews", "rew"),
    "terminals": (*DONES, "terminal", "ends"),
}
_N_LISTED = 20
_FRAME_DIMENSIONS = 2  # from here on, uint8 observations are frames
_LARGEST_ACTION = 2**63 - 2  # of a Discrete space that starts at 0, whose size is an int64


def load_arrays(
    source: Mapping[str, Any],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    no_time_limit: bool = False,
    name: str = "arrays",
) -> Trajectories:
    """Cut flat arrays of steps into episodes.

    An episode ends where either flag is set; what follows the last flag was cut by collection.

    Args:
        source: ``observations`` (N, ...) (a dict or tuple of arrays where ``observation_space`` is
            a Dict or Tuple), ``actions`` (N, ...), ``rewards`` (N,), and at least one of
            ``terminals`` (``terminations``, ``terminated``) and ``timeouts`` (``truncations``,
            ``truncated``), (N,). ``dones`` (``done``), else ``episode_starts``, tells the one that
            is not given. Numbers and flags may be columns, (N, 1). Other keys are left alone.
        observation_space: The environment's. None: an unbounded Box, or frames of bytes.
        action_space: The environment's. None: Discrete, up to the largest integer that occurs, or a
            Box from -1 to 1 if no float lies outside.
        env_id: What ``gymnasium.make`` takes.
        env_kwargs: Its other arguments.
        max_episode_steps: Where no array tells truncations, the steps after which an episode that
            did not terminate was truncated. Where ``dones`` or ``episode_starts`` is the only flag,
            an episode of as many steps was truncated, any other terminated.
        no_time_limit: True: where ``dones`` or ``episode_starts`` is the only flag, every end is a
            termination.
        name: Name of the dataset in summaries and reports.

    Raises:
        DatasetError: A key is missing, given twice or nearly right, the arrays do not fit together,
            what looks like an end of episodes marks another step than the flags, a value is masked,
            or the action space cannot be inferred.
        SpaceError: A space cannot be learnt.
    """
    limit = check_time_limit(max_episode_steps, no_time_limit)
    check_keys(source, flags_needed(limit))
    arrays = {key: as_array(source[key], key) for key in (*KEYS[1:], *DONES) if key in source}
    check_lengths({key: array.shape for key, array in arrays.items()})
    actions = arrays.pop("actions")
    arrays = {k: array.reshape(len(array), *step_shape(k, array)) for k, array in arrays.items()}
    rewards = arrays["rewards"]
    if actions.dtype.kind not in "iuf":
        problem = f"actions have dtype {actions.dtype}: give one number or vector a step"
        raise DatasetError(problem, setting="actions", value=actions.dtype)
    others = {key: source[key] for key in list_flag_like(source)}
    terminated, truncated = read_flags(arrays, len(rewards), limit, others)
    offsets, ends = cut_episodes(terminated, truncated)
    if action_space is None:
        action_space = infer_action_space(iterate_rows(actions))
    observations, flat = _flatten(source["observations"], observation_space)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated[ends],
        truncated=truncated[ends],
        episode_offsets=offsets,
        observation_space=flat,
        action_space=check_action_space(action_space),
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        source=name,
    )


def copy_rows(
    rows: Iterable[tuple[Any, ndarray, ndarray]],
    lengths: Sequence[int],
    terminated: Sequence[bool] | Bool[ndarray, "E"],
    truncated: Sequence[bool] | Bool[ndarray, "E"],
    *,
    space: spaces.Space[Any],
    action_space: spaces.Box | spaces.Discrete,
    observation_space: spaces.Box | None = None,
    label: Callable[[int], str] = "episode {}".format,
    **described: Any,
) -> Trajectories:
    """Copy pieces of episodes: observations of ``space``, actions and rewards."""
    flat = flat_space(space)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_steps = int(offsets[-1])
    actions_type = np.float32 if isinstance(action_space, spaces.Box) else np.int64
    arrays: dict[str, Any] = {
        "observations": np.empty((n_steps, *flat.shape), observation_dtype(flat)),
        "actions": np.empty((n_steps, *(action_space.shape or ())), actions_type),
        "rewards": np.empty(n_steps, np.float32),
    }
    start = 0
    for observed, actions, rewards in rows:
        episode = int(np.searchsorted(offsets, start, side="right")) - 1
        steps = slice(start, start + len(rewards))
        values = {"observations": observed, "actions": actions, "rewards": rewards}
        with np.errstate(over="ignore", invalid="ignore"):  # Trajectories names such values
            try:
                values["observations"] = flatten_observation(space, observed, batch=True)
            except SpaceError as error:
                where = {"episode": episode, "setting": "observations", "value": error.value}
                raise DatasetError(f"{label(episode)}: {error}", **where) from error
            for name, array in arrays.items():
                shape, expected = values[name].shape, (len(rewards), *array.shape[1:])
                if shape != expected:
                    problem = f"{label(episode)}: {name} have shape {shape}, expected {expected}"
                    raise DatasetError(problem, episode=episode, setting=name, value=shape)
                array[steps] = values[name]
        is_discrete = isinstance(action_space, spaces.Discrete)
        if is_discrete and (wrong := arrays["actions"][steps] != actions).any():
            value = actions[wrong.argmax()]
            problem = f"{label(episode)}: action {value} is not in {action_space}"
            raise DatasetError(problem, episode=episode, setting="action_space", value=value)
        start = steps.stop
    return Trajectories(
        **arrays,
        terminated=np.asarray(terminated),
        truncated=np.asarray(truncated),
        episode_offsets=offsets,
        observation_space=flat if observation_space is None else observation_space,
        action_space=action_space,
        **described,
    )


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file to the message and the attributes of a DatasetError raised inside."""
    try:
        yield
    except DatasetError as error:
        if error.path is None:
            error.path = os.fspath(path)
            error.args = (f"{path}: {error}",)
        raise


@contextlib.contextmanager
def placing(step: int, episode: int) -> Iterator[None]:
    """Count from the whole dataset's first step in a DatasetError about a piece of it."""
    try:
        yield
    except DatasetError as error:
        if episode:
            error.args = (f"from step {step} (episode {episode}) on: {error}",)
            error.index = None if error.index is None else error.index + step
            error.episode = None if error.episode is None else error.episode + episode
        raise


def check_time_limit(max_episode_steps: Any, no_time_limit: bool) -> int | None:
    """Return the steps after which episodes were truncated, 0 for never, None where none says."""
    limit = check_optional_integer("max_episode_steps", max_episode_steps, 1, error=DatasetError)
    if no_time_limit and limit is not None:
        problem = f"max_episode_steps={limit} contradicts no_time_limit=True: leave one of them out"
        raise DatasetError(problem, setting="max_episode_steps", value=limit)
    return 0 if no_time_limit else limit


def flags_needed(limit: int | None) -> tuple[str, ...]:
    """Return the flags of which one is enough; any, where the time limit is known."""
    return (*TERMINATED, *TRUNCATED) if limit is None else (*FLAGS, *STARTS)


def check_keys(keys: Iterable[Any], flags: Sequence[str] = (*TERMINATED, *TRUNCATED)) -> None:
    """Check that each array has one name that is known, and no other array nearly one."""
    found = list(keys)
    listed = ", ".join(map(repr, found[:_N_LISTED])) or "nothing"
    for key in REQUIRED:
        if key not in found:
            problem = f"there is no {key!r} (there is {listed}){_rename_hint(found, key)}"
            raise DatasetError(problem, setting=key, choices=found)
    if not any(key in found for key in flags):
        hint = _rename_hint(found, "terminals")
        hint += " if no time limit ended an episode" if hint else ""
        if any(key in found for key in (*DONES, *STARTS)):
            hint += "; or pass no_time_limit=True, or max_episode_steps, the time limit"
        problem = f"there is neither 'terminals' nor 'timeouts' but {listed}{hint}"
        raise DatasetError(problem, setting="terminals", choices=found)
    known = (*REQUIRED, *FLAGS)
    for key in found:
        close = [] if key in known else near_names(str(key).lower(), KEYS, cutoff=0.85)
        if close:
            problem = f"{key!r} looks like {close[0]!r}: rename it, or leave it out"
            raise DatasetError(problem, setting=str(key), choices=close)


def _rename_hint(found: Sequence[Any], key: str) -> str:
    other = next((name for name in _SYNONYMS[key] if name in found), None)
    return "" if other is None else f"; rename {other!r} to {key!r}"


def check_lengths(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that there is one reward and one of everything else for each step."""
    rewards = shapes["rewards"]
    if 0 in rewards:
        raise DatasetError("there are no rewards: give at least one step", setting="rewards")
    if not rewards or math.prod(rewards[1:]) != 1:
        problem = f"rewards have shape {rewards}: give one number a step"
        raise DatasetError(problem, setting="rewards", value=rewards)
    for key, shape in shapes.items():
        if shape[:1] != rewards[:1]:
            found = ", ".join(f"{name} {other}" for name, other in shapes.items())
            problem = f"the arrays differ in their number of steps: {found}"
            raise DatasetError(problem, setting=key, value=shape)


def step_shape(key: str, array: Any) -> tuple[int, ...]:
    """Return the shape of one step; () for a column of rewards, flags or indices."""
    shape: tuple[int, ...] = array.shape[1:]
    is_number = key != "observations" and (key != "actions" or array.dtype.kind in "iu")
    return () if is_number and shape == (1,) else shape


def list_flag_like(keys: Iterable[Any]) -> list[str]:
    """Return the names that look like ends, starts or numbers of episodes and are no known flag."""
    found = [key for key in keys if isinstance(key, str) and key not in FLAGS]
    return [key for key in found if _FLAG_LIKE.fullmatch(key)]


def read_flags(
    arrays: Mapping[str, ndarray],
    n_steps: int,
    time_limit: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> tuple[Bool[ndarray, "N"], Bool[ndarray, "N"]]:
    """Return which steps terminated and which truncated: by ``time_limit`` where no flag says.

    Args:
        arrays: The flags by name, (N,); ``dones`` are either.
        n_steps: N.
        time_limit: Steps after which an episode was truncated; 0 and None are no limit.
        others: What :func:`list_flag_like` found; must mark no other steps, where it marks any.
            Starts of episodes stand for ``dones``.

    Raises:
        DatasetError: A flag is none, is given twice, or marks an end that the others do not.
    """
    terminated = read_flag(arrays, TERMINATED)
    truncated = read_flag(arrays, TRUNCATED)
    done = read_flag(arrays, DONES)
    marked = {} if done is None else {next(name for name in DONES if name in arrays): done}
    for name, values in (others or {}).items():
        marks = _read_marks(name, values, n_steps)
        marked |= {} if marks is None else {name: marks}
    if done is None:
        done = next((marked[name] for name in STARTS if name in marked), None)
    if terminated is None and truncated is None:
        if done is None:
            problem = "the starts of episodes are no flags: give one boolean a step"
            raise DatasetError(problem, setting=STARTS[0])
        if time_limit:
            truncated = done & (_count_steps(done) == time_limit - 1)
    if done is not None and terminated is None:
        terminated = done if truncated is None else done & ~truncated
    elif done is not None and terminated is not None and truncated is None:
        truncated = done & ~terminated
    if terminated is None:
        terminated = np.zeros(n_steps, dtype=bool)
    if truncated is None:
        truncated = np.zeros(n_steps, dtype=bool)
        if time_limit:
            truncated = (_count_steps(terminated) % time_limit == time_limit - 1) & ~terminated
    for name, marks in marked.items():
        stray = np.flatnonzero(marks & ~(terminated | truncated))
        if len(stray):
            problem = (
                f"{name!r} marks step {stray[0]} as the end of an episode, which no flag that is "
                "read does: rename it to 'terminals' or 'timeouts', or leave it out"
            )
            raise DatasetError(problem, index=int(stray[0]), setting=name)
    return terminated, truncated


def _count_steps(ends: Bool[ndarray, "N"]) -> Int64[ndarray, "N"]:
    """Return the number of each step since the last end before it."""
    starts, steps = np.concatenate([[0], np.flatnonzero(ends) + 1]), np.arange(len(ends))
    counts: Int64[ndarray, "N"] = steps - starts[np.searchsorted(starts, steps, side="right") - 1]
    return counts


def _read_marks(name: str, values: Any, n_steps: int) -> Bool[ndarray, "N"] | None:
    """Return the steps that end episodes by an array of any name; None where it holds no flags."""
    kind = _FLAG_LIKE.fullmatch(name)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        return None
    is_a_number = array.dtype.kind in "biuf" and array.shape in ((n_steps,), (n_steps, 1))
    if kind is None or not is_a_number:
        return None
    array = array.reshape(n_steps)
    if kind["id"]:
        return np.append(array[1:] != array[:-1], False)
    if not ((array == 0) | (array == 1)).all():
        return None
    marks: Bool[ndarray, "N"] = (array != 0) ^ bool(kind["not"] or kind["alive"])
    return np.append(marks[1:], False) if kind["start"] else marks


def read_flag(arrays: Mapping[str, ndarray], names: Sequence[str]) -> Bool[ndarray, "N"] | None:
    """Return the flag that has one of some names; None where there is none."""
    given = [name for name in names if name in arrays]
    if not given:
        return None
    name, flags = given[0], arrays[given[0]]
    if len(given) > 1:
        problem = f"{' and '.join(map(repr, given))} are the same flag: give one of them"
        raise DatasetError(problem, setting=name, choices=given)
    if flags.ndim != 1 or flags.dtype.kind not in "biuf":
        problem = f"{name} have shape {flags.shape}, dtype {flags.dtype}: give one boolean a step"
        raise DatasetError(problem, setting=name, value=flags.shape)
    is_flag = np.asarray((flags == 0) | (flags == 1))
    if not is_flag.all():
        step = int(is_flag.argmin())
        problem = f"{name}[{step}] is {flags[step]}: only 0 and 1 are flags"
        raise DatasetError(problem, index=step, setting=name, value=flags[step], choices=(0, 1))
    return np.asarray(flags).astype(bool)


def read_ends(
    arrays: Mapping[str, ndarray], others: Mapping[str, Any] | None = None
) -> tuple[bool, bool | None]:
    """Return whether one episode terminated and was truncated; None where no flag says.

    ``dones`` say that it terminated, unless it was truncated. ``others`` as for :func:`read_flags`.
    """
    terminated, truncated, done = (
        _read_end(arrays, names) for names in (TERMINATED, TRUNCATED, DONES)
    )
    last = np.arange(len(arrays["rewards"])) == len(arrays["rewards"]) - 1
    read_flags({"terminals": last}, len(last), others=others)
    return (bool(done) and not truncated if terminated is None else terminated), truncated


def _read_end(arrays: Mapping[str, ndarray], names: Sequence[str]) -> bool | None:
    """Return the flag of an episode's last step; None where no array has it."""
    flags = read_flag(arrays, names)
    if flags is None:
        return None
    early = np.flatnonzero(flags[:-1])
    if len(early):
        name = next(name for name in names if name in arrays)
        problem = f"{name}: step {early[0]} is flagged, and only the last, {len(flags) - 1}, may be"
        raise DatasetError(problem, index=int(early[0]), setting=name)
    return bool(flags[-1])


def cut_episodes(
    terminated: Bool[ndarray, "N"], truncated: Bool[ndarray, "N"]
) -> tuple[Int64[ndarray, "E+1"], Int64[ndarray, "E"]]:
    """Return the offsets of episodes and their last steps, from flags of each step."""
    ends = np.flatnonzero(terminated | truncated)
    if not len(ends) or ends[-1] != len(terminated) - 1:
        ends = np.append(ends, len(terminated) - 1)
    return np.concatenate([[0], ends + 1]), ends


def _flatten(observations: Any, space: spaces.Space[Any] | None) -> tuple[ndarray, spaces.Box]:
    """Return the flat observations and their space, inferred where none is given."""
    if space is not None and not isinstance(space, spaces.Box):
        flat = flat_space(space)
        try:
            return flatten_observation(space, observations, batch=True), flat
        except SpaceError as error:
            problem = f"observations: {error}"
            raise DatasetError(problem, setting="observations", value=error.value) from error
    if isinstance(observations, (Mapping, tuple)):
        problem = f"observations are a {type(observations).__name__}: pass their observation_space"
        raise DatasetError(problem, setting="observation_space")
    array = as_array(observations, "observations")
    return array, infer_observation_space(array) if space is None else space


def infer_observation_space(
    observations: ndarray, frame_dimensions: int = _FRAME_DIMENSIONS
) -> spaces.Box:
    """Return an unbounded Box, or one of bytes for uint8 of at least ``frame_dimensions``."""
    if observations.dtype == np.uint8 and observations.ndim > frame_dimensions:
        return spaces.Box(0, 255, observations.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)


def infer_action_space(pieces: Iterable[ndarray]) -> spaces.Space[Any]:
    """Infer the action space from all actions, given in pieces; raise where they do not tell it."""
    n_steps, lows, highs = 0, [], []
    for piece in pieces:
        kind, is_vector = piece.dtype.kind, piece.ndim > 1
        if kind in "iu" and not is_vector:
            bad = np.flatnonzero((piece < 0) | (piece > _LARGEST_ACTION))
            if len(bad):
                index, value = n_steps + int(bad[0]), piece[bad[0]]
                problem = f"actions[{index}] is {value}: pass action_space, the environment's"
                raise DatasetError(problem, index=index, setting="action_space", value=value)
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
    problem = (
        f"the action space cannot be inferred from actions of shape {(n_steps, *piece.shape[1:])} "
        f"and dtype {piece.dtype}, {low} to {high}: pass action_space, the environment's"
    )
    raise DatasetError(problem, setting="action_space")
