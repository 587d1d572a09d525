"""Observation and action spaces: flattening, what fits a model, and JSON."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten_space
from jaxtyping import Float64
from numpy import ndarray
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dmamba.errors import SpaceError
from sb3_dmamba.io import warn_caller

BOUND_TOLERANCE = 1e-5
"""Rounding in float32 that actions at a bound may have, as a fraction of the bound, or of 1."""

_COMPOSITE = (spaces.Dict, spaces.Tuple)
_ONE_HOT = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_MOST_ELEMENTS = 1 << 24  # of an observation; a file that says more was made to fill memory


class FlatBox(spaces.Box):
    """The flat view of another space, which knows that space and so the order of its parts.

    It equals a Box of the same bounds, unless that is the flat view of parts of other names or in
    another order.

    Args:
        box: The bounds.
        source: What is flattened.
    """

    def __init__(self, box: spaces.Box, source: spaces.Space[Any]) -> None:
        super().__init__(box.low, box.high, dtype=np.float32)
        self.source = source

    def __eq__(self, other: object) -> bool:
        ours, theirs = name_parts(self), name_parts(other)
        return super().__eq__(other) and (theirs is None or ours in (None, theirs))


def with_source(space: spaces.Space[Any], source: spaces.Space[Any] | None) -> spaces.Space[Any]:
    """Return the space, or where a wrapper made it by flattening another, its :class:`FlatBox`."""
    if source is None or not isinstance(space, spaces.Box):
        return space
    return FlatBox(space, source)


PARTS = "sb3_dmamba_parts"  # in a dtype's metadata


def name_parts(space: Any) -> list[tuple[str, int]] | None:
    """Return names and sizes of the parts of a flattened Dict or Tuple; None where none is known.

    Given an array, the parts are those in its dtype's metadata, as ``ReturnToGo`` shows it.

    A name is a path such as ``arm/position``; the order is that of the flat view.
    """
    if isinstance(space, np.ndarray):
        known = (space.dtype.metadata or {}).get(PARTS)
        return None if known is None else list(known)
    source = getattr(space, "source", None)
    return list(_walk_parts(source, "")) if isinstance(source, _COMPOSITE) else None


def _walk_parts(space: spaces.Space[Any], name: str) -> Iterator[tuple[str, int]]:
    if isinstance(space, _COMPOSITE):
        for key, child in _children(space):
            yield from _walk_parts(child, f"{name}/{key}" if name else str(key))
    elif isinstance(space, spaces.Discrete):
        yield name, int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        yield name, int(space.nvec.sum())
    else:
        yield name, math.prod(space.shape or ())


def arrange_space(
    space: spaces.Space[Any], model_space: spaces.Space[Any], what: str = "the environment"
) -> spaces.Space[Any]:
    """Return a space with the parts of its Dicts in the order of a model's, matched by name.

    It flattens the same observations, which hold their parts by name, as the model's data were.

    Args:
        space: The observation space of one environment.
        model_space: The flat observation space of a model.
        what: Whose space it is, for the message.

    Raises:
        SpaceError: The parts differ in their names or sizes; shows both.
    """
    source = getattr(model_space, "source", None)
    if not (isinstance(source, _COMPOSITE) and isinstance(space, _COMPOSITE)):
        return space
    arranged = _arrange(space, source)
    _check_same_parts(FlatBox(flat_space(arranged), arranged), model_space, what)
    return arranged


def _arrange(space: spaces.Space[Any], like: spaces.Space[Any]) -> spaces.Space[Any]:
    if type(space) is not type(like) or not isinstance(space, _COMPOSITE):
        return space
    theirs, ours = dict(_children(space)), dict(_children(like))  # type: ignore[arg-type]
    if theirs.keys() != ours.keys():
        return space
    parts = [(key, _arrange(theirs[key], ours[key])) for key in ours]
    is_dict = isinstance(space, spaces.Dict)
    return spaces.Dict(parts) if is_dict else spaces.Tuple([part for _, part in parts])


def _check_same_parts(space: Any, ours: spaces.Space[Any], what: str) -> None:
    """Raise SpaceError unless both have the same parts in the same order, as far as is known."""
    parts, expected = name_parts(space), name_parts(ours)
    if parts is None or expected is None or parts == expected:
        return
    theirs, models = (
        ", ".join(f"{name} ({size})" for name, size in each) for each in (parts, expected)
    )
    fix = "use those of one task"
    if sorted(parts) == sorted(expected):
        fix = "pass the environment itself, not yet wrapped, or model.condition_env(env)"
        if "dataset" in what:
            fix = "load it with observation_space=, a Dict of pairs in that order"
    problem = f"{what} has the parts {theirs}, and the model was made for {models}: {fix}"
    raise SpaceError(problem, setting="observation_space", value=parts, choices=expected)


def find_columns(space: Any, wanted: spaces.Space[Any]) -> list[int] | None:
    """Return the columns of a flat space in the order of another's parts; None where it has it.

    Raises:
        SpaceError: The parts differ in their names or sizes.
    """
    parts, order = name_parts(space), name_parts(wanted)
    if parts is None or order is None or parts == order:
        return None
    if sorted(parts) != sorted(order):
        _check_same_parts(wanted, space, "observation_space")
    starts, start = {}, 0
    for name, size in parts:
        starts[name], start = start, start + size
    return [starts[name] + index for name, size in order for index in range(size)]


def arrange_columns(observations: ndarray, model_space: spaces.Box) -> ndarray:
    """Return flat observations with their parts, where these are known, in a model's order.

    Raises:
        SpaceError: The parts differ in their names or sizes.
    """
    parts, expected = name_parts(observations), name_parts(model_space)
    if parts is None or expected is None or observations.shape[-1:] != model_space.shape:
        return observations
    if sorted(parts) != sorted(expected):
        _check_same_parts(observations, model_space, "the environment")
    columns = find_columns(observations, model_space)
    return observations if columns is None else observations[..., columns].astype(np.float32)


def flat_space(space: spaces.Space[Any]) -> spaces.Box:
    """Return the Box that observations of a space become.

    A Box stays as it is, images included. Discrete, MultiDiscrete and MultiBinary become one-hot
    (or binary) vectors, Dict and Tuple the concatenation of their parts in the space's own order,
    all float32: a :class:`FlatBox`, by which the parts are matched later.

    Args:
        space: An environment's observation space.

    Returns:
        The space of what :func:`flatten_observation` returns.

    Raises:
        SpaceError: No flat view is honest: text, sequences, graphs, unions, or images inside a
            Dict or Tuple. Names the part.
    """
    if isinstance(space, spaces.Box):
        return space
    _check_flattenable(space, "the observation space")
    size = sum(size for _, size in _walk_parts(space, ""))
    if size > _MOST_ELEMENTS:
        problem = f"the observation space has {size:,} numbers when it is flattened: give fewer"
        raise SpaceError(problem, setting="observation_space", value=size)
    box = flatten_space(space)
    assert isinstance(box, spaces.Box)
    low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    return FlatBox(spaces.Box(low, high, dtype=np.float32), space)


def flatten_observation(space: spaces.Space[Any], observation: Any, batch: bool = False) -> ndarray:
    """Map an observation to its place in :func:`flat_space`.

    Args:
        space: The observation space of one environment.
        observation: An observation of it; with ``batch``, what a vector environment returns:
            every array with a leading axis of environments.
        batch: Whether there is that leading axis.

    Returns:
        The flat observation, of ``flat_space(space)``'s dtype and shape, after the leading axis
        if ``batch``.

    Raises:
        SpaceError: The space has no flat view, or the observation does not fit the space.
    """
    if isinstance(space, spaces.Box):
        return _as_values(space, observation, batch, "the observation")
    _check_flattenable(space, "the observation space")
    parts: list[ndarray] = []
    _collect_parts(space, observation, batch, "the observation", parts)
    rows = {len(part) for part in parts}
    if len(rows) > 1:
        problem = f"the observation's parts are {sorted(rows)} long: give a row per environment"
        raise _unfit(problem, sorted(rows))
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return flat if batch else flat[0]


def flatten_for(space: spaces.Space[Any], observation: Any) -> ndarray:
    """Return observations as the flat space of a model has them, of one environment or several.

    What is flat already stays as it is; an observation of the space that was flattened is flattened
    as the model's data were, parts matched by name.

    Raises:
        SpaceError: It has parts, and fits no space that the model knows.
    """
    source = getattr(space, "source", None)
    has_parts = isinstance(observation, (Mapping, tuple))
    if has_parts and source is None:
        kind = type(observation).__name__
        problem = (
            f"the observation is a {kind}, and the policy takes one array of shape {space.shape}, "
            "flattened as in training: load the data with observation_space= to have this done here"
        )
        raise _unfit(problem, kind, [space.shape])
    if source is None or not has_parts:
        values = as_unmasked(observation, "the observation")
        if source is None or isinstance(source, _COMPOSITE) or values.shape[-1:] == space.shape:
            return values
        return flatten_observation(source, values, batch=values.ndim > len(source.shape or ()))
    try:
        return flatten_observation(source, observation)
    except SpaceError:
        with contextlib.suppress(SpaceError):
            return flatten_observation(source, observation, batch=True)
        raise


def as_unmasked(values: Any, name: str) -> ndarray:
    """Return ``np.asarray(values)``; SpaceError where that would drop a mask."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        count = int(np.ma.getmaskarray(values).sum())
        problem = f"{name}: {count} values are masked: fill them in"
        raise _unfit(problem, np.ma.MaskedArray)
    return np.asarray(values)


