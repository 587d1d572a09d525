"""Files that version 0.1.0 wrote are opened, and what is in them acts as it did.

``make_files.py`` says how they were written. Actions agree to rounding (rtol 1e-5), because other
CPUs sum in another order; what is not computed agrees exactly.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.evaluation.report import EvaluationReport
from sb3_dmamba.experiments.catalogue import Experiment
from sb3_dmamba.experiments.engines import run_experiment
from sb3_dmamba.experiments.plan import Request
from sb3_dmamba.experiments.runs import RunFolder
from sb3_dmamba.networks import ActingState, DecisionMambaPolicy
from tests.compatibility.acting import (
    FILES,
    N_ENVS,
    Arrays,
    act,
    d3rlpy_window,
    draw_observations,
    returns_to_go,
    run_python,
    weights_of,
)
from tests.compatibility.make_files import (
    DISCRETE_POLICIES,
    EXPERIMENT,
    POLICIES,
    REQUEST,
    WINDOW_ONLY,
    WRITTEN,
    cartpole,
    frames,
    walks,
)

ARRAYS = ("observations", "actions", "rewards", "terminated", "truncated", "episode_offsets")
OTHERS = ("observation_space", "action_space", "env_id", "env_kwargs", "source", "frame_stack")
# Of weights after updates. Those of 0.1.0 with another backend, other threads or weights changed by
# their rounding are within 1e-7; with other moments in the optimiser they are 1e-3 away.
RTOL, ATOL = 1e-5, 2e-6


@pytest.fixture(scope="module")
def expected() -> Arrays:
    """What 0.1.0 computed."""
    with np.load(FILES / "expected.npz") as archive:
        return dict(archive)


def assert_close(found: Any, wanted: np.ndarray) -> None:
    """Compare actions: numbers of actions exactly, continuous ones to rounding."""
    found = np.asarray(found)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def assert_same_data(found: Trajectories, wanted: Trajectories) -> None:
    for name in ARRAYS:
        array = getattr(found, name)
        assert array.dtype == getattr(wanted, name).dtype, name
        np.testing.assert_array_equal(array, getattr(wanted, name), err_msg=name)
    for name in OTHERS:
        assert getattr(found, name) == getattr(wanted, name), name


def assert_weights(model: DecisionMamba, expected: Arrays, prefix: str) -> None:
    found = weights_of(model)
    wanted = {k.removeprefix(prefix): each for k, each in expected.items() if k.startswith(prefix)}
    assert found.keys() == wanted.keys()
    for name, weights in found.items():
        np.testing.assert_allclose(weights, wanted[name], RTOL, ATOL, err_msg=name)


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_a_model_acts_as_it_did(memory: str, expected: Arrays) -> None:
    model = DecisionMamba.load(FILES / "model.zip")
    observations = draw_observations(walks())
    actions, state = act(model.policy, memory, observations)
    assert_close(actions, expected[f"model/{memory}"])
    assert_close(
        act(model.policy, memory, observations, state)[0], expected[f"model/{memory}/later"]
    )


@pytest.mark.parametrize("name", ["model", "carried"])
def test_training_goes_on_from_a_model(name: str, expected: Arrays) -> None:
    model = DecisionMamba.load(FILES / f"{name}.zip")
    assert (model.num_timesteps, model.seed) == (3, {"model": 3, "carried": 4}[name])
    model.fit(walks(), 3)
    assert_weights(model, expected, f"{name}/continued/")


def test_an_interrupted_run_goes_on_from_its_checkpoint() -> None:
    model = DecisionMamba.load(FILES / "run/checkpoints/model_3_steps.zip")
    assert model.num_timesteps == 3
    model.fit(FILES / "stores/cartpole")
    final = DecisionMamba.load(FILES / "run/model.zip")
    assert model.num_timesteps == final.num_timesteps == 6
    assert model.task is not None
    assert model.task.name == "CartPole-v1"
    assert (model.config, model.dataset.source) == (final.config, final.dataset.source)
    assert_weights(model, weights_of(final), "")


def test_a_model_is_written_as_it_was(tmp_path: Path) -> None:
    """So that versions that are compatible today stay so in both directions."""
    for name in ("model.zip", "carried.zip", "run/model.zip", "run/checkpoints/model_3_steps.zip"):
        DecisionMamba.load(FILES / name).save(tmp_path / "again.zip")
        with zipfile.ZipFile(FILES / name) as old, zipfile.ZipFile(tmp_path / "again.zip") as new:
            assert new.namelist() == old.namelist()
            headers = [json.loads(archive.read("model.json")) for archive in (old, new)]
            for header in headers:
                del header["sb3_dmamba_version"], header["torch_version"]
            assert headers[0] == headers[1]
            for member in old.namelist():
                if member.endswith(".safetensors"):
                    assert new.read(member) == old.read(member), (name, member)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_acts_as_it_did(name: str, expected: Arrays) -> None:
    policy = DecisionMambaPolicy.load(FILES / f"policies/{name}.zip")
    data = cartpole() if name in DISCRETE_POLICIES else walks()
    for memory in ("window",) if name in WINDOW_ONLY else ("window", "stream"):
        actions, _ = act(policy, memory, draw_observations(data))
        assert_close(actions, expected[f"policy/{name}/{memory}"])


def act_with_a_graph(step: Any, state: Arrays) -> np.ndarray:
    """As :func:`act`, with the graph of an exported file."""
    actions = []
    observations = draw_observations(walks())
    for number, (seen, asked) in enumerate(zip(observations, returns_to_go(), strict=True)):
        if number == 4:
            for rows in state.values():
                rows[1] = 0
        action, state = step(seen, asked, state)
        actions.append(action)
    return np.stack(actions)


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_an_onnx_file_acts_as_it_did(memory: str, expected: Arrays) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime, which runs it, is missing")
    session = runtime.InferenceSession(FILES / f"{memory}.onnx", providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]

    def step(seen: np.ndarray, asked: np.ndarray, state: Arrays) -> tuple[np.ndarray, Arrays]:
        feed = {"observation": seen, "return_to_go": asked}
        feed |= {f"state.{name}": rows for name, rows in state.items()}
        found = dict(zip(outputs, session.run(None, feed), strict=True))
        return found["action"], {name: found[f"next_state.{name}"].copy() for name in state}

    assert_close(act_with_a_graph(step, zero_state(memory)), expected[f"model/{memory}"])


def test_an_exported_program_acts_as_it_did(expected: Arrays) -> None:
    if Version(torch.__version__) < Version("2.13"):
        pytest.skip("torch 2.13 wrote the file, and an earlier torch need not read it")
    content = gzip.decompress((FILES / "window.pt2.gz").read_bytes())
    about = {"sb3_dmamba.json": ""}
    program = torch.export.load(io.BytesIO(content), extra_files=about).module()
    metadata = json.loads(about["sb3_dmamba.json"])
    assert metadata["memory"] == "window"

    def step(seen: np.ndarray, asked: np.ndarray, state: Arrays) -> tuple[np.ndarray, Arrays]:
        rows = {name: torch.from_numpy(each) for name, each in state.items()}
        found, after = program(torch.from_numpy(seen), torch.from_numpy(asked), rows)
        return found["action"].numpy(), {k: v.numpy().copy() for k, v in after.items()}

    assert_close(act_with_a_graph(step, zero_state("window")), expected["model/window"])


def zero_state(memory: Any) -> Arrays:
    """The state of episodes that begin, by name."""
    policy = DecisionMamba.load(FILES / "model.zip").policy
    state = policy.initial_state(N_ENVS, memory)
    return {name: rows.numpy().copy() for name, rows in state.tensors.items()}


@pytest.mark.parametrize("make", [walks, cartpole, frames], ids=lambda make: make.__name__)
def test_a_store_holds_what_it_did(make: Any, tmp_path: Path) -> None:
    store = FILES / "stores" / make.__name__
    assert_same_data(Trajectories.open(store, verify=True), make())
    assert_same_data(load_trajectories(store), make())
    make().save(tmp_path / "again")
    for file in store.iterdir():
        again = (tmp_path / "again" / file.name).read_bytes()
        if file.suffix == ".json":
            header = json.loads(again)
            assert header.pop("crc32").keys() == {f.stem for f in store.glob("*.npy")}
            assert header == json.loads(file.read_bytes())
        else:
            assert again == file.read_bytes(), file.name


class _Elsewhere(pickle.Unpickler):
    """Opens a pickle whose store lies in another folder than it records."""

    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file)
        self.folder = folder
        self.recorded: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        self.recorded.append(f"{module}.{name}")
        if name in ("PosixPath", "WindowsPath"):
            return lambda *parts: self.folder / parts[-1]
        return super().find_class(module, name)


def test_a_pickle_of_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "walks"
    shutil.copytree(FILES / "stores/walks", folder)
    for file in folder.iterdir():
        os.utime(file, ns=(WRITTEN, WRITTEN))  # which the pickle records
    unpickler = _Elsewhere(io.BytesIO((FILES / "pickles/store.pickle").read_bytes()), folder)
    data = unpickler.load()
    assert "sb3_dmamba.data.mapping.pickling.MappedReference" in unpickler.recorded
    assert isinstance(data, Trajectories)
    assert isinstance(data.observations, np.memmap)
    assert_same_data(data, walks())
    again = pickle.loads(pickle.dumps(data))
    assert isinstance(again.observations, np.memmap)


def test_a_pickle_of_data_in_memory() -> None:
    data = pickle.loads((FILES / "pickles/memory.pickle").read_bytes())
    assert isinstance(data, Trajectories)
    assert_same_data(data, cartpole())
    assert data.returns.tolist() == cartpole().returns.tolist()
    episode = pickle.loads((FILES / "pickles/episode.pickle").read_bytes())
    np.testing.assert_array_equal(episode.actions, walks()[0].actions)
    assert (episode.terminated, episode.return_) == (True, walks()[0].return_)


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_a_pickle_of_a_state(memory: str, expected: Arrays) -> None:
    state = pickle.loads((FILES / f"pickles/state_{memory}.pickle").read_bytes())
    assert isinstance(state, ActingState)
    assert (state.memory, len(state)) == (memory, N_ENVS)
    model = DecisionMamba.load(FILES / "model.zip")
    actions, _ = act(model.policy, memory, draw_observations(walks()), state)
    assert_close(actions, expected[f"model/{memory}/later"])


@pytest.mark.parametrize(
    ("name", "env_id", "kwargs"),
    [
        ("tmaze", "sb3_dmamba:sb3_dmamba/TMaze-v0", {"length": 3}),
        ("pong", "sb3_dmamba:sb3_dmamba/Atari-v0", {"game": "Pong", "screen_size": 8}),
    ],
)
def test_a_minari_dataset_of_our_environments(
    name: str, env_id: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    # a copy: HDF5 may lock what it reads
    folder = shutil.copytree(FILES / f"minari/{name}-v0", tmp_path / f"{name}-v0")
    data = load_trajectories(folder)
    assert data.n_steps == 8
    assert data.env_id == env_id
    assert {**data.env_kwargs, **kwargs} == dict(data.env_kwargs)
    if name == "pong":
        pytest.importorskip("ale_py", reason="the Atari extra is not installed")
        pytest.importorskip("cv2", reason="the Atari extra is not installed")
    # by Gymnasium alone, in a process where nobody imports this package: the spec does
    code = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
import gymnasium
from gymnasium.envs.registration import EnvSpec
metadata = json.load(open({str(folder / "data/metadata.json")!r}))
assert "sb3_dmamba" not in sys.modules
env = gymnasium.make(EnvSpec.from_json(metadata["env_spec"]))
print(type(env.unwrapped).__name__, env.observation_space.shape, env.reset(seed=0)[0].shape)
"""
    printed = run_python("-c", code)
    shape = data.observation_space.shape
    kind = {"tmaze": "TMaze", "pong": "AtariGame"}[name]
    assert printed.strip() == f"{kind} {shape} {shape}"


