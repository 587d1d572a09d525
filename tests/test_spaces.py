"""Spaces: flattened, fitted to a model's, described in JSON."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import concatenate, create_empty_array

from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import (
    FlatBox,
    arrange_space,
    check_action_space,
    check_dataset_fits,
    check_environment_fits,
    find_columns,
    flat_space,
    flatten_for,
    flatten_observation,
    name_parts,
    space_from_json,
    space_to_json,
)
from tests.evaluation.toys import SeededEnv
from tests.models import tiny_model
from tests.toys import random_trajectories


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> SpaceError:
    with pytest.raises(SpaceError) as caught:
        function(*args, **kwargs)
    return caught.value


FLATTENED: list[spaces.Space[Any]] = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    spaces.MultiDiscrete([2, 4], start=[1, -2]),
    spaces.MultiBinary(4),
    spaces.Dict(b=spaces.Box(-1, 1, (2, 3)), a=spaces.Discrete(3)),
    spaces.Dict(
        goal=spaces.Box(-np.inf, np.inf, (2,), np.float64),
        inner=spaces.Dict(pair=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)])),
        ram=spaces.Box(0, 255, (4,), np.uint8),
    ),
    spaces.Tuple([spaces.Discrete(4), spaces.Box(0, 1, (), np.float32)]),
]
IMAGE = spaces.Box(0, 255, (84, 84, 3), np.uint8)
RAM = spaces.Box(0, 255, (4,), np.uint8)
PAIR = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,)))


@pytest.mark.parametrize("space", FLATTENED, ids=str)
def test_agrees_with_gymnasium(space: spaces.Space[Any]) -> None:
    space.seed(0)
    flat = flat_space(space)
    assert flat.dtype == np.float32
    samples = [space.sample() for _ in range(5)]
    for sample in samples:
        vector = flatten_observation(space, sample)
        assert flat.contains(vector)
        np.testing.assert_allclose(vector, np.asarray(flatten(space, sample)), rtol=1e-6)
    batched = concatenate(space, samples, create_empty_array(space, n=5))
    np.testing.assert_array_equal(
        flatten_observation(space, batched, batch=True),
        [flatten_observation(space, sample) for sample in samples],
    )


def test_a_box_stays_as_it_is() -> None:
    for space in (spaces.Box(-np.inf, np.inf, (3,), np.float64), IMAGE):
        assert flat_space(space) is space
        sample = space.sample()
        assert flatten_observation(space, sample) is sample
        batch = np.stack([sample, sample])
        assert flatten_observation(space, batch, batch=True) is batch
        assert flatten_observation(space, sample.astype(np.float64)).dtype == space.dtype
    for dtype in (np.float32, np.int64, np.bool_, np.uint8):  # whole numbers fit bytes
        flat = flatten_observation(RAM, np.array([0, 1, 1, 0], dtype))
        assert (flat.dtype, flat.tolist()) == (np.dtype(np.uint8), [0, 1, 1, 0])


def test_spaces_without_a_flat_view() -> None:
    refused: list[tuple[spaces.Space[Any], str]] = [
        (spaces.Dict(camera=IMAGE, speed=spaces.Box(0, 1, (1,))), "['camera'] holds images"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Tuple([IMAGE])]), "[1][0] holds images"),
        (spaces.Sequence(spaces.Discrete(2)), "is Sequence"),
        (spaces.Dict(a=spaces.Dict(said=spaces.Text(5))), "['a']['said'] is Text"),
        (spaces.Dict(), "is empty"),
    ]
    for space, message in refused:
        for error in (error_of(flat_space, space), error_of(flatten_observation, space, None)):
            assert message in str(error)
            assert error.setting == "observation_space"


def test_observations_that_do_not_fit() -> None:
    box = spaces.Box(0, 1, (2,))
    refused: list[tuple[spaces.Space[Any], Any, bool, str]] = [
        (box, np.zeros(3), False, "shape (3,)"),
        (box, np.zeros(2), True, "shape (2,)"),
        (box, {"a": 1}, False, "is a dict and does not fit"),
        (spaces.Discrete(2, start=1), np.array([1, 0]), True, "holds 0, which is not in"),
        (spaces.Discrete(2), "left", False, "shape"),
        (spaces.Discrete(2), 0.5, False, "holds 0.5, which is not in"),
        (spaces.MultiDiscrete([2, 2]), np.array([0, 3]), False, "holds 3"),
        (spaces.MultiDiscrete([2, 2]), np.array([0.0, np.nan]), False, "holds nan, which is"),
        (RAM, np.full(4, 0.5), False, "0 to 255 (not scaled to [0, 1])"),
        (RAM, np.array([0.0, 1.0, 2.0, np.nan]), False, "holds nan, which is not of dtype uint8"),
        (RAM, [0, 255, 256, 0], False, "holds 256, which is not of dtype uint8"),
        (RAM, np.array([[0, -1, 0, 0]]), True, "holds -1, which is not of dtype uint8"),
        (RAM, {"a": 1}, False, "is a dict and does not fit"),
        (spaces.Dict(a=RAM), {"a": np.full(4, 0.5)}, False, "['a'] holds 0.5, which is no"),
        (PAIR, {"a": 1}, False, "is a dict and does not fit"),
        (PAIR, {"a": 1, "c": np.zeros(2)}, False, "has no 'b': it has 'a', 'c'"),
        (PAIR, {"a": np.array([0, 1]), "b": np.zeros((3, 2))}, True, "parts are [2, 3] long"),
        (PAIR, {"a": 1, "b": np.zeros(3)}, False, "the observation['b'] has shape (3,)"),
    ]
    for space, observation, batch, message in refused:
        error = error_of(flatten_observation, space, observation, batch=batch)
        assert (message in str(error), error.setting) == (True, "observation"), str(error)


def test_action_spaces() -> None:
    learnt = spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (1,), np.float64), spaces.Discrete(4)
    for space in learnt:
        assert check_action_space(space) is space
    refused = spaces.MultiDiscrete([2]), spaces.MultiBinary(2), spaces.Tuple([]), IMAGE
    for other in (*refused, spaces.Box(-1, 1, (2, 1))):
        error = error_of(check_action_space, other)
        assert (error.setting, error.value) == ("action_space", other)


SEEN = spaces.Box(-1, 1, (3,), np.float32)


def box(low: Any, high: Any, size: int = 2) -> spaces.Box:
    return spaces.Box(np.full(size, low, np.float32), np.full(size, high, np.float32))


def uneven(low: list[float], high: list[float]) -> spaces.Box:
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


def fit(environment: spaces.Space[Any], model: spaces.Space[Any]) -> None:
    check_environment_fits(SEEN, environment, SEEN, model, "the arena")


def test_actions_that_fit() -> None:
    pairs: list[tuple[spaces.Space[Any], spaces.Space[Any]]] = [
        (box(-1, 1), box(-1, 1)),
        (box(-0.4, 0.4), box(-0.4000001, 0.4)),  # rounded on the way
        (box(-np.inf, np.inf), box(-1, 1)),  # no scale that could have been lost
        (spaces.Discrete(3, start=1), spaces.Discrete(3, start=1)),
    ]
    for environment, model in pairs:
        fit(environment, model)  # without a warning
        check_dataset_fits(SEEN, model, SEEN, model)
    check_dataset_fits(SEEN, box(-1, 1), SEEN, box(-2, 2))


def test_a_wider_environment() -> None:
    pairs = [
        (box(-2, 2), box(-1, 1), "RescaleAction(env, -1, 1)"),
        (box(-1, 2), box(-1, 1), "from -1 to 2, and the model acts from -1 to 1 only"),
        (uneven([-1, -1], [1, 3]), uneven([-1, 0], [1, 2]), "(env, np.array([-1, 0]), np.array([1"),
    ]
    for environment, model, line in pairs:
        with pytest.warns(UserWarning, match="action_space=") as caught:
            fit(environment, model)
        assert line in str(caught[0].message)
        assert caught[0].filename == __file__


def test_actions_that_do_not_fit() -> None:
    narrower = [(box(-1, 1), box(-2, 2)), (box(-2, 1), box(-1, 2)), (uneven([-1, 0], [1, 1]), None)]
    for environment, model in narrower:
        error = error_of(fit, environment, model or box(-1, 1))
        assert (error.setting, error.value) == ("action_space", environment)
        assert "RescaleAction(env, " in str(error)
    others: list[tuple[spaces.Space[Any], spaces.Space[Any]]] = [
        (spaces.Discrete(3), spaces.Discrete(4)),
        (spaces.Discrete(3, start=1), spaces.Discrete(3)),
        (box(-1, 1), box(-1, 1, 3)),
        (spaces.Discrete(2), box(-1, 1)),
    ]
    for space, ours in others:
        error = error_of(fit, space, ours)
        assert (error.value, error.choices) == (space, (ours,))
        assert "the arena has actions" in str(error)
    for space, ours in [*others, (box(-2, 2), box(-1, 1))]:
        error = error_of(check_dataset_fits, SEEN, space, SEEN, ours)
        assert (error.value, error.choices) == (space, (ours,))


def test_observations_of_another_shape() -> None:
    first, last = (
        spaces.Box(0, 255, (3, 40, 40), np.uint8),
        spaces.Box(0, 255, (40, 40, 3), np.uint8),
    )
    moves = spaces.Discrete(2)
    check_environment_fits(last, moves, first, moves, "the arena")  # acting moves the channels
    for error in (
        error_of(check_dataset_fits, last, moves, first, moves),
        error_of(check_environment_fits, SEEN, moves, first, moves, "the arena"),
    ):
        assert (error.setting, error.choices) == ("observation_space", ((3, 40, 40),))


def lever(bound: float = 2.0) -> SeededEnv:
    env = SeededEnv()
    env.action_space = box(-bound, bound)
    return env


def test_a_model_is_told_about_its_environments_bounds() -> None:
    model = tiny_model().fit(random_trajectories(observation_shape=(2,)), 1)  # acts from -1 to 1
    with pytest.warns(UserWarning, match="takes actions from -2 to 2"):
        model.set_env(lever())
    with pytest.warns(UserWarning, match="takes actions from -2 to 2"):
        model.evaluate(1.0, 2, env=lever, n_workers=0)
    for call in (
        lambda: model.set_env(lever(0.5)),
        lambda: model.set_env(lambda: lever(0.5)),
        lambda: model.evaluate(1.0, 2, env=lambda: lever(0.5), n_workers=0),
    ):
        assert error_of(call).value == box(-0.5, 0.5)


def test_spaces_round_trip() -> None:
    kept: list[spaces.Space[Any]] = [
        spaces.Discrete(3, start=-2),
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(np.array([0.1, -np.inf]), np.array([1 / 3, 2.0]), dtype=np.float64),
        spaces.Box(np.array([[0.1], [1e-30]], "f4"), np.array([[0.7], [1.0]], "f4")),
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(-1.0, 1.0, (), np.float32),
    ]
    for space in kept:
        description = json.loads(json.dumps(space_to_json(space), allow_nan=False))
        assert space_from_json(description) == space
    error_of(space_to_json, spaces.MultiDiscrete([2, 3]))


def test_broken_descriptions() -> None:
    whole = space_to_json(spaces.Box(-1.0, 1.0, (2,)))
    broken: list[Any] = [
        *({}, [], "Box", None, {"type": "Graph"}, {"type": "Discrete", "n": 2}),
        *({"type": "Discrete", "n": n, "start": 0} for n in (0, "many")),
        *({**whole, "shape": shape} for shape in ([-1], "x", [3.5], [10**15])),
        *({**whole, "low": low} for low in (["0", "1", "2"], "nan", "__import__('os')")),
        *({**whole, "dtype": dtype} for dtype in ("object", "none")),
    ]
    for description in broken:
        error_of(space_from_json, description)


BOX1 = spaces.Box(-1, 1, (1,))
PARTS = spaces.Dict(
    [
        ("z", spaces.Dict([("b", spaces.Box(5, 9, (2,))), ("a", spaces.Discrete(3))])),
        ("t", spaces.Tuple([spaces.MultiBinary(2), spaces.Dict([("q", BOX1), ("p", BOX1)])])),
        ("m", spaces.MultiDiscrete([2, 3])),
    ]
)
T: Any = PARTS["t"]
Z: Any = PARTS["z"]
OTHER_ORDER = spaces.Dict(
    [
        ("m", PARTS["m"]),
        ("t", spaces.Tuple([T[0], spaces.Dict([("p", BOX1), ("q", BOX1)])])),
        ("z", spaces.Dict([("a", Z["a"]), ("b", Z["b"])])),
    ]
)


def test_parts_are_matched_by_name() -> None:
    flat, sample = flat_space(PARTS), PARTS.sample()
    arranged = arrange_space(OTHER_ORDER, flat)
    expected = flatten_observation(PARTS, sample)
    assert not np.array_equal(flatten_observation(OTHER_ORDER, sample), expected)
    np.testing.assert_array_equal(flatten_observation(arranged, sample), expected)
    np.testing.assert_array_equal(flatten_for(flat, sample), expected)
    np.testing.assert_array_equal(flatten_for(flat, expected), expected)
    columns = find_columns(flat_space(OTHER_ORDER), flat)
    np.testing.assert_array_equal(flatten_observation(OTHER_ORDER, sample)[columns], expected)
    assert find_columns(flat, flat) is None
    assert flat != flat_space(OTHER_ORDER)
    assert flat == spaces.Box(flat.low, flat.high) == flat
    renamed = spaces.Dict([("zz", PARTS["z"]), ("t", PARTS["t"]), ("m", PARTS["m"])])
    for call in (
        lambda: arrange_space(renamed, flat),
        lambda: find_columns(flat_space(renamed), flat),
    ):
        assert error_of(call).setting == "observation_space"


def test_the_order_of_parts_is_kept_in_files() -> None:
    flat = flat_space(PARTS)
    for copied in (
        space_from_json(json.loads(json.dumps(space_to_json(flat)))),
        pickle.loads(pickle.dumps(flat)),
    ):
        assert isinstance(copied, FlatBox)
        assert copied == flat
        assert name_parts(copied) == name_parts(flat)
    whole = space_to_json(flat)
    deep: Any = {"type": "Discrete", "n": 2, "start": 0}
    for _ in range(2000):
        deep = {"type": "Tuple", "spaces": [[0, deep]]}
    broken = [
        *({"type": "Dict"}, {"type": "Dict", "spaces": [[[], deep]]}, [], deep),
        *({"type": "Discrete", "n": 4, "start": 0}, {"type": "MultiBinary", "n": [10**15]}),
        {**space_to_json(spaces.Box(0, 1, (1,))), "shape": [10**6]},
    ]
    for source in broken:
        error_of(space_from_json, {**whole, "source": source})
    keys: Any = [((1, 2), BOX1)]
    exotic = flat_space(spaces.Dict(keys))
    assert name_parts(space_from_json(space_to_json(exotic))) is None


def test_a_discrete_observation_as_it_is() -> None:
    flat = flat_space(spaces.Discrete(3, start=1))
    assert flatten_for(flat, 2).tolist() == [0, 1, 0]
    assert flatten_for(flat, np.array([3, 1])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert flatten_for(flat, np.array([0, 1, 0])).tolist() == [0, 1, 0]
    masked = np.ma.masked_array([1.0], [True])
    for observation in (masked, {"a": 1}):
        assert error_of(flatten_for, spaces.Box(-1, 1, (1,)), observation).setting == "observation"


def test_spaces_of_the_old_gym() -> None:
    old = pytest.importorskip("gym").spaces.Box(-2, 2, (1,))
    assert error_of(check_action_space, old).value is old
    assert error_of(flat_space, old).value is old
    assert error_of(flat_space, None).value is None
