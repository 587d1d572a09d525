"""Saved models: round trips, damage, edits; and the container that holds them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from stable_baselines3 import PPO

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, ModelFileError
from sb3_dmamba.model_file import FORMAT_VERSION, ModelFile
from sb3_dmamba.tasks import ReferenceScores, Task
from tests.models import Recorder, differences, everything_in, tiny_model
from tests.toys import choice_trajectories, random_trajectories

DATA = choice_trajectories(50)


CASES: dict[str, tuple[Trajectories, dict[str, Any]]] = {
    "continuous": (random_trajectories(), {"memory": "stream"}),
    "image": (random_trajectories(observation_shape=(4, 36, 36), n_actions=3), {}),
    "attention": (random_trajectories(n_actions=4), {"mixer": "attention", "memory": "stream"}),
    "paper": (random_trajectories(), {"init": "paper", "channel_mixing": False}),
    "unnormalised": (random_trajectories(), {"normalize_observations": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_equal_after_reload(case: str, tmp_path: Path) -> None:
    data, settings = CASES[case]
    model = tiny_model(None, **settings).fit(data, 3)
    model.save(tmp_path / "model")
    loaded = DecisionMamba.load(tmp_path / "model")
    assert differences(everything_in(model), everything_in(loaded)) == []
    assert loaded.policy.memory == settings.get("memory", "window")
    states: list[Any] = [None, None]
    for step in range(8):
        shown = {
            "observation": data.observations[[step, step + 9]],
            "return_to_go": np.array([[5.0 - step], [1.0]], np.float32),
        }
        starts = np.array([False, step == 4])
        first, states[0] = model.predict(shown, states[0], starts)
        second, states[1] = loaded.predict(shown, states[1], starts)
        np.testing.assert_array_equal(first, second)


def test_everything_travels(tmp_path: Path) -> None:
    task = Task(
        name="toy", env_id="NotHere-v0", env_kwargs={"level": [1, 2]}, dataset="nowhere",
        target_returns=(2.0, 4.5), reference=ReferenceScores(0.0, 10.0, "by hand"),
        overrides={"n_layers": 1}, description="a toy", source={"env_id": "nowhere"},
    )  # fmt: skip
    model = tiny_model(task, dropout=0.25).fit(DATA, 5)
    model.target_return = 7.0
    model.save(tmp_path / "model")
    loaded = DecisionMamba.load(tmp_path / "model")
    for name in (
        *("config", "task", "target_return", "seed", "observation_space", "action_space"),
        *("num_timesteps", "_n_updates"),
    ):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.dataset.source == DATA.source
    assert loaded.dataset.returns.tolist() == DATA.returns.tolist()
    mean = loaded.policy.state_dict()["model.embedding.observation_encoder.mean"]
    np.testing.assert_allclose(mean, DATA.observations.mean(axis=0), rtol=1e-5)


def test_another_length_of_the_run_is_the_whole_run_s(tmp_path: Path) -> None:
    interrupted = tiny_model(n_updates=8)
    interrupted.fit(DATA, callback=Recorder(stop_at=3)).save(tmp_path / "interrupted")
    assert interrupted.fit().num_timesteps == 8
    interrupted.save(tmp_path / "finished")
    for name in ("interrupted", "finished"):
        loaded = DecisionMamba.load(tmp_path / name, n_updates=10)
        assert loaded.fit(DATA).num_timesteps == 10
    assert DecisionMamba.load(tmp_path / "finished").fit(DATA).num_timesteps == 16


def test_paths(tmp_path: Path) -> None:
    model = tiny_model().fit(DATA, 1)
    expected = everything_in(model)
    model.save(str(tmp_path / "plain"))
    model.save(tmp_path / "deep" / "down" / "zipped.zip")
    model.save(tmp_path / "model.v2")
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"plain.zip", "deep", "model.v2"}
    for source in (
        str(tmp_path / "plain"),
        tmp_path / "plain.zip",
        tmp_path / "deep" / "down" / "zipped",
        tmp_path / "model.v2",
        buffer,
    ):
        assert differences(expected, everything_in(DecisionMamba.load(source))) == []


def test_without_the_optimiser(tmp_path: Path) -> None:
    model = tiny_model().fit(DATA, 3)
    model.save(tmp_path / "whole")
    model.save(tmp_path / "light", exclude=["optimizer"])
    sizes = [(tmp_path / f"{name}.zip").stat().st_size for name in ("whole", "light")]
    assert sizes[1] < 0.5 * sizes[0]
    light = DecisionMamba.load(tmp_path / "light")
    changed = differences(everything_in(model), everything_in(light))
    assert changed
    assert all(name.startswith("moments") for name in changed)
    light.fit(DATA, 1)
    for exclude in (["policy"], "policy"):
        with pytest.raises(ConfigError) as refused:
            model.save(tmp_path / "light", exclude=exclude)
        assert (refused.value.setting, refused.value.value) == ("exclude", ["policy"])


@pytest.fixture(scope="module")
def saved() -> bytes:
    buffer = io.BytesIO()
    task = Task(name="toy", env_id="NotHere-v0", reference=ReferenceScores(0.0, 1.0, "by hand"))
    tiny_model(task, n_layers=1, time_encoding="timestep").fit(DATA, 2).save(buffer)
    return buffer.getvalue()


def rewrite(
    saved: bytes,
    header: Callable[[dict[str, Any]], Any] = lambda header: None,
    tensors: Callable[[str, dict[str, Any]], Any] = lambda group, tensors: None,
) -> io.BytesIO:
    """Change a model file as somebody who knows the format would."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "model.json":
                fields = json.loads(content)
                header(fields)
                content = json.dumps(fields).encode()
            elif name != "data":  # a copy of it for other tools
                group = load_tensors(content)
                if tensors(name.removesuffix(".safetensors"), group) == "drop":
                    continue
                content = dump_tensors(group)
            target.writestr(name, content)
    return buffer