def test_d3rlpy_files_act_as_they_did(expected: Arrays, tmp_path: Path) -> None:
    """Opened by d3rlpy, in a process where nobody imports this package: the file does."""
    pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    made = {"continuous": walks, "discrete": cartpole, "converted": walks}
    for name, make in made.items():
        window = vars(d3rlpy_window(make(), 4))
        given = {field: each for field, each in window.items() if each is not None}
        np.savez(tmp_path / f"{name}.npz", **given)
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
import d3rlpy, numpy as np
from d3rlpy.algos import TransformerInput
assert "sb3_dmamba" not in sys.modules
for name in {list(made)}:
    algo = d3rlpy.load_learnable({str(FILES / "d3rlpy")!r} + f"/{{name}}.d3")
    with np.load(f"{{name}}.npz") as window:
        np.save(f"{{name}}.npy", np.asarray(algo.predict(TransformerInput(**window))))
"""
    run_python("-c", code, cwd=tmp_path)
    for name in made:
        assert_close(np.load(tmp_path / f"{name}.npy"), expected[f"d3rlpy/{name}"])


def test_a_d3rlpy_file_becomes_a_model(expected: Arrays) -> None:
    d3rlpy = pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    from sb3_dmamba.d3rlpy import to_sb3

    ours = to_sb3(d3rlpy.load_learnable(FILES / "d3rlpy/converted.d3"))
    actions, _ = act(ours.policy, "window", draw_observations(walks()))
    assert_close(actions, expected["model/window"])


def test_d3rlpy_weights_alone(expected: Arrays, tmp_path: Path) -> None:
    d3rlpy = pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    (tmp_path / "weights.pt").write_bytes(
        gzip.decompress((FILES / "d3rlpy/continuous.pt.gz").read_bytes())
    )
    algo: Any = d3rlpy.load_learnable(FILES / "d3rlpy/continuous.d3")
    fresh = algo.config.create()
    fresh.create_impl((3,), 2)
    fresh.load_model(tmp_path / "weights.pt")
    assert_close(fresh.predict(d3rlpy_window(walks(), 4)), expected["d3rlpy/continuous"])


(CELL,) = (FILES / "cells").iterdir()


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.json")}


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    shutil.copytree(FILES / "cells", cells)
    experiment: Experiment = EXPERIMENT
    request = Request(cells=cells, data=(str(FILES / "stores/cartpole"),), **REQUEST)
    finished = run_experiment(experiment, request, tmp_path / "report", "-")
    assert finished.n_runs == 1
    assert [each.name for each in cells.iterdir()] == [CELL.name]
    before, after = read_all(CELL), read_all(cells / CELL.name)
    for written in (before, after):  # says where the data lies now
        del written["cell.json"]
    assert after == before
    assert not (cells / CELL.name / "log.txt").exists()  # no process ran


def test_the_result_of_a_training() -> None:
    folder = RunFolder(CELL)
    assert folder.is_done
    assert folder.read_run().key == CELL.name
    fields = json.loads((CELL / "result.json").read_text())
    result = folder.read_result()
    assert (result.n_parameters, result.last_update) == (fields["n_parameters"], 20)
    assert [list(each) for each in result.losses] == fields["losses"]
    for read, written in zip(result.evaluations, fields["evaluations"], strict=True):
        assert read.to_dict() == written


def test_a_result_is_gathered_again_from_its_evaluations(tmp_path: Path) -> None:
    """By the command that SLURM scripts of 0.1.0 hold."""
    folder = shutil.copytree(CELL, tmp_path / CELL.name)
    (folder / "result.json").unlink()
    run_python("-m", "sb3_dmamba.experiments.grid", str(folder), "--device", "cpu")
    gathered, before = (json.loads((each / "result.json").read_text()) for each in (folder, CELL))
    assert gathered == {**before, "return_importance": None}  # whose data are not here


def test_a_report_of_an_evaluation() -> None:
    path = FILES / "evaluation.json"
    report = EvaluationReport.from_json(path)
    before, after = json.loads(path.read_text()), json.loads(report.to_json())
    intervals = {"ci_low", "ci_high", "standard_error"}  # computed anew
    for old, new in zip(before.pop("results"), after.pop("results"), strict=True):
        assert {k: v for k, v in new.items() if k not in intervals} == {
            k: v for k, v in old.items() if k not in intervals
        }
        assert new.keys() == old.keys()
    assert after == before
