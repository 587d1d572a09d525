"""Observation and action spaces: flattening, JSON, and which actions fit which bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten_space
from numpy import ndarray
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dmamba.console import warn_caller
from sb3_dmamba.errors import SpaceError

_COMPOSITE = (spaces.Dict, spaces.Tuple)
_ONE_HOT = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def flat_space(space: spaces.Space[Any]) -> spaces.Box:
    """Return the Box that observations of a space become.

    A Box stays as it is, images included. Discrete, MultiDiscrete and MultiBinary become one-hot
    (or binary) vectors, Dict and Tuple the concatenation of their parts in the space's own order,
    all float32.

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
    box = flatten_space(space)
    assert isinstance(box, spaces.Box)
    low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    return spaces.Box(low, high, dtype=np.float32)


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
        values = _as_array(space, observation, "the observation")
        _check_shape(space, values, batch, "the observation")
        return values
    _check_flattenable(space, "the observation space")
    parts: list[ndarray] = []
    _collect_parts(space, observation, batch, "the observation", parts)
    rows = {len(part) for part in parts}
    if len(rows) > 1:
        raise SpaceError(
            f"the observation's parts are {sorted(rows)} long: every part needs one row per "
            f"environment",
            setting="observation",
            value=sorted(rows),
        )
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return flat if batch else flat[0]