def _check_flattenable(space: spaces.Space[Any], name: str) -> None:
    """Raise SpaceError if a part of the space has no honest flat view."""
    problem = ""
    if isinstance(space, _COMPOSITE):
        children = _children(space)
        if not children:
            problem = f"{name} is empty: {space}"
        for key, child in children:
            where = f"{name}[{key!r}]"
            if isinstance(child, spaces.Box) and is_image_space(child):
                space = child
                problem = f"{where} holds images: keep images alone, or make them features"
                break
            _check_flattenable(child, where)
    elif not isinstance(space, (spaces.Box, *_ONE_HOT)):
        problem = _describe_foreign(space, name) or (
            f"{name} is {type(space).__name__}, which has no vector of a fixed length: "
            f"supported are Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"
        )
    if problem:
        raise SpaceError(problem, setting="observation_space", value=space)


def _describe_foreign(space: Any, name: str) -> str:
    """Say what is no space of Gymnasium's, such as the old gym's; empty where it is one."""
    if isinstance(space, spaces.Space):
        return ""
    kind, fix = type(space), "give an instance of gymnasium.spaces"
    if kind.__module__.partition(".")[0] == "gym":
        fix = f"the old gym's is another class: give gymnasium.spaces.{kind.__name__}(...)"
    return f"{name} is {kind.__module__}.{kind.__name__}, {space!r}, no space of Gymnasium's: {fix}"


