"""``model.export``: whole episodes without this package, metadata and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces

from examples import serve_onnx
from examples.serve_onnx import ServedPolicy, play
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, ExportError, MissingDependencyError, NotFittedError
from sb3_dmamba.export import exporting
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories, random_trajectories

MEMORIES: tuple[Memory, ...] = get_args(Memory)
SMALLEST: dict[str, Any] = {
    "n_layers": 1,
    "channel_mixing": False,
}  # torch.export takes seconds a layer


class DriftEnv(gym.Env[np.ndarray, np.ndarray]):
    """Ten steps of a noisy point that actions push; the reward is how far it has come."""

    def __init__(self) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.n_steps = np.zeros(3, np.float32), 0
        return self.place, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        push = np.append(action, self.np_random.normal()).astype(np.float32)
        self.place = self.place + push
        return self.place, float(self.place.sum()), self.n_steps == 10, False, {}


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
    ("kind", "memory"),
    [
        *(("continuous", memory) for memory in MEMORIES),
        *(("discrete", memory) for memory in MEMORIES),
        ("bf16", "window"),
    ],
)
def test_whole_episodes_without_this_package(kind: str, memory: Memory, tmp_path: Path) -> None:
    is_discrete = kind == "discrete"
    settings = {"precision": "bf16"} if kind == "bf16" else {}
    data = choice_trajectories(20) if is_discrete else random_trajectories()
    model = fitted(data, memory=memory, **settings)
    exported = model.export(tmp_path / "policy.onnx")
    assert exported.max_error is not None
    assert exported.max_error < 1e-4
    env: Any = ChoiceEnv() if is_discrete else DriftEnv()
    expected = play_with_predict(env, model, 7.0)
    env.step = Mock(wraps=env.step)
    play(env, ServedPolicy(str(exported.path)), 7.0, seed=5)
    found = [call.args[0] for call in env.step.call_args_list]
    assert len(found) == 10
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_environments_of_different_ages_are_served_together(tmp_path: Path) -> None:
    model = fitted(memory="stream")
    path = str(model.export(tmp_path / "policy.onnx").path)
    together, alone = ServedPolicy(path, n_envs=2), ServedPolicy(path)
    rng = np.random.default_rng(0)
    for step in range(8):
        seen = rng.normal(size=(2, 3)).astype(np.float32)
        if step == 5:
            together.start(1)
            alone.start()
        actions = together.act(seen, [3.0, 4.0])
        if step >= 5:
            np.testing.assert_allclose(alone.act(seen[1:], [4.0]), actions[1:], atol=1e-6)


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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    title, *episodes, imported = done.stdout.splitlines()
    assert title == "CartPole-v1, window memory, asking for 20"
    assert [line.split(":")[0] for line in episodes] == ["episode 0", "episode 1"]
    assert imported == "[]"


@pytest.mark.parametrize("memory", MEMORIES)
def test_drawn_actions_are_remembered(memory: Memory, tmp_path: Path) -> None:
    model = fitted(choice_trajectories(20), memory=memory)
    served = ServedPolicy(str(model.export(tmp_path / "policy.onnx").path), n_envs=400, seed=0)
    seen = np.zeros((400, 2), np.float32)
    drawn = served.act(seen, np.full(400, 5.0), sample=True)
    assert set(drawn.tolist()) == {0, 1}
    share = torch.softmax(logits_of(model, seen[:1]), -1)[0, 1]
    assert drawn.mean() == pytest.approx(float(share), abs=0.1)
    assert served.state["state.action"].tolist() == drawn.tolist()


def logits_of(model: DecisionMamba, seen: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.policy.model(
            torch.as_tensor(seen)[:, None],
            torch.zeros(len(seen), 1, dtype=torch.int64),
            torch.full((len(seen), 1), 5.0),
            torch.zeros(len(seen), 1, dtype=torch.int64),
        )
    return logits[:, 0]


def test_metadata(tmp_path: Path) -> None:
    model = tiny_model("CartPole-v1", memory="stream")
    data = random_trajectories(observation_shape=(4,), n_actions=2)
    exported = model.fit(data, 2).export(tmp_path / "policy.onnx")
    written = onnx.load(exported.path)
    about = json.loads({each.key: each.value for each in written.metadata_props}["sb3_dmamba"])
    assert about == exported.metadata
    assert about["memory"] == "stream"
    assert about["env_id"] == "CartPole-v1"
    assert about["dataset"] == "toy noise"
    assert about["target_return"] == model.target_return
    assert about["clip_rewards"] is False
    assert about["action_space"] == {"type": "Discrete", "n": 2, "start": 0}
    assert about["outputs"] == ["action", "logits"]
    assert about["state"]["layer0.scan"] == {"dtype": "float32", "shape": [32, 4]}
    assert about["frame_stack"] is None
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


def test_the_file_has_the_target_that_was_set_and_no_path_of_the_machine(tmp_path: Path) -> None:
    model = fitted()
    model.target_return = 12.5
    exported = model.export(tmp_path / "policy.onnx")
    path = exported.path
    assert exported.metadata["target_return"] == 12.5
    assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_exporting_prints_nothing_and_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = fitted(**SMALLEST)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    for suffix in (".onnx", ".pt2"):
        model.export(tmp_path / f"policy{suffix}")
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