def test_rewriting_alone_changes_nothing(saved: bytes) -> None:
    first, second = (DecisionMamba.load(each) for each in (io.BytesIO(saved), rewrite(saved)))
    assert differences(everything_in(first), everything_in(second)) == []


REMOVE = object()
EDITS: dict[str, list[Any]] = {
    "format_version": [99],
    "config": [None, [], REMOVE],
    "config.no_such_field": [1],
    "config.mixer": ["attention", "banana"],
    "config.hidden_size": [32, 10**9, -1, "16"],
    "config.n_layers": [10**9, 2],
    "config.d_state": [10**12],
    "config.max_timestep": [10**12],
    "config.return_scale": [float("nan")],
    "config.learning_rate": [float("inf")],
    "config.adam_betas": [[0.9], "ab"],
    "config.encoder": ["nature_cnn"],
    "task": [[], "toy", REMOVE],
    "task.name": [None, REMOVE],
    "task.env_id": [5],
    "task.surprise": [5],
    "task.target_returns": ["high", [None]],
    "task.reference.maximum": [-1.0, "x"],
    "task.overrides": [{"no_such_field": 1}],
    "task.env_kwargs": [5],
    "dataset": [None, REMOVE],
    "dataset.source": [5],
    "dataset.env_id": [5],
    "dataset.env_kwargs": [[1]],
    "observation_space": [None, {"type": "Discrete", "n": 3, "start": 0}],
    "observation_space.shape": [[3], [10**9]],
    "observation_space.low": [["0", "0", "0"], "nan"],
    "action_space.n": [3, 10**12, -3],
    "action_space": [
        REMOVE,
        {"type": "Dict"},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": "-inf", "high": "inf"},
    ],
    "target_return": [float("nan"), "high"],
    "seed": [-1, 1.5, True, float("inf"), REMOVE],
    "counters": [{}, 5, REMOVE],
    "counters.num_timesteps": [-1],
    "counters._n_updates": ["3"],
    "attributes": [[], {"verbose": -1}, {"tensorboard_log": 3}, {"_stats_window_size": 0}],
}


def test_an_edited_header(saved: bytes) -> None:
    accepted = []
    for place, value in ((place, value) for place, values in EDITS.items() for value in values):

        def edit(header: dict[str, Any], place: str = place, value: Any = value) -> None:
            *path, last = place.split(".")
            for name in path:
                header = header[name]
            header[last] = value
            if value is REMOVE:
                del header[last]

        try:
            DecisionMamba.load(rewrite(saved, edit))
        except ModelFileError:
            continue
        accepted.append((place, value))
    assert not accepted