def _children(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces))


def _collect_parts(
    space: spaces.Space[Any], value: Any, batch: bool, name: str, parts: list[ndarray]
) -> None:
    """Append each leaf's (rows, size) float32 array, in the order of gymnasium's flattening."""
    if isinstance(space, _COMPOSITE):
        kinds = Mapping if isinstance(space, spaces.Dict) else (tuple, list)
        children = _children(space)
        if not isinstance(value, kinds) or len(value) != len(children):
            problem = f"{name} is a {type(value).__name__} and does not fit {space}"
            raise _unfit(problem, type(value), [space])
        for key, child in children:
            if isinstance(space, spaces.Dict) and key not in value:
                found = ", ".join(map(repr, value))
                raise _unfit(f"{name} has no {key!r}: it has {found}", choices=[key])
            _collect_parts(child, value[key], batch, f"{name}[{key!r}]", parts)
        return
    values = _as_values(space, value, batch, name)
    rows = len(values) if batch else 1
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        parts.append(values.reshape(rows, -1).astype(np.float32))
    else:
        parts.append(_one_hot(space, values.reshape(rows, -1), name))


def _as_values(space: spaces.Space[Any], value: Any, batch: bool, name: str) -> ndarray:
    """Return the numbers of a space without parts, after a check of their shape."""
    try:
        if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "iu":
            values = _as_integers(space, as_unmasked(value, name), name)
        else:
            values = as_unmasked(value, name)
            if isinstance(space, spaces.Box):
                values = values.astype(space.dtype, copy=False)
    except SpaceError:
        raise
    except (TypeError, ValueError) as error:
        problem = f"{name} is a {type(value).__name__} and does not fit {space}"
        raise _unfit(problem, type(value), [space]) from error
    space_shape = space.shape or ()
    shape = values.shape[1:] if batch else values.shape
    if shape != space_shape or (batch and values.ndim == 0) or values.dtype.kind not in "biuf":
        expected = ("environments", *space_shape) if batch else space_shape
        given = f"{name} has shape {values.shape} and dtype {values.dtype}"
        raise _unfit(f"{given}: {space} needs {expected}", values.shape, [expected])
    return values


