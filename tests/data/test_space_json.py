"""Spaces in the headers of model files and stores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(7),
        spaces.Discrete(3, start=-2),
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(np.array([0.1, -np.inf]), np.array([1 / 3, 2.0]), dtype=np.float64),
        spaces.Box(np.array([[0.1], [1e-30]], "f4"), np.array([[0.7], [1.0]], "f4")),
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(-1.0, 1.0, (), np.float32),
    ],
)
def test_spaces_round_trip(space: spaces.Space[Any]) -> None:
    description = json.loads(json.dumps(space_to_json(space), allow_nan=False))
    assert space_from_json(description) == space


def test_a_space_that_cannot_be_saved() -> None:
    with pytest.raises(SpaceError, match="only Box and Discrete"):
        space_to_json(spaces.MultiDiscrete([2, 3]))


BOX = space_to_json(spaces.Box(-1.0, 1.0, (2,)))


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"type": "Graph"},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": "many", "start": 0},
        {"type": "Discrete", "n": 2},
        {**BOX, "shape": [-1]},
        {**BOX, "shape": "x"},
        {**BOX, "shape": [3.5]},
        {**BOX, "shape": [10**15]},
        {**BOX, "low": ["0", "1", "2"]},
        {**BOX, "low": "nan"},
        {**BOX, "low": "__import__('os')"},
        {**BOX, "dtype": "object"},
        {**BOX, "dtype": "none"},
        [],
        "Box",
        None,
    ],
)
def test_a_broken_space(description: Any) -> None:
    with pytest.raises(SpaceError):
        space_from_json(description)
