"""``model.export``: whole episodes without this package, metadata and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch

from examples import serve_onnx
from examples.serve_onnx import ServedPolicy, play
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, ExportError, MissingDependencyError, NotFittedError
from sb3_dmamba.export import exporting
from tests.models import tiny_model
from tests.scripts import run_python
from tests.toys import ChoiceEnv, choice_trajectories, random_trajectories

# torch.export takes seconds a layer
SMALLEST: dict[str, Any] = {"n_layers": 1, "channel_mixing": False}


def fitted(trajectories: Trajectories | None = None, **settings: Any) -> DecisionMamba:
    return tiny_model(**settings).fit(
        random_trajectories() if trajectories is None else trajectories, 3
    )


def play_with_predict(env: Any, model: DecisionMamba, target: float) -> list[Any]:
    """Play an episode, and return the actions."""
    conditioned: Any = ReturnToGo(env, target)
    observation, _ = conditioned.reset(seed=5)
    state, actions, is_over = None, [], False
    while not is_over:
        action, state = model.predict(observation, state)
        actions.append(action)
        observation, _, is_over, _, _ = conditioned.step(action)
    return actions


@pytest.mark.parametrize(
    ("precision", "memory"), [("fp32", "window"), ("fp32", "stream"), ("bf16", "window")]
)
def test_whole_episodes_without_this_package(
    precision: str, memory: Memory, tmp_path: Path
) -> None:
    model = fitted(choice_trajectories(20), memory=memory, precision=precision)
    exported = model.export(tmp_path / "policy.onnx")
    assert exported.max_error is not None
    assert exported.max_error < 1e-4
    env: Any = ChoiceEnv()
    expected = play_with_predict(env, model, 7.0)
    env.step = Mock(wraps=env.step)
    play(env, ServedPolicy(str(exported.path)), 7.0, seed=5)
    found = [call.args[0] for call in env.step.call_args_list]
    assert len(found) == 10
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_example_needs_neither_torch_nor_this_package(tmp_path: Path) -> None:
    data = random_trajectories(observation_shape=(4,), n_actions=2)
    tiny_model("CartPole-v1").fit(data, 2).export(tmp_path / "policy.onnx")
    code = """
import runpy, sys
sys.argv = ["serve_onnx.py", "policy.onnx", "--target", "20", "--episodes", "2", "--sample"]
runpy.run_path(SCRIPT, run_name="__main__")
print([name for name in ("torch", "sb3_dmamba", "stable_baselines3") if name in sys.modules])
"""
    code = code.replace("SCRIPT", repr(serve_onnx.__file__))
    said = run_python("-W", "error", "-c", code, cwd=tmp_path)
    title, *episodes, imported = said.splitlines()
    assert title == "CartPole-v1, window memory, asking for 20"
    assert [line.split(":")[0] for line in episodes] == ["episode 0", "episode 1"]
    assert imported == "[]"


def test_metadata(tmp_path: Path) -> None:
    model = tiny_model("CartPole-v1", memory="stream")
    data = random_trajectories(observation_shape=(4,), n_actions=2)
    exported = model.fit(data, 2).export(tmp_path / "policy.onnx")
    written = onnx.load(exported.path)
    about = json.loads({each.key: each.value for each in written.metadata_props}["sb3_dmamba"])
    assert about == exported.metadata
    expected: dict[str, Any] = {"memory": "stream", "env_id": "CartPole-v1", "dataset": "toy noise"}
    expected |= {"target_return": model.target_return, "clip_rewards": False, "frame_stack": None}
    expected |= {"action_space": {"type": "Discrete", "n": 2, "start": 0}}
    assert about.items() >= {**expected, "outputs": ["action", "logits"]}.items()
    assert about["state"]["layer0.scan"] == {"dtype": "float32", "shape": [32, 4]}
    assert set(about["versions"]) == {"sb3_dmamba", "torch"}
    assert {opset.domain for opset in written.opset_import} == {""}
    assert {node.domain for node in written.graph.node} == {""}
    shapes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in [*written.graph.input, *written.graph.output]
    }
    assert shapes["observation"] == ["n_envs", 4]
    assert shapes["return_to_go"] == shapes["action"] == ["n_envs"]
    assert shapes["logits"] == ["n_envs", 2]
    for name, rows in about["state"].items():
        assert shapes[f"state.{name}"] == shapes[f"next_state.{name}"] == ["n_envs", *rows["shape"]]


def test_exporting_prints_nothing_and_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = fitted(**SMALLEST)
    model.target_return = 12.5
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    for suffix in (".onnx", ".pt2"):
        exported = model.export(tmp_path / f"policy{suffix}")
        assert exported.metadata["target_return"] == 12.5
    for path in (Path(torch.__file__).parents[1], Path(__file__).parents[2]):
        assert str(path).encode() not in (tmp_path / "policy.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")
    for name, weight in model.policy.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0.0, atol=0.0)
    model.fit(n_steps=2)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFittedError):
        tiny_model().export(tmp_path / "policy.onnx")
    model = fitted(time_encoding="global")
    mistakes: list[tuple[str, Any, str]] = [
        ("policy.bin", None, "path"),
        ("policy.pt", None, "path"),  # TorchScript is no longer written
        ("policy.onnx", "stream", "memory"),
        ("policy.onnx", "forever", "memory"),
    ]
    for name, memory, setting in mistakes:
        with pytest.raises(ConfigError) as caught:
            model.export(tmp_path / name, memory=memory)
        assert caught.value.setting == setting
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError) as missing:
        model.export(tmp_path / "policy.onnx")
    assert missing.value.extra == "onnx"
    assert not list(tmp_path.iterdir())


def test_onnx_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()
    for package in ("onnxscript", "onnx_ir", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    exported = model.export(tmp_path / "policy.onnx")
    assert exported.max_error is None
    assert exported.path.stat().st_size > 10_000


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_graph_that_acts_otherwise_is_not_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = fitted(**SMALLEST), tmp_path / f"policy{suffix}"
    path.write_bytes(b"an older one")
    convert = exporting.FORMATS[suffix]

    def convert_another(graph: Any, metadata: dict[str, Any]) -> bytes:
        graph.model.head.projection.bias.data += 0.01
        return convert(graph, metadata)

    monkeypatch.setitem(exporting.FORMATS, suffix, convert_another)
    with pytest.raises(ExportError) as caught:
        model.export(path)
    assert caught.value.setting == "action"
    assert path.read_bytes() == b"an older one"
    if suffix == ".onnx":  # torch.export takes seconds
        model.export(path, verify=False)
        assert path.read_bytes() != b"an older one"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]