def change_first(change: Callable[[Any], Any], group: str) -> Callable[[str, Any], None]:
    def apply(name: str, tensors: Any) -> None:
        if name == group:
            first = sorted(tensors)[0]
            tensors[first] = change(tensors[first])

    return apply


CHANGES: list[Callable[[str, Any], Any]] = [
    lambda group, tensors: "drop" if group == "policy" else None,
    lambda group, tensors: "drop" if group == "optimizer" else None,
    lambda group, tensors: "drop" if group == "dataset" else None,
    lambda group, tensors: tensors.clear() if group == "policy" else None,
    lambda group, tensors: tensors.clear() if group == "dataset" else None,
    lambda group, tensors: tensors.update(more=torch.zeros(1)) if group == "policy" else None,
    lambda group, tensors: tensors.popitem() if group == "policy" else None,
    lambda group, tensors: tensors.popitem() if group == "optimizer" else None,
    change_first(lambda tensor: tensor[..., None], "policy"),
    change_first(lambda tensor: tensor.double(), "policy"),
    change_first(lambda tensor: torch.zeros(7, 7), "optimizer"),
    change_first(lambda tensor: tensor * torch.nan, "dataset"),
    change_first(lambda tensor: tensor[None], "dataset"),
]


def test_changed_tensors(saved: bytes) -> None:
    for change in CHANGES:
        with pytest.raises(ModelFileError):
            DecisionMamba.load(rewrite(saved, tensors=change))


def test_a_model_of_stable_baselines3(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(ModelFileError, match="not an sb3_dmamba model file"):
        DecisionMamba.load(tmp_path / "ppo")
    model = tiny_model().fit(DATA, 1)
    before = everything_in(model)
    with pytest.raises(ModelFileError, match="not an sb3_dmamba model file"):
        model.set_parameters(tmp_path / "ppo")
    assert differences(before, everything_in(model)) == []


def test_parameters_of_another_model(saved: bytes) -> None:
    model, wider = (
        tiny_model(hidden_size=width, n_layers=1, time_encoding="timestep").fit(DATA, 1)
        for width in (16, 32)
    )
    before, parameters = everything_in(model), model.get_parameters()
    headless = {k: v for k, v in parameters["policy"].items() if "head" not in k}
    broken = rewrite(saved, tensors=change_first(lambda tensor: torch.zeros(7), "optimizer"))
    wrong: list[tuple[str, Any]] = [
        ("do not fit: .*, and should be", wider.get_parameters()),
        ("do not match", {**parameters, "critic": {}}),
        ("head.*is absent", {**parameters, "policy": headless}),
        ("optimiser", broken),
    ]
    for message, given in wrong:
        with pytest.raises((ConfigError, ModelFileError), match=message):
            model.set_parameters(given)
    with pytest.raises(ModelFileError, match="do not fit"):
        model.set_parameters({"policy": wider.get_parameters()["policy"]}, exact_match=False)
    with pytest.raises(ModelFileError, match="do not fit"):
        wider.set_parameters(io.BytesIO(saved))
    doubled = {name: tensor.double() for name, tensor in parameters["policy"].items()}
    model.set_parameters({"policy": {**doubled, "other": torch.ones(1)}}, exact_match=False)
    assert differences(before, everything_in(model)) == []


class Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (17,)


def test_a_pickle_in_the_file_is_not_executed(saved: bytes) -> None:
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb()}, buffer)
    bomb = buffer.getvalue()
    for name in ("policy.pth", "data", "pytorch_variables.pth", "model.pkl"):
        with zipfile.ZipFile(io.BytesIO(saved)) as source:
            members = {each: source.read(each) for each in source.namelist()}
        DecisionMamba.load(make_zip({**members, name: bomb}))
    for name in ("policy.safetensors", "model.json"):
        with pytest.raises(ModelFileError):
            DecisionMamba.load(make_zip({**members, name: bomb}))
    with pytest.raises(ModelFileError):
        ModelFile.read(io.BytesIO(bomb))  # torch's own files are zips, too


