"""Whether actions of one space can be taken in another."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data._warn import warn_caller
from sb3_dmamba.errors import SpaceError

__all__ = ["check_actions_fit", "check_actions_known"]

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
    low, high = _loosen(outer.low, -1), _loosen(outer.high, 1)
    return bool((inner.low >= low).all() and (inner.high <= high).all())


def _loosen(bound: ndarray, sign: int) -> ndarray:
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
