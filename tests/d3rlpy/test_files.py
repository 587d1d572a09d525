"""Files: learnables that d3rlpy opens alone, and policies that run without it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.preprocessing import MultiplyRewardScaler

from sb3_dmamba.errors import ConfigError, MissingDependencyError
from tests.d3rlpy.cases import (
    ACTIONS,
    CONTEXT,
    draw_batch,
    draw_input,
    load_torchscript,
    make_algo,
    make_scalers,
    padded_input,
    seeded,
    vector_encoder,
    weights_of,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with seeded(0):
        yield


ENVIRONMENT = """
import gymnasium, numpy as np
class Frames(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gymnasium.spaces.Box(-1, 1, (9,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    render_mode = "rgb_array"
    def reset(self, *, seed=None, options=None):
        self.n_steps = 0
        return np.zeros(9, dtype=np.float32), {}
    def step(self, action):
        assert 0 <= action < 3
        self.n_steps += 1
        return np.ones(9, dtype=np.float32), 2.0, self.n_steps == 4, False, {}
    def render(self):
        return np.zeros((32, 32, 3), dtype=np.uint8)
env = Frames()
"""


def test_d3rlpys_command_line_opens_what_was_saved(tmp_path: Path) -> None:
    """In a process that does not import this package: opening the file does."""
    algo = make_algo("discrete mamba", (9,), encoder_factory=vector_encoder())
    algo.save(tmp_path / "model.d3")
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
from click.testing import CliRunner
from d3rlpy.cli import cli
assert "sb3_dmamba" not in sys.modules
options = ["model.d3", "--env-header", {ENVIRONMENT!r}, "--target-return", "8"]
played = CliRunner().invoke(cli, ["play", *options, "--n-episodes", "2"], catch_exceptions=False)
print(played.output)
assert "sb3_dmamba.d3rlpy" in sys.modules
"""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, finished.stderr
    assert "Score: 8.0" in finished.stdout


def test_the_file_is_d3rlpys(tmp_path: Path) -> None:
    algo = make_algo("mamba", (9,))
    algo.save(tmp_path / "model.d3")
    content = pickle.loads((tmp_path / "model.d3").read_bytes())
    theirs = make_algo("transformer", (9,))
    theirs.save(str(tmp_path / "theirs.d3"))
    expected = pickle.loads((tmp_path / "theirs.d3").read_bytes())
    assert {name: type(value) for name, value in content.items()} == {
        name: type(value) for name, value in expected.items()
    }
    assert json.loads(content["config"])["config"]["type"] == "decision_mamba"
    assert content["version"] == expected["version"]


def test_a_failed_save_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo = make_algo("mamba", (9,))
    algo.save(tmp_path / "model.d3")
    before = (tmp_path / "model.d3").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no space"):
        algo.save(tmp_path / "model.d3")
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["model.d3"]
    assert (tmp_path / "model.d3").read_bytes() == before


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
    ("name", "settings"),
    [*(("mamba", settings) for settings in SETTINGS), ("discrete mamba", "mamba")],
)
def test_exported_policies_are_predict(name: str, settings: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    is_discrete = name.startswith("discrete")
    fields = {**make_scalers("min_max", (9,), is_discrete), **SETTINGS[settings]}
    algo = make_algo(name, (9,), num_layers=1 if is_discrete else 2, **fields)
    algo.update(draw_batch((9,), is_discrete))
    generators = torch.get_rng_state()
    algo.save_policy(tmp_path / "policy.pt")
    algo.save_policy(str(tmp_path / "policy.onnx"))
    assert torch.equal(generators, torch.get_rng_state())
    script = load_torchscript(tmp_path / "policy.pt")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    for n_real in range(1, CONTEXT + 1):
        expected = algo.predict(draw_input((9,), is_discrete, n_real, first=3))
        arrays = padded_input((9,), is_discrete, n_real, first=3)
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


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    algo = make_algo("mamba", (9,), **make_scalers("min_max", (9,), False))
    before, given = weights_of(algo), draw_input((9,), False)
    expected = algo.predict(given)
    backends = [block.mixer.backend for block in algo.impl.model.layers]
    algo.save_policy(tmp_path / "policy.onnx")
    assert [block.mixer.backend for block in algo.impl.model.layers] == backends
    assert all(torch.equal(before[name], value) for name, value in weights_of(algo).items())
    assert all(parameter.requires_grad for parameter in algo.impl.model.parameters())
    np.testing.assert_array_equal(algo.predict(given), expected)


def test_a_whole_episode_through_an_exported_policy(tmp_path: Path) -> None:
    """Acts as d3rlpy's own wrapper does."""
    algo = make_algo("mamba", (9,), **make_scalers("min_max", (9,), False))
    algo.save_policy(tmp_path / "policy.pt")
    policy = load_torchscript(tmp_path / "policy.pt")
    actor = algo.as_stateful_wrapper(20.0)
    rng = np.random.default_rng(5)
    sizes = (9, ACTIONS, 1)
    steps = [torch.zeros(CONTEXT, size) for size in sizes] + [torch.zeros(CONTEXT).long()]
    left, reward = 20.0, 0.0
    for timestep in range(1, 3 * CONTEXT):
        observation = rng.normal(size=9).astype(np.float32)
        left -= reward
        new = [torch.as_tensor(observation), torch.zeros(ACTIONS), torch.tensor([left])]
        steps = [
            torch.cat([old[1:], torch.as_tensor(value).view(1, *old.shape[1:]).to(old.dtype)])
            for old, value in zip(steps, [*new, torch.tensor(timestep)], strict=True)
        ]
        action = policy(*steps)
        steps[1][-1] = action
        expected = actor.predict(observation, reward)
        np.testing.assert_allclose(action, expected, rtol=0, atol=2e-5)
        reward = float(rng.normal())


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