def test_spaces_with_odd_bounds_travel(tmp_path: Path) -> None:
    data = random_trajectories()
    low, high = np.array([-1.1, -3.0], np.float32), np.array([1.3, 1 / 3], np.float32)
    odd = spaces.Box(low, high)
    data = dataclasses.replace(data, actions=np.clip(data.actions, low, high), action_space=odd)
    tiny_model().fit(data, 1).save(tmp_path / "model")
    loaded = DecisionMamba.load(tmp_path / "model")
    assert loaded.action_space == odd
    for scale in (1e9, -1e9):  # far out, where the tanh is 1
        shown = {"observation": scale * np.ones((2, 3)), "return_to_go": np.full((2, 1), scale)}
        actions, _ = loaded.predict(shown)
        assert all(loaded.action_space.contains(action) for action in actions)


FILE = ModelFile(
    {"name": "small", "list": [1, 2.5, None]},
    {"one": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}, "none": {}},
)


def assert_is_the_file(read: ModelFile) -> None:
    assert read.header == {"format_version": FORMAT_VERSION, **FILE.header}
    assert read.tensors.keys() == {"one", "none"}
    assert read.tensors["none"] == {}
    for name, tensor in FILE.tensors["one"].items():
        assert torch.equal(read.tensors["one"][name], tensor)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.zip"
    FILE.write(path)
    assert_is_the_file(ModelFile.read(path))
    assert_is_the_file(ModelFile.read(str(path)))
    assert_is_the_file(ModelFile.read(path.with_suffix("")))
    assert [each.name for each in path.parent.iterdir()] == ["model.zip"]


def as_bytes() -> bytes:
    buffer = io.BytesIO()
    FILE.write(buffer)
    return buffer.getvalue()


def make_zip(members: dict[str, bytes | str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer


GOOD = json.dumps({"format_version": FORMAT_VERSION})


CONTENTS: list[dict[str, bytes | str]] = [
    {},
    {"data": "{}"},
    {"model.json": ""},
    {"model.json": "{"},
    {"model.json": b"\xff\xfe\x00"},
    {"model.json": "[" * 100_000},
    {"model.json": "[]"},
    {"model.json": "null"},
    {"model.json": GOOD, "one.safetensors": b""},
    {"model.json": GOOD, "one.safetensors": b"\x00" * 8},
    {"model.json": GOOD, "one.safetensors": b"\xff" * 64},
    {"model.json": GOOD, "one.safetensors": dump_tensors({"a": torch.zeros(9)})[:-4]},
    {"model.json": GOOD, "one.safetensors": b"\x02" + b"\x00" * 7 + b"[]"},
]


def test_other_content(tmp_path: Path) -> None:
    for members in CONTENTS:
        with pytest.raises(ModelFileError):
            ModelFile.read(make_zip(members))
    path = tmp_path / "model.zip"
    for content in (b"", b"no zip at all", b"PK\x05\x06" + b"\x00" * 18):
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as raised:
            ModelFile.read(path)
        assert raised.value.path == str(path)


def test_other_versions() -> None:
    for version in (0, -1, FORMAT_VERSION + 1, "1", 1.0, None, True, [1]):
        text = json.dumps({"format_version": version})
        with pytest.raises(ModelFileError) as raised:
            ModelFile.read(make_zip({"model.json": text}))
        assert (raised.value.setting, raised.value.value) == ("format_version", version)


def test_missing_file(tmp_path: Path) -> None:
    FILE.write(tmp_path / "other.zip")
    for path, message in (
        (tmp_path / "sub" / "absent", r"absent \(nor .*absent\.zip\)"),
        (tmp_path, r"try .*other\.zip$"),
        (tmp_path / "absent.zip", r"try .*other\.zip$"),
    ):
        with pytest.raises(ModelFileError, match=rf"no model file at .*{message}"):
            ModelFile.read(path)


def test_a_header_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    FILE.write(path)
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            ModelFile({"name": bad}).write(path)
    assert_is_the_file(ModelFile.read(path))
    assert [each.name for each in tmp_path.iterdir()] == ["model.zip"]