def _as_integers(space: spaces.Box, values: ndarray, name: str) -> ndarray:
    """Convert to the integers of the space, or refuse numbers that are none of them."""
    assert space.dtype is not None
    if np.can_cast(values.dtype, space.dtype):
        return values.astype(space.dtype, copy=False)
    with np.errstate(invalid="ignore"):
        integers = values.astype(space.dtype)
    changed = np.argwhere(integers != values)
    if len(changed):
        hint = ", 0 to 255 (not scaled to [0, 1])" if space.dtype == np.uint8 else ""
        value = values[tuple(changed[0])]
        raise _unfit(f"{name} holds {value}, which is not of dtype {space.dtype}{hint}", value)
    return integers


def _one_hot(space: spaces.Space[Any], values: ndarray, name: str) -> ndarray:
    """Turn (rows, variables) integers into (rows, sum of their sizes) ones and zeros."""
    if isinstance(space, spaces.MultiDiscrete):
        sizes, first = space.nvec.reshape(-1), space.start.reshape(-1)
    else:
        assert isinstance(space, spaces.Discrete)
        sizes, first = np.array([space.n]), np.array([space.start])
    with np.errstate(invalid="ignore"):  # NaN, which is named
        classes = values.astype(np.int64) - first
    bad = np.argwhere((classes < 0) | (classes >= sizes) | (classes + first != values))
    if len(bad):
        value = values[tuple(bad[0])]
        raise _unfit(f"{name} holds {value}, which is not in {space}", value)
    columns = classes + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = np.zeros((len(values), int(sizes.sum())), dtype=np.float32)
    flat[np.arange(len(values))[:, None], columns] = 1.0
    return flat


def _unfit(message: str, value: Any = None, choices: Iterable[Any] = ()) -> SpaceError:
    return SpaceError(message, setting="observation", value=value, choices=choices)


def is_conditioned(space: spaces.Space[Any]) -> bool:
    """Whether observations of this space carry a return-to-go."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "return_to_go"}


def observation_dtype(space: spaces.Box) -> type[np.uint8] | type[np.float32]:
    """Return what observations of a flat space are stored as: uint8 frames, float32 the rest."""
    is_frame = space.dtype == np.uint8 and len(space.shape) >= 2
    return np.uint8 if is_frame else np.float32


def has_channels_last(shape: tuple[int, ...], space: spaces.Space[Any]) -> bool:
    """Whether images of ``shape`` are those of ``space`` but for their channels being last."""
    is_image = len(shape) == 3 and shape != space.shape and is_image_space(space)
    return is_image and (shape[2], *shape[:2]) == space.shape


def channels_first(observations: ndarray, space: spaces.Space[Any]) -> ndarray:
    """Move the channels to the front where the space has them there, as SB3's policies do."""
    if observations.ndim in (3, 4) and has_channels_last(observations.shape[-3:], space):
        return np.moveaxis(observations, -1, -3)
    return observations


