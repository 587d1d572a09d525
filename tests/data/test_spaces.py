from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import check_action_space, flat_space, flatten_observation

FLATTENED: list[spaces.Space[Any]] = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 4]),
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


@pytest.mark.parametrize("space", FLATTENED, ids=str)
def test_agrees_with_gymnasium(space: spaces.Space[Any]) -> None:
    space.seed(0)
    flat = flat_space(space)
    assert flat.dtype == np.float32
    samples = [space.sample() for _ in range(5)]
    for sample in samples:
        vector = flatten_observation(space, sample)
        assert flat.contains(vector)
        expected = np.asarray(flatten(space, sample))
        np.testing.assert_allclose(vector, expected, rtol=1e-6)
    batched = concatenate(space, samples, create_empty_array(space, n=5))
    np.testing.assert_array_equal(
        flatten_observation(space, batched, batch=True),
        [flatten_observation(space, sample) for sample in samples],
    )


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(-5, 5, (2, 2)),
    ],
    ids=str,
)
def test_a_box_stays_as_it_is(space: spaces.Box) -> None:
    assert flat_space(space) is space
    sample = space.sample()
    assert flatten_observation(space, sample) is sample
    batch = np.stack([sample, sample])
    assert flatten_observation(space, batch, batch=True) is batch
    assert flatten_observation(space, sample.astype(np.float64)).dtype == space.dtype


class _Guide(gymnasium.Env[Any, Any]):
    """A Dict environment for the vector environments of both libraries."""

    observation_space = spaces.Dict(where=spaces.Discrete(3, start=1), map=spaces.Box(0, 1, (2,)))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"where": np.int64(2), "map": np.array([0.25, 0.5], np.float32)}, {}


def test_vector_environments_of_both_libraries() -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    space = _Guide.observation_space
    names = list(space.spaces)
    row = {"where": [0.0, 1.0, 0.0], "map": [0.25, 0.5]}
    expected = np.array([[value for name in names for value in row[name]]] * 2)
    vector = gymnasium.vector.SyncVectorEnv([_Guide, _Guide])
    np.testing.assert_array_equal(
        flatten_observation(space, vector.reset()[0], batch=True), expected
    )
    vector.close()
    vec_env = DummyVecEnv([_Guide, _Guide])
    observations = vec_env.reset()
    np.testing.assert_array_equal(flatten_observation(space, observations, batch=True), expected)
    assert batch_space(space, 2).contains(observations)


IMAGE = spaces.Box(0, 255, (84, 84, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict(camera=IMAGE, speed=spaces.Box(0, 1, (1,))), r"\['camera'\] holds images"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Tuple([IMAGE])]), r"\[1\]\[0\] holds images"),
        (spaces.Text(5), "is Text"),
        (spaces.Sequence(spaces.Discrete(2)), "is Sequence"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "is Graph"),
        (spaces.Dict(a=spaces.Dict(said=spaces.Text(5))), r"\['a'\]\['said'\] is Text"),
        (spaces.Dict(), "is empty"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]), "is OneOf"),
    ],
    ids=str,
)
def test_no_honest_flat_view(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        flat_space(space)
    with pytest.raises(SpaceError, match=message):
        flatten_observation(space, None)


RAM = spaces.Box(0, 255, (4,), np.uint8)
PAIR = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,)))


@pytest.mark.parametrize(
    ("space", "observation", "batch", "message"),
    [
        (spaces.Box(0, 1, (2,)), np.zeros(3), False, r"shape \(3,\)"),
        (spaces.Box(0, 1, (2,)), np.zeros(2), True, r"shape \(2,\)"),
        (spaces.Box(0, 1, (2,)), np.zeros((4, 2)), False, r"shape \(4, 2\)"),
        (spaces.Box(0, 1, (2,)), {"a": 1}, False, "is a dict and does not fit"),
        (spaces.Discrete(2), 2, False, "holds 2, which is not in"),
        (spaces.Discrete(2, start=1), np.array([1, 0]), True, "holds 0, which is not in"),
        (spaces.MultiDiscrete([2, 2]), np.array([0, 3]), False, "holds 3"),
        (spaces.Discrete(2), "left", False, "shape"),
        (spaces.Discrete(2), 0.5, False, "holds 0.5, which is not in"),
        (spaces.MultiDiscrete([2, 2]), np.array([0.0, np.nan]), False, "holds nan, which is"),
        (RAM, np.full(4, 0.5), False, r"holds 0.5, .* 0 to 255 \(not scaled to \[0, 1\]\)"),
        (RAM, np.array([0.0, 1.0, 2.0, np.nan]), False, "holds nan, which is not of dtype uint8"),
        (RAM, [0, 255, 256, 0], False, "holds 256, which is not of dtype uint8"),
        (RAM, np.array([[0, -1, 0, 0]]), True, "holds -1, which is not of dtype uint8"),
        (RAM, {"a": 1}, False, "is a dict and does not fit"),
        (spaces.Dict(a=RAM), {"a": np.full(4, 0.5)}, False, r"\['a'\] holds 0.5, which is no"),
        (PAIR, {"a": 1}, False, "is a dict and does not fit"),
        (PAIR, {"a": 1, "c": np.zeros(2)}, False, "has no 'b': it has 'a', 'c'"),
        (PAIR, np.zeros(4), False, "is a ndarray and does not fit"),
        (PAIR, {"a": np.array([0, 1]), "b": np.zeros((3, 2))}, True, r"parts are \[2, 3\] long"),
        (PAIR, {"a": 1, "b": np.zeros(3)}, False, r"the observation\['b'\] has shape \(3,\)"),
    ],
)
def test_observations_that_do_not_fit(
    space: spaces.Space[Any], observation: Any, batch: bool, message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        flatten_observation(space, observation, batch=batch)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (1,), np.float64), spaces.Discrete(4, start=1)],
    ids=str,
)
def test_action_spaces(space: spaces.Space[Any]) -> None:
    assert check_action_space(space) is space


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2]), spaces.MultiBinary(2), spaces.Tuple([]), IMAGE], ids=str
)
def test_action_spaces_that_cannot_be_learnt(space: spaces.Space[Any]) -> None:
    with pytest.raises(SpaceError, match="the action space"):
        check_action_space(space)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.uint8])
def test_whole_numbers_of_any_type_fit_bytes(dtype: type[np.generic]) -> None:
    flat = flatten_observation(RAM, np.array([0, 1, 1, 0], dtype))
    assert flat.dtype == np.uint8
    assert flat.tolist() == [0, 1, 1, 0]
