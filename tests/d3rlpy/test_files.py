"""Files: learnables that d3rlpy opens alone, and policies that run without it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.preprocessing import MultiplyRewardScaler

from sb3_dmamba import machine
from sb3_dmamba.errors import ConfigError, MissingDependencyError
from tests.d3rlpy.cases import (
    ACTIONS,
    CONTEXT,
    SHAPES,
    Shape,
    draw_batch,
    draw_input,
    load_torchscript,
    make_algo,
    make_scalers,
    padded_input,
    vector_encoder,
)
from tests.scripts import run_python

ROOT = Path(__file__).parents[2]


def test_a_process_that_does_not_import_this_package_opens_the_file(tmp_path: Path) -> None:
    make_algo("discrete mamba", (9,), encoder_factory=vector_encoder()).save(tmp_path / "model.d3")
    code = """
import sys, warnings
warnings.simplefilter("ignore")
import d3rlpy
assert "sb3_dmamba" not in sys.modules
print(type(d3rlpy.load_learnable("model.d3")).__name__)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = run_python("-c", code, cwd=tmp_path, env=environment)
    assert said.split()[-1] == "DiscreteDecisionMamba"


def test_a_file_has_the_precision_that_auto_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag, chosen in (("avx512_bf16", "bf16"), ("avx2", "fp32")):
        monkeypatch.setattr(machine, "read_cpu_flags", lambda flag=flag: frozenset({flag}))
        make_algo("mamba", (9,), precision="auto").save(tmp_path / "model.d3")
        monkeypatch.setattr(machine, "read_cpu_flags", lambda: frozenset({"none"}))
        assert d3rlpy.load_learnable(str(tmp_path / "model.d3")).config.precision == chosen
    with pytest.raises(ConfigError) as caught:
        make_algo("mamba", (9,), precision="tf32").fit(None, 1, 1)
    assert (caught.value.setting, caught.value.value) == ("precision", "tf32")


SETTINGS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "attention": {"mixer": "attention"},
    "convolution": {"mixer": "convolution"},
    "global": {"position_encoding_type": d3rlpy.PositionEncodingType.GLOBAL},
    "timeless": {"time_encoding": "none", "channel_mixing": False},
    "scaled returns": {"reward_scaler": MultiplyRewardScaler(0.01)},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        *(("mamba", settings, (9,)) for settings in SETTINGS),
        *(("discrete mamba", "mamba", shape) for shape in SHAPES),
    ],
)
def test_exported_policies_are_predict(
    name: str, settings: str, shape: Shape, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    is_discrete = name.startswith("discrete")
    fields = {**make_scalers("min_max", shape, is_discrete), **SETTINGS[settings]}
    algo = make_algo(name, shape, num_layers=1 if is_discrete else 2, **fields)
    algo.update(draw_batch(shape, is_discrete))
    generators = torch.get_rng_state()
    algo.save_policy(tmp_path / "policy.pt")
    algo.save_policy(str(tmp_path / "policy.onnx"))
    assert torch.equal(generators, torch.get_rng_state())
    script = load_torchscript(tmp_path / "policy.pt")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    assert names[-3:] == ["action", "return_to_go", "timestep"]
    assert names[0] == "observation_0"
    for n_real in range(1, CONTEXT + 1):
        expected = algo.predict(draw_input(shape, is_discrete, n_real, first=3))
        arrays = padded_input(shape, is_discrete, n_real, first=3)
        found = [
            script(*map(torch.as_tensor, arrays)).numpy(),
            session.run(None, dict(zip(names, arrays, strict=True)))[0],
        ]
        for action in found:
            if is_discrete:
                assert int(action) == expected.argmax()
            else:
                assert action.shape == (ACTIONS,)
                np.testing.assert_allclose(action, expected, rtol=0, atol=2e-5)


def test_export_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algo = make_algo("mamba", (9,))
    with pytest.raises(ConfigError) as caught:
        algo.save_policy(tmp_path / "policy.zip")
    assert caught.value.choices == (".pt", ".onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError) as missing:
        algo.save_policy(tmp_path / "policy.onnx")
    assert missing.value.extra == "onnx"
    assert not list(tmp_path.iterdir())