def check_action_space(space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete:
    """Return the space if its actions can be learnt.

    Args:
        space: An environment's action space. A Discrete space may start anywhere: actions keep
            the environment's own numbers.

    Raises:
        SpaceError: It is neither a one-dimensional Box of floats nor Discrete.
    """
    if isinstance(space, spaces.Discrete):
        return space
    problem = _describe_foreign(space, "the action space")
    if problem:
        raise SpaceError(problem, setting="action_space", value=space)
    if not isinstance(space, spaces.Box):
        hint = "wrap the environment so that its actions are one of these"
        if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
            hint = "enumerate the combinations in one Discrete space"
        problem = f"is not supported, only Box (vectors of floats) and Discrete: {hint}"
    elif space.dtype is None or space.dtype.kind != "f":
        problem = f"holds {space.dtype}: only Boxes of floats can be learnt"
    elif len(space.shape) != 1 or space.shape[0] == 0:
        problem = f"has shape {space.shape}: wrap the environment so that actions are vectors"
    else:
        return space
    raise SpaceError(f"the action space {space} {problem}", setting="action_space", value=space)


def cast_actions(space: spaces.Space[Any], actions: ndarray) -> ndarray:
    """Return a copy of actions in the dtype and within the bounds of their space.

    A float64 bound such as 0.1 is larger in float32, in which actions are computed.

    Shapes: ``actions`` (n, *action), or (*action) of one environment.
    """
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
    return np.array(actions, dtype=space.dtype)


def check_environment_fits(
    observation_space: spaces.Box,
    action_space: spaces.Space[Any],
    model_observation_space: spaces.Space[Any],
    model_action_space: spaces.Space[Any],
    what: str,
) -> None:
    """Check that a model can act in an environment: SpaceError, or a warning for a narrower Box."""
    if not has_channels_last(observation_space.shape, model_observation_space):
        _check_same_shape(observation_space, model_observation_space, what)
    _check_same_actions(action_space, model_action_space, what)
    if not isinstance(action_space, spaces.Box) or not isinstance(model_action_space, spaces.Box):
        return
    theirs, ours = _describe(action_space), _describe(model_action_space)
    scaling = f"gymnasium.wrappers.RescaleAction(env, {_describe(model_action_space, ', ')})"
    if describe_bounds(action_space):  # which cannot be scaled
        scaling = "gymnasium.wrappers.ClipAction(env)"
    if not _lies_inside(model_action_space, action_space):
        problem = (
            f"{what} takes actions from {theirs}, and the model acts from {ours}: act in {scaling} "
            "if the data holds the environment's actions on another scale; else load the data "
            "with action_space= and fit again"
        )
        choices = [model_action_space]
        raise SpaceError(problem, setting="action_space", value=action_space, choices=choices)
    is_narrow = not _lies_inside(action_space, model_action_space)
    if is_narrow and not describe_bounds(action_space, model_action_space.high):
        warn_caller(
            f"{what} takes actions from {theirs}, and the model acts from {ours} only: if that "
            f"space was guessed from the data, load them with action_space=, the environment's, "
            f"and fit again; if the data's actions were scaled, act in {scaling}"
        )


def check_dataset_fits(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    model_observation_space: spaces.Space[Any],
    model_action_space: spaces.Space[Any],
) -> None:
    """Check that a model can learn from a dataset; arguments as :func:`check_environment_fits`."""
    _check_same_shape(observation_space, model_observation_space, "the dataset")
    _check_same_actions(action_space, model_action_space, "the dataset")
    if not isinstance(action_space, spaces.Box) or not isinstance(model_action_space, spaces.Box):
        return
    if not _lies_inside(action_space, model_action_space):
        problem = (
            f"the dataset has actions from {_describe(action_space)}, and the model takes "
            f"{_describe(model_action_space)}: scale them, or fit a new model"
        )
        choices = [model_action_space]
        raise SpaceError(problem, setting="action_space", value=action_space, choices=choices)


def _check_same_shape(space: spaces.Space[Any], ours: spaces.Space[Any], what: str) -> None:
    if space.shape != ours.shape:
        shapes = f"{space.shape}, and the model was made for {ours.shape}"
        problem = f"{what} has observations of shape {shapes}: use those of one task"
        choices = [ours.shape]
        raise SpaceError(problem, setting="observation_space", value=space.shape, choices=choices)
    _check_same_parts(space, ours, what)


def _check_same_actions(space: spaces.Space[Any], ours: spaces.Space[Any], what: str) -> None:
    alike = type(space) is type(ours) and space.shape == ours.shape
    if isinstance(space, spaces.Discrete) and isinstance(ours, spaces.Discrete):
        alike = (space.n, space.start) == (ours.n, ours.start)
    if not alike:
        problem = f"{what} has actions {space}, and the model was made for {ours}"
        raise SpaceError(problem, setting="action_space", value=space, choices=[ours])


def _lies_inside(inner: spaces.Box, outer: spaces.Box) -> bool:
    low, high = loosen_bounds(outer)
    return bool((inner.low >= low).all() and (inner.high <= high).all())


def loosen_bounds(space: spaces.Box) -> tuple[Float64[ndarray, "*a"], Float64[ndarray, "*a"]]:
    """Return the bounds of a space, moved apart by :data:`BOUND_TOLERANCE`."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (
        low - BOUND_TOLERANCE * np.maximum(np.abs(low), 1.0),
        high + BOUND_TOLERANCE * np.maximum(np.abs(high), 1.0),
    )


def _describe(space: spaces.Box, between: str = " to ") -> str:
    """Write the bounds as Python has them: one number where all are alike."""
    texts = (
        f"{bound.flat[0]:g}"
        if np.unique(bound).size == 1
        else f"np.array([{', '.join(f'{value:g}' for value in bound.flat)}])"
        for bound in (space.low, space.high)
    )
    return between.join(texts)


UNUSABLE_WIDTH = 1e6
"""Bounds of an action further apart than this many times the actions (or 1) teach nothing."""


def describe_bounds(space: spaces.Box, actions: ndarray | float = 1.0) -> str:
    """Say why actions between the bounds of a Box cannot be learnt or scaled; empty if they can.

    Args:
        space: The action space.
        actions: The largest absolute action of each dimension.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return "bounds that are not finite"
    if not (high > low).all():
        return "no room between its bounds"
    most = UNUSABLE_WIDTH * np.maximum(np.abs(np.asarray(actions, np.float64)), 1.0)
    return "bounds that are too wide" if (high - low > most).any() else ""


def suggest_bounds(low: ndarray, high: ndarray) -> spaces.Box:
    """Return a Box around actions from ``low`` to ``high``, with room where they are all alike."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    pad = np.where(low < high, 0.0, np.maximum(1.0, np.abs(low))).astype(np.float32)
    return spaces.Box(low - pad, high + pad, dtype=np.float32)


def write_box(space: spaces.Box) -> str:
    """Write a Box of float32 as Python code, its bounds to six digits."""
    bounds = _describe(space, ", ").replace("np.array", "np.float32")  # else Gymnasium warns
    return f"gymnasium.spaces.Box({bounds}, {space.shape})"


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box or Discrete space in what JSON can hold, with what a FlatBox flattens."""
    if not isinstance(space, (spaces.Box, spaces.Discrete)):
        raise SpaceError(f"space {space} cannot be saved: only Box and Discrete can")
    source = getattr(space, "source", None)
    described = _describe_json(space)
    assert described is not None
    return described if source is None else {**described, "source": _describe_json(source)}


def _describe_json(space: spaces.Space[Any]) -> dict[str, Any] | None:
    """Describe a space or a part of one; None where a key is no text or number."""
    if isinstance(space, _COMPOSITE):
        children = [(key, _describe_json(child)) for key, child in _children(space)]
        if any(part is None or not isinstance(key, (str, int)) for key, part in children):
            return None
        return {"type": type(space).__name__, "spaces": [list(child) for child in children]}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "MultiDiscrete", "nvec": nvec, "start": start}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": [int(size) for size in space.shape]}
    assert isinstance(space, spaces.Box)
    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": _bound_to_json(space.low),
        "high": _bound_to_json(space.high),
    }