def is_conditioned(space: spaces.Space[Any]) -> bool:
    """Whether observations of this space carry a return-to-go."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "return_to_go"}


def observation_dtype(space: spaces.Box) -> type[np.uint8] | type[np.float32]:
    """Return what observations of a flat space are stored as: uint8 frames, float32 the rest."""
    is_frame = space.dtype == np.uint8 and len(space.shape) >= 2
    return np.uint8 if is_frame else np.float32


def has_channels_last(shape: tuple[int, ...], space: spaces.Space[Any]) -> bool:
    """Whether images of ``shape`` are those of ``space`` but for their channels, which come last.

    Args:
        shape: Of one observation.
        space: What a model takes; images, or anything else.
    """
    is_image = len(shape) == 3 and shape != space.shape and is_image_space(space)
    return is_image and (shape[2], *shape[:2]) == space.shape


def channels_first(observations: ndarray, space: spaces.Space[Any]) -> ndarray:
    """Move the channels to the front where the space has them there and the images have not.

    Stable-Baselines3's policies do the same, so that a ``VecTransposeImage`` may be left out.

    Args:
        observations: One observation, or (n, *one).
        space: What a model takes.

    Returns:
        A view; ``observations`` itself where it holds no such images.
    """
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
    if isinstance(space, spaces.Box):
        if space.dtype is None or space.dtype.kind != "f":
            raise SpaceError(
                f"the action space {space} holds {space.dtype}: only Boxes of floats can be learnt",
                setting="action_space",
                value=space,
            )
        if len(space.shape) != 1 or space.shape[0] == 0:
            raise SpaceError(
                f"the action space {space} has shape {space.shape}: wrap the environment so that "
                f"its actions are vectors (gymnasium.wrappers.RescaleAction, TransformAction)",
                setting="action_space",
                value=space,
            )
        return space
    hint = {
        "MultiDiscrete": "enumerate the combinations in one Discrete space",
        "MultiBinary": "enumerate the combinations in one Discrete space",
    }.get(type(space).__name__, "wrap the environment so that its actions are one of these")
    raise SpaceError(
        f"the action space {space} is not supported, only Box (vectors of floats) and Discrete: "
        f"{hint}",
        setting="action_space",
        value=space,
    )


def _check_flattenable(space: spaces.Space[Any], name: str) -> None:
    """Raise SpaceError if a part of the space has no honest flat view."""
    if isinstance(space, _COMPOSITE):
        children = _children(space)
        if not children:
            raise SpaceError(f"{name} is empty: {space}", setting="observation_space", value=space)
        for key, child in children:
            where = f"{name}[{key!r}]"
            if isinstance(child, spaces.Box) and is_image_space(child):
                raise SpaceError(
                    f"{where} holds images ({child}), which cannot be flattened with the rest: "
                    f"keep the images alone, or turn them into features, in a wrapper",
                    setting="observation_space",
                    value=child,
                )
            _check_flattenable(child, where)
    elif not isinstance(space, (spaces.Box, *_ONE_HOT)):
        raise SpaceError(
            f"{name} is {type(space).__name__}, which has no vector of a fixed length: "
            f"supported are Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them",
            setting="observation_space",
            value=space,
        )


def _children(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces))


def _collect_parts(
    space: spaces.Space[Any], value: Any, batch: bool, name: str, parts: list[ndarray]
) -> None:
    """Append each leaf's (rows, size) float32 array, in the order of gymnasium's flattening."""
    if isinstance(space, _COMPOSITE):
        is_container = isinstance(
            value, Mapping if isinstance(space, spaces.Dict) else (tuple, list)
        )
        children = _children(space)
        if not is_container or len(value) != len(children):
            raise _does_not_fit(name, value, space)
        for key, child in children:
            if isinstance(space, spaces.Dict) and key not in value:
                raise SpaceError(
                    f"{name} has no {key!r}: it has {', '.join(map(repr, value))}",
                    setting="observation",
                    choices=[key],
                )
            _collect_parts(child, value[key], batch, f"{name}[{key!r}]", parts)
        return
    values = _as_array(space, value, name)
    _check_shape(space, values, batch, name)
    rows = len(values) if batch else 1
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        parts.append(values.reshape(rows, -1).astype(np.float32))
    else:
        parts.append(_one_hot(space, values.reshape(rows, -1), name))


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
        raise SpaceError(
            f"{name} holds {values[tuple(bad[0])]}, which is not in {space}",
            setting="observation",
            value=values[tuple(bad[0])],
        )
    columns = classes + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = np.zeros((len(values), int(sizes.sum())), dtype=np.float32)
    flat[np.arange(len(values))[:, None], columns] = 1.0
    return flat


def _as_array(space: spaces.Space[Any], value: Any, name: str) -> ndarray:
    try:
        if not isinstance(space, spaces.Box):
            return np.asarray(value)
        if space.dtype is not None and space.dtype.kind in "iu":
            return _as_integers(space, np.asarray(value), name)
        return np.asarray(value, dtype=space.dtype)
    except SpaceError:
        raise
    except (TypeError, ValueError) as error:
        raise _does_not_fit(name, value, space) from error


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
        raise SpaceError(
            f"{name} holds {values[tuple(changed[0])]}, which is not of dtype {space.dtype}: give "
            f"values as "
            f"the space has them{hint}, or describe them with a Box of floats",
            setting="observation",
            value=values[tuple(changed[0])],
        )
    return integers


def _check_shape(space: spaces.Space[Any], values: ndarray, batch: bool, name: str) -> None:
    space_shape = space.shape or ()
    shape = values.shape[1:] if batch else values.shape
    if shape != space_shape or (batch and values.ndim == 0) or values.dtype.kind not in "biuf":
        expected = ("environments", *space_shape) if batch else space_shape
        raise SpaceError(
            f"{name} has shape {values.shape} and dtype {values.dtype}: {space} needs {expected}",
            setting="observation",
            value=values.shape,
            choices=[expected],
        )


def _does_not_fit(name: str, value: Any, space: spaces.Space[Any]) -> SpaceError:
    return SpaceError(
        f"{name} is a {type(value).__name__} and does not fit {space}",
        setting="observation",
        value=type(value),
        choices=[space],
    )


_MOST_ELEMENTS = 1 << 24  # of an observation; a file that says more was made to fill memory


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box or Discrete space in what JSON can hold.

    Raises:
        SpaceError: The space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if not isinstance(space, spaces.Box):
        raise SpaceError(f"space {space} cannot be saved: only Box and Discrete can")
    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": _bound_to_json(space.low),
        "high": _bound_to_json(space.high),
    }


def space_from_json(description: Mapping[str, Any]) -> spaces.Box | spaces.Discrete:
    """Build the space that :func:`space_to_json` described.

    Raises:
        SpaceError: The description is of no such space.
    """
    try:
        if description["type"] == "Discrete":
            return spaces.Discrete(description["n"], start=description["start"])
        if description["type"] == "Box":
            shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
            if math.prod(shape) <= _MOST_ELEMENTS and dtype.kind in "biuf":
                low, high = (
                    np.broadcast_to(np.array(description[key], np.float64), shape).astype(dtype)
                    for key in ("low", "high")
                )
                return spaces.Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, MemoryError) as error:
        raise SpaceError(f"{description!r} describes no space ({error!r})") from error
    raise SpaceError(f"{description!r} describes neither a Box nor a Discrete space")


def _bound_to_json(bound: ndarray) -> Any:
    """Write numbers as strings, since JSON has no infinity; one where all are alike."""
    if np.unique(bound).size == 1:
        return str(bound.reshape(-1)[0])
    return bound.astype(str).tolist()


_TOLERANCE = 1e-5  # of a bound: what a trip through float32 may cost


def check_actions_fit(space: spaces.Space[Any], model_space: spaces.Space[Any], what: str) -> None:
    """Check that an environment takes the actions that a model chooses.

    A model's Box that is narrower than the environment's is often one that was guessed from data,
    or holds actions that were scaled: that is a warning.

    Args:
        space: The environment's action space.
        model_space: The model's.
        what: What the environment is called in the message.

    Raises:
        SpaceError: They are of another kind or shape, or the model's actions may lie outside; says
            what to write.
    """
    _check_kind(space, model_space, what)
    if not isinstance(space, spaces.Box) or not isinstance(model_space, spaces.Box):
        return
    theirs, ours = _describe(space), _describe(model_space)
    scaling = f"gymnasium.wrappers.RescaleAction(env, {_as_code(model_space)})"
    if not _lies_inside(model_space, space):
        raise SpaceError(
            f"{what} takes actions from {theirs}, and the model acts from {ours}: act in {scaling} "
            f"if the data holds the environment's actions on another scale; else load the data "
            f"with action_space=, the environment's, and fit again",
            setting="action_space",
            value=space,
            choices=[model_space],
        )
    if space.is_bounded("both") and not _lies_inside(space, model_space):
        warn_caller(
            f"{what} takes actions from {theirs}, and the model acts from {ours} only: if that "
            f"space was guessed from the data, load them with action_space=, the environment's, "
            f"and fit again; if the data's actions were scaled, act in {scaling}"
        )


def check_actions_known(space: spaces.Space[Any], model_space: spaces.Space[Any]) -> None:
    """Check that a model can learn all actions of a dataset.

    Args:
        space: The dataset's action space.
        model_space: The model's.

    Raises:
        SpaceError: They are of another kind or shape, or some lie outside the model's bounds.
    """
    _check_kind(space, model_space, "the dataset")
    if not isinstance(space, spaces.Box) or not isinstance(model_space, spaces.Box):
        return
    if not _lies_inside(space, model_space):
        raise SpaceError(
            f"the dataset has actions from {_describe(space)}, and the model was made for "
            f"{_describe(model_space)}: scale them, or fit a new model",
            setting="action_space",
            value=space,
            choices=[model_space],
        )


def _check_kind(space: spaces.Space[Any], model_space: spaces.Space[Any], what: str) -> None:
    alike = type(space) is type(model_space) and space.shape == model_space.shape
    if isinstance(space, spaces.Discrete) and isinstance(model_space, spaces.Discrete):
        alike = (space.n, space.start) == (model_space.n, model_space.start)
    if not alike:
        raise SpaceError(
            f"{what} has actions {space}, and the model was made for {model_space}: use the "
            f"environment and dataset of one task",
            setting="action_space",
            value=space,
            choices=[model_space],
        )


def _lies_inside(inner: spaces.Box, outer: spaces.Box) -> bool:
    low, high = loosen(outer.low, -1), loosen(outer.high, 1)
    return bool((inner.low >= low).all() and (inner.high <= high).all())


def loosen(bound: ndarray, sign: int) -> ndarray:
    """Move a bound outwards (``sign`` is -1 for a low one) by what float32 rounding may cost."""
    exact = bound.astype(np.float64)
    loosened: ndarray = exact + sign * _TOLERANCE * np.maximum(np.abs(exact), 1.0)
    return loosened


def _describe(space: spaces.Box) -> str:
    return f"{_bound_as_code(space.low)} to {_bound_as_code(space.high)}"


def _as_code(space: spaces.Box) -> str:
    return f"{_bound_as_code(space.low)}, {_bound_as_code(space.high)}"


def _bound_as_code(bound: ndarray) -> str:
    """Write a bound as Python has it: one number where all are alike."""
    if np.unique(bound).size == 1:
        return f"{bound.flat[0]:g}"
    return f"np.array([{', '.join(f'{value:g}' for value in bound.flat)}])"
