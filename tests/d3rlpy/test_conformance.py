"""d3rlpy's assertions about its Decision Transformers, for its algorithms and ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.dataset import TrajectoryMiniBatch

from tests.d3rlpy.cases import (
    ACTIONS,
    CONFIGS,
    CONTEXT,
    OURS,
    SHAPE_NAMES,
    SHAPES,
    Metrics,
    Shape,
    draw_batch,
    draw_input,
    draw_observations,
    fit,
    is_tuple,
    load_torchscript,
    make_algo,
    make_buffer,
    make_scalers,
    padded_input,
    seeded,
    weights_of,
)


def is_discrete(name: str) -> bool:
    return name.startswith("discrete")


every_algorithm = pytest.mark.parametrize("name", CONFIGS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_NAMES)
every_case = pytest.mark.parametrize(
    ("shape", "scaler"),
    [(SHAPES[0], None), *((shape, "min_max") for shape in SHAPES)],
    ids=["plain vector", *SHAPE_NAMES],
)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with seeded(0):
        yield


def make(name: str, shape: Shape, scaler: str | None, *, build: bool = True, **fields: Any) -> Any:
    scalers = make_scalers(scaler, shape, is_discrete(name))
    return make_algo(name, shape if build else None, **scalers, **fields)


@every_algorithm
@every_case
def test_fit(name: str, shape: Shape, scaler: str | None) -> None:
    algo = make(name, shape, scaler, build=False)
    algo.update = Mock(return_value={"loss": 0.25})
    seen: list[tuple[int, int]] = []
    metrics = Metrics()
    algo.fit(
        make_buffer(shape, is_discrete(name)),
        n_steps=10,
        n_steps_per_epoch=5,
        logger_adapter=metrics,
        show_progress=False,
        save_interval=2,
        callback=lambda algo, epoch, step: seen.append((epoch, step)),
    )
    assert algo.update.call_count == 10
    batch = algo.update.call_args[0][0]
    assert isinstance(batch, TrajectoryMiniBatch)
    assert batch.actions.shape[:2] == (algo.batch_size, CONTEXT)
    assert seen == [(1 + (step - 1) // 5, step) for step in range(1, 11)]
    assert metrics.values["loss"] == [0.25, 0.25]
    assert metrics.saved == [10]  # named by the total step
    assert tuple(algo.impl.observation_shape) == shape
    assert algo.action_size == ACTIONS


@every_algorithm
@every_case
def test_update(name: str, shape: Shape, scaler: str | None) -> None:
    algo = make(name, shape, scaler)
    batch = draw_batch(shape, is_discrete(name))
    before = weights_of(algo)
    for step in range(1, 4):
        metrics = algo.update(batch)
        assert algo.grad_step == step
        for metric, value in metrics.items():
            assert isinstance(value, float), metric
            assert math.isfinite(value), metric
    after = weights_of(algo)
    still = [key for key, value in before.items() if torch.equal(value, after[key])]
    trained = dict(algo.impl.modules.transformer.named_parameters())
    assert not [key for key in still if key in trained]
    missing = [key for key, parameter in trained.items() if parameter.grad is None]
    assert not missing


@every_algorithm
@every_case
def test_predict(name: str, shape: Shape, scaler: str | None) -> None:
    algo = make(name, shape, scaler)
    for n_steps in (1, CONTEXT - 1, CONTEXT, CONTEXT + 3):
        given = draw_input(shape, is_discrete(name), n_steps)
        first, second = algo.predict(given), algo.predict(given)
        assert first.shape == (ACTIONS,)
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, second)  # no dropout
    if not is_discrete(name):
        low, high = (-2.0, 5.0) if scaler else (-1.0, 1.0)
        assert first.min() >= low
        assert first.max() <= high


@every_algorithm
@every_case
def test_saving(name: str, shape: Shape, scaler: str | None, tmp_path: Path) -> None:
    algo = make(name, shape, scaler)
    given = draw_input(shape, is_discrete(name))
    expected = algo.predict(given)

    algo.save_model(str(tmp_path / "weights.pt"))
    other = make(name, shape, scaler)
    assert not np.allclose(other.predict(given), expected)
    other.load_model(str(tmp_path / "weights.pt"))
    np.testing.assert_array_equal(other.predict(given), expected)

    algo.save(str(tmp_path / "whole.d3"))
    loaded = d3rlpy.load_learnable(str(tmp_path / "whole.d3"))
    assert type(loaded) is type(algo)
    assert json.loads(loaded.config.serialize()) == json.loads(algo.config.serialize())
    np.testing.assert_array_equal(loaded.predict(given), expected)


@every_algorithm
@every_case
def test_from_json(name: str, shape: Shape, scaler: str | None, tmp_path: Path) -> None:
    algo = make(name, shape, scaler)
    adapter = d3rlpy.logging.FileAdapterFactory(str(tmp_path))
    logger = d3rlpy.logging.D3RLPyLogger(algo, adapter, "run", 1, with_timestamp=False)
    d3rlpy.base.save_config(algo, logger)
    path = tmp_path / "run" / "params.json"
    assert json.loads(path.read_text())["action_size"] == ACTIONS
    built = type(algo).from_json(str(path))
    assert type(built) is type(algo)
    assert json.loads(built.config.serialize()) == json.loads(algo.config.serialize())
    assert built.predict(draw_input(shape, is_discrete(name))).shape == (ACTIONS,)


@every_algorithm
@every_case
def test_stateful_wrapper(name: str, shape: Shape, scaler: str | None) -> None:
    algo = make(name, shape, scaler)
    wrapper = algo.as_stateful_wrapper(target_return=100.0)

    def act_throughout() -> list[Any]:
        rng, actions = np.random.default_rng(1), []
        for step in range(3 * CONTEXT):
            observation = draw_observations(rng, shape, 1)
            one = [part[0] for part in observation] if is_tuple(shape) else observation[0]
            actions.append(wrapper.predict(one, 0.5 * step))
        return actions

    first = act_throughout()
    for action in first:
        if is_discrete(name):
            assert isinstance(action, int)
            assert 0 <= action < ACTIONS
        else:
            assert action.shape == (ACTIONS,)
    wrapper.reset()
    if not is_discrete(name):  # discrete actions are drawn
        np.testing.assert_array_equal(act_throughout(), first)
    assert wrapper.algo is algo


@every_algorithm
@every_shape
@pytest.mark.filterwarnings("ignore")  # of TorchScript, which d3rlpy uses
def test_torchscript(name: str, shape: Shape, tmp_path: Path) -> None:
    algo = make(name, shape, "min_max")
    path = str(tmp_path / "policy.pt")
    algo.save_policy(path)
    policy = load_torchscript(path)
    action = policy(*map(torch.as_tensor, padded_input(shape, is_discrete(name))))
    assert action.shape == (() if is_discrete(name) else (ACTIONS,))
    algo.update(draw_batch(shape, is_discrete(name)))  # training goes on
    assert all(p.grad is not None for p in algo.impl.modules.transformer.parameters())


@pytest.mark.parametrize("name", OURS)  # d3rlpy's own ONNX export fails under torch 2.13
@every_shape
def test_onnx(name: str, shape: Shape, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    algo = make(name, shape, "min_max")
    path = str(tmp_path / "policy.onnx")
    algo.save_policy(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    n_observations = len(shape) if is_tuple(shape) else 1
    assert names == [
        *(f"observation_{index}" for index in range(n_observations)),
        *("action", "return_to_go", "timestep"),
    ]
    assert [each.name for each in session.get_outputs()] == ["output_0"]
    for n_real in (1, CONTEXT - 1, CONTEXT):
        arrays = padded_input(shape, is_discrete(name), n_real)
        (action,) = session.run(None, dict(zip(names, arrays, strict=True)))
        expected = algo.predict(draw_input(shape, is_discrete(name), n_real))
        if is_discrete(name):
            assert action.shape == ()
            assert int(action) == expected.argmax()
        else:
            np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-5)


@every_algorithm
def test_an_action_space_of_the_other_kind_is_refused(name: str) -> None:
    algo = make(name, (9,), None, build=False)
    with pytest.raises(AssertionError):
        fit(algo, make_buffer((9,), is_discrete=not is_discrete(name)), 1)