def space_from_json(description: Mapping[str, Any]) -> spaces.Box | spaces.Discrete:
    """Build the space that :func:`space_to_json` described; of a Box, shape and dtype may lack."""
    try:
        space = _read_json(description, _MOST_ELEMENTS)
        if isinstance(space, spaces.Box) and description.get("source") is not None:
            source = _read_json(description["source"], math.prod(space.shape))
            size = sum(size for _, size in _walk_parts(source, ""))
            if space.shape != (size,):
                raise ValueError(f"its source has {size} numbers")
            return FlatBox(space, source)
        if isinstance(space, (spaces.Box, spaces.Discrete)):
            return space
    except (
        *(KeyError, TypeError, ValueError, AttributeError, AssertionError),
        *(OverflowError, MemoryError, RecursionError),
    ) as error:
        problem = f"{reprlib.repr(description)} describes no space ({error!r})"
        raise SpaceError(problem) from error
    raise SpaceError(f"{reprlib.repr(description)} describes neither a Box nor a Discrete space")


def _read_json(description: Mapping[str, Any], most: int) -> spaces.Space[Any]:
    """Read a space of at most ``most`` elements in a Box."""
    kind = description["type"]
    if kind in ("Dict", "Tuple"):
        children = [(key, _read_json(part, most)) for key, part in description["spaces"]]
        return spaces.Dict(children) if kind == "Dict" else spaces.Tuple([c[1] for c in children])
    if kind == "Discrete":
        return spaces.Discrete(description["n"], start=description["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(description["nvec"], start=description["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(description["n"])
    if kind != "Box":
        raise ValueError(f"its type is {kind!r}")
    bounds = [np.array(description[key], np.float64) for key in ("low", "high")]
    shape, dtype = tuple(description.get("shape", bounds[0].shape)), description.get("dtype", "f4")
    if math.prod(shape) > most or np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"a Box of {dtype} and shape {shape}")
    low, high = (np.broadcast_to(bound, shape).astype(dtype) for bound in bounds)
    return spaces.Box(low, high, shape, np.dtype(dtype).type)


def _bound_to_json(bound: ndarray) -> Any:
    """Write numbers as strings, since JSON has no infinity; one where all are alike."""
    if np.unique(bound).size == 1:
        return str(bound.reshape(-1)[0])
    return bound.astype(str).tolist()
