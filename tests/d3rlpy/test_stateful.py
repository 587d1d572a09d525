"""Stateful wrappers: d3rlpy's with window memory, and ours with stream memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from d3rlpy.algos import GreedyTransformerActionSampler, StatefulTransformerWrapper

from sb3_dmamba.d3rlpy import StreamTransformerWrapper
from sb3_dmamba.errors import ConfigError, SpaceError
from tests.d3rlpy.cases import (
    CONTEXT,
    OURS,
    SHAPES,
    Shape,
    draw_observations,
    is_tuple,
    make_algo,
    make_scalers,
)

N_STEPS = 3 * CONTEXT


def play(actor: Any, shape: Shape, n_steps: int = N_STEPS) -> list[Any]:
    """Actions on observations and rewards that do not depend on them."""
    rng = np.random.default_rng(2)
    actions, reward = [], 0.0
    for _ in range(n_steps):
        observation = draw_observations(rng, shape, 1)
        one = [part[0] for part in observation] if is_tuple(shape) else observation[0]
        actions.append(actor.predict(one, reward))
        reward = float(rng.normal())
    return actions


def make(name: str, shape: Shape, scaler: str | None = None, **fields: Any) -> Any:
    is_discrete = name.startswith("discrete")
    fields = {"time_encoding": "timestep", **make_scalers(scaler, shape, is_discrete), **fields}
    return make_algo(name, shape, **fields)


@pytest.mark.parametrize(
    ("name", "mixer", "shape"),
    [
        *((name, "mamba", shape) for name in OURS for shape in SHAPES),
        (OURS[0], "attention", SHAPES[0]),
        (OURS[1], "convolution", SHAPES[0]),
    ],
)
def test_stream_is_the_window_as_long_as_that_sees_everything(
    name: str, mixer: str, shape: Shape
) -> None:
    algo = make(name, shape, "min_max", mixer=mixer)
    sampler = GreedyTransformerActionSampler() if name.startswith("discrete") else None
    window = algo.as_stateful_wrapper(12.0, sampler, memory="window")
    stream = algo.as_stateful_wrapper(12.0, sampler, memory="stream")
    assert type(window) is StatefulTransformerWrapper
    assert type(stream) is StreamTransformerWrapper
    assert stream.algo is algo
    for expected, found in zip(
        play(window, shape, CONTEXT), play(stream, shape, CONTEXT), strict=True
    ):
        assert type(found) is type(expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_memories() -> None:
    algo = make("mamba", (9,), memory="stream")
    assert isinstance(algo.as_stateful_wrapper(1.0), StreamTransformerWrapper)
    for target, memory, setting in ((1.0, "all", "memory"), (np.nan, None, "target_return")):
        with pytest.raises(ConfigError) as caught:
            algo.as_stateful_wrapper(target, memory=memory)
        assert caught.value.setting == setting
    with pytest.raises(ConfigError, match=r"position_encoding_type=.*SIMPLE"):
        make_algo("discrete mamba", (9,)).as_stateful_wrapper(1.0, memory="stream")


def test_a_wrong_observation_leaves_the_episode_as_it_was() -> None:
    algo = make("mamba", (9,))
    expected = play(algo.as_stateful_wrapper(5.0, memory="stream"), (9,))
    actor = algo.as_stateful_wrapper(5.0, memory="stream")
    row = np.zeros(9, np.float32)
    # Arguments swapped, another environment's, a batch, what reset returned.
    mistakes: list[Any] = [(0.0, row), (row[:4], 0.0), (np.stack([row, row]), 0.0), ((row, {}), 0)]
    for mistake in mistakes:
        with pytest.raises(SpaceError):
            actor.predict(*mistake)
    np.testing.assert_array_equal(play(actor, (9,)), expected)
