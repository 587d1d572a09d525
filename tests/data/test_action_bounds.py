"""Bounds of actions that are chosen in one space and taken in another."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction

from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import check_dataset_fits, check_environment_fits
from tests.models import tiny_model
from tests.toys import random_trajectories

SEEN = spaces.Box(-1, 1, (3,), np.float32)


def box(low: Any, high: Any, size: int = 2) -> spaces.Box:
    return spaces.Box(np.full(size, low, np.float32), np.full(size, high, np.float32))


def uneven(low: list[float], high: list[float]) -> spaces.Box:
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


@pytest.mark.parametrize(
    ("environment", "model"),
    [
        (box(-1, 1), box(-1, 1)),
        (box(-0.4, 0.4), box(-0.4000001, 0.4)),  # rounded on the way
        (box(-np.inf, np.inf), box(-1, 1)),  # no scale that could have been lost
        (spaces.Discrete(3, start=1), spaces.Discrete(3, start=1)),
    ],
)
def test_spaces_that_fit(environment: spaces.Space[Any], model: spaces.Space[Any]) -> None:
    check_environment_fits(SEEN, environment, SEEN, model, "the environment")  # without a warning
    check_dataset_fits(SEEN, model, SEEN, model)


@pytest.mark.parametrize(
    ("environment", "model", "line"),
    [
        (box(-2, 2), box(-1, 1), "RescaleAction(env, -1, 1)"),
        (box(-1, 2), box(-1, 1), "from -1 to 2, and the model acts from -1 to 1 only"),
        (
            uneven([-1, -1], [1, 3]),
            uneven([-1, 0], [1, 2]),
            "RescaleAction(env, np.array([-1, 0]), np.array([1, 2]))",
        ),
    ],
)
def test_a_wider_environment(environment: spaces.Box, model: spaces.Box, line: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(line)) as caught:
        check_environment_fits(SEEN, environment, SEEN, model, "the environment")
    assert "action_space=" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("environment", "model"),
    [(box(-1, 1), box(-2, 2)), (box(-2, 1), box(-1, 2)), (uneven([-1, 0], [1, 1]), box(-1, 1))],
)
def test_a_narrower_environment(environment: spaces.Box, model: spaces.Box) -> None:
    with pytest.raises(SpaceError, match=r"RescaleAction\(env, .* with action_space="):
        check_environment_fits(SEEN, environment, SEEN, model, "the environment")


@pytest.mark.parametrize(
    ("space", "model"),
    [
        (spaces.Discrete(3), spaces.Discrete(4)),
        (spaces.Discrete(3, start=1), spaces.Discrete(3)),
        (box(-1, 1), box(-1, 1, 3)),
        (spaces.Discrete(2), box(-1, 1)),
    ],
)
def test_actions_of_another_kind(space: spaces.Space[Any], model: spaces.Space[Any]) -> None:
    with pytest.raises(SpaceError, match="the arena has actions"):
        check_environment_fits(SEEN, space, SEEN, model, "the arena")
    with pytest.raises(SpaceError, match="the dataset has actions"):
        check_dataset_fits(SEEN, space, SEEN, model)


def test_a_dataset_whose_actions_go_further() -> None:
    check_dataset_fits(SEEN, box(-1, 1), SEEN, box(-2, 2))
    with pytest.raises(SpaceError, match="from -2 to 2, and the model was made for -1 to 1"):
        check_dataset_fits(SEEN, box(-2, 2), SEEN, box(-1, 1))


class Lever(gym.Env[np.ndarray, np.ndarray]):
    """Pays the second number of the action; one step."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, bound: float = 2.0) -> None:
        self.action_space = box(-bound, bound)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros(3, np.float32), float(action[1]), True, False, {}


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")  # by Gymnasium's wrapper
def test_a_model_is_told_about_its_environments_bounds() -> None:
    model = tiny_model().fit(random_trajectories(), 1)  # actions from -1 to 1
    with pytest.warns(UserWarning, match=r"takes actions from -2 to 2, and the model acts from -1"):
        model.set_env(Lever())
    with pytest.warns(UserWarning, match="only: if that space was guessed"):
        model.evaluate(1.0, 2, env=Lever, n_workers=0)
    for env in (Lever(0.5), lambda: Lever(0.5)):
        with pytest.raises(SpaceError, match=r"from -0.5 to 0.5, and the model acts from -1 to 1"):
            model.set_env(env)
        with pytest.raises(SpaceError, match=r"RescaleAction\(env, -1, 1\)"):
            model.evaluate(1.0, 2, env=lambda: Lever(0.5), n_workers=0)
    model.evaluate(1.0, 2, env=lambda: Lever(1.0), n_workers=0)
    rescaled = model.evaluate(
        1.0, 2, env=lambda: RescaleAction(Lever(0.5), np.float32(-1), np.float32(1)), n_workers=0
    )
    assert abs(rescaled.results[0].mean) <= 0.5
