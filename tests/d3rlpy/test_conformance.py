"""d3rlpy's assertions about its Decision Transformers, for its algorithms and ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch

from tests.d3rlpy.cases import (
    CONFIGS,
    SHAPE_NAMES,
    SHAPES,
    Shape,
    draw_batch,
    draw_input,
    make_algo,
    make_scalers,
    weights_of,
)


def is_discrete(name: str) -> bool:
    return name.startswith("discrete")


every_algorithm = pytest.mark.parametrize("name", CONFIGS)
every_case = pytest.mark.parametrize(
    ("shape", "scaler"),
    [(SHAPES[0], None), *((shape, "min_max") for shape in SHAPES)],
    ids=["plain vector", *SHAPE_NAMES],
)


def make(name: str, shape: Shape, scaler: str | None, *, build: bool = True, **fields: Any) -> Any:
    scalers = make_scalers(scaler, shape, is_discrete(name))
    return make_algo(name, shape if build else None, **scalers, **fields)


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
