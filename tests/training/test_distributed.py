"""One process's view of others, and two processes that train one model over Gloo."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import ConsecutiveSampler, WindowSampler
from sb3_dmamba.errors import ConfigError, DistributedError
from sb3_dmamba.training.distributed import Processes, join_processes, local_device
from tests.models import differences, everything_in, use_memory
from tests.toys import random_trajectories
from tests.training import distributed_worker as worker

TIMEOUT = 240.0  # of a machine that is busy; it takes seconds
TINY = ["hidden_size=16", "n_layers=1", "context_length=4", "batch_size=8", "backend=reference"]
HALF = worker.N_UPDATES // 2


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sampler", [WindowSampler, ConsecutiveSampler])
def test_rows_of_all_processes_make_the_batch(size: int, sampler: type[WindowSampler]) -> None:
    whole = sampler(worker.DATA, 5, 8, 7)
    parts = [sampler(worker.DATA, 5, 8, 7, rows=Processes(r, size).rows(8)) for r in range(size)]
    for update in (0, 1, 9):
        found = [part.sample(update) for part in parts]
        assert [len(batch) for batch in found] == [8 // size] * size
        for index, tensor in enumerate(whole.sample(update).inputs()):
            assert torch.equal(torch.cat([batch.inputs()[index] for batch in found]), tensor)


@pytest.mark.parametrize(("batch_size", "size", "advice"), [(7, 2, "6 or 8"), (3, 4, "4")])
def test_uneven_rows_are_refused(batch_size: int, size: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size={batch_size} .*batch_size={advice},"):
        Processes(0, size).rows(batch_size)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="device='gpu'"):
        DecisionMamba("CartPole-v1", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="device='cuda' and torch sees no GPU"):
        assert DecisionMamba("CartPole-v1", device="cuda").device.type == "cpu"


def test_one_process_is_alone() -> None:
    with join_processes(worker.CPU) as processes, processes.leader_first():
        assert (processes.rank, processes.size, processes.is_leader) == (0, 1, True)
        assert processes.from_leader("own") == "own"
        processes.check_alike({"anything": object()})
        assert processes.tell(7) == 7
        tensors = {"rows": torch.arange(3)}
        assert processes.join_rows(tensors) == tensors


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_the_variables_mean_nothing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in worker.environment(1, 1).items():
        if name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    model = worker.make_model()
    memory = use_memory(model)
    model.fit(worker.DATA, 1)
    assert len(memory.rows) == 1


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**worker.environment(0, 1), "RANK": "first"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"RANK=first, WORLD_SIZE=2.*torchrun"):
        worker.make_model().fit(worker.DATA, 1)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [local_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    for name, value in worker.environment(0, 1).items():
        monkeypatch.setenv(name, value)
    devices = [local_device(name) for name in ("auto", "cuda", "cpu", "cuda:3")]
    assert devices == ["cuda:0", "cuda:0", "cpu", "cuda:3"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 1 .*no GPU.*--nproc-per-node=1"):
        local_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("auto") == "auto"


# --- Two processes -------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Start Python twice, as torchrun would."""
    port = free_port()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *arguments]
    return [
        subprocess.Popen(command, env=worker.environment(rank, port), cwd=folder, **pipes)
        for rank in (0, 1)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Return each one's stdout and stderr, and leave none behind."""
    try:
        return [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes of ``distributed_worker`` have left what they saw and saved."""
    place = tmp_path_factory.mktemp("together")
    model = worker.make_model("carried")
    worker.train(model, HALF)
    model.save(place / "carried-single")
    module = ["-W", "error::FutureWarning", "-m", worker.__name__]
    processes = start([*module, str(place)], place)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    (place / "stderr-1").write_text(outputs[1][1])
    (place / "stdout-1").write_text(outputs[1][0])
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    """What each process saw."""
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def determined_in(model: DecisionMamba) -> dict[str, torch.Tensor]:
    """All that training changes, but for the key biases of attention.

    A softmax is invariant to the key bias, so its gradient is zero in exact arithmetic. Adam makes
    steps of the learning rate's size of the rounding errors that are left, which differ from one
    CPU's kernels to another's.
    """
    values = everything_in(model)
    for name, tensor in values.items():
        if model.config.mixer == "attention" and name.endswith("mixer.in_proj.bias"):
            query, _, value = tensor.chunk(3)  # as AttentionMixer.forward splits its projection
            values[name] = torch.cat([query, value])
    return values


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_two_processes_train_as_one(name: str, folder: Path, results: list[dict[str, Any]]) -> None:
    model = worker.make_model(name)
    losses = worker.train(model)
    assert results[0]["group"] == 2
    if name == "bf16":  # Adam makes steps of one size of what are rounding errors there
        np.testing.assert_allclose(results[0][name], losses, rtol=1e-3)
        return
    np.testing.assert_allclose(results[0][name], losses, rtol=1e-5)
    together = DecisionMamba.load(folder / f"{name}-end-0")
    expected, found = determined_in(model), determined_in(together)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-5, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_every_process_ends_with_the_same_model(name: str, folder: Path) -> None:
    models = [DecisionMamba.load(folder / f"{name}-end-{rank}") for rank in (0, 1)]
    assert differences(*(everything_in(model) for model in models)) == []


@pytest.mark.parametrize("name", ["mamba", "carried"])
def test_a_checkpoint_of_two_is_continued_by_one(
    name: str, folder: Path, results: list[dict[str, Any]]
) -> None:
    model = DecisionMamba.load(folder / f"{name}-0_{HALF}_steps")
    losses = worker.train(model, HALF)
    np.testing.assert_allclose(losses, results[0][name][HALF:], rtol=1e-5)
    assert model.num_timesteps == worker.N_UPDATES


def test_a_checkpoint_of_one_is_continued_by_two(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    model = DecisionMamba.load(folder / "carried-single")
    losses = worker.train(model, HALF)
    np.testing.assert_allclose(results[0]["go_on"], losses, rtol=1e-5)
    on = everything_in(DecisionMamba.load(folder / "carried-on-0"))
    for key, tensor in everything_in(model).items():
        torch.testing.assert_close(on[key], tensor, rtol=2e-5, atol=2e-5, msg=key)


def test_the_first_process_alone_logs_and_calls_back(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    assert {"progress.csv", "DecisionMamba_1"} <= set(results[0]["log"])
    assert not set(results[1]["log"]) & {"progress.csv", "DecisionMamba_1"}
    assert [results[1][name] for name in worker.SETTINGS] == [[]] * len(worker.SETTINGS)
    assert list(folder.glob("*-0_*_steps.zip"))
    assert not list(folder.glob("*-1_*_steps.zip"))
    assert "updates/s" not in (folder / "stderr-1").read_text()
    assert "loss" not in (folder / "stdout-1").read_text()


def test_a_callback_of_the_first_stops_both(results: list[dict[str, Any]]) -> None:
    assert [each["stop"] for each in results] == [3, 3]


@pytest.mark.parametrize("name", ["draw_seeds", "mix_up", "come_first"])
def test_processes_agree(name: str, results: list[dict[str, Any]]) -> None:
    assert results[0][name] == results[1][name]


def test_weights_and_moments_are_the_first_ones(results: list[dict[str, Any]]) -> None:
    model = worker.make_model()
    model.fit(worker.DATA, 3).fit(worker.DATA, 3)
    expected = torch.cat([p.detach().flatten() for p in model.policy.parameters()]).sum()
    assert results[0]["mix_up"] == pytest.approx(float(expected), rel=1e-5)


def test_dropout_is_each_process_own(results: list[dict[str, Any]]) -> None:
    losses = worker.train(worker.make_model(dropout=0.5), 3)
    np.testing.assert_allclose(results[0]["drop_out"], losses, rtol=0.5)
    assert not np.allclose(results[0]["drop_out"], losses, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("split_badly", "ConfigError: batch_size=7 cannot be split.* 2 processes.*=6 or 8"),
        ("differ", "DistributedError: n_layers is 1 in process 0 and 2 in process 1"),
        ("differ_in_data", "DistributedError: the sum of the dataset's returns is .* in process 1"),
        ("record", 'BackendError: cuda_graph="on" .* 2 processes.*cuda_graph="auto"'),
        ("diverge", "DivergenceError: update 2 had loss nan"),
    ],
)
def test_mistakes_are_told_by_every_process(
    name: str, message: str, results: list[dict[str, Any]]
) -> None:
    for each in results:
        assert re_match(message, each[name])


def re_match(pattern: str, text: Any) -> bool:
    return isinstance(text, str) and re.match(pattern, text) is not None


def test_a_failure_in_one_process_wakes_the_other(results: list[dict[str, Any]]) -> None:
    assert results[0]["fail"] == "ZeroDivisionError: in a callback"
    assert re_match("DistributedError: process 1 of 2 has lost contact", results[1]["fail"])
    assert "--resume" in results[1]["fail"]


# --- The command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset for CartPole."""
    place = tmp_path_factory.mktemp("data") / "store"
    random_trajectories((20, 30), (4,), n_actions=2).save(place)
    return place


def train_command(store: Path, updates: int) -> list[str]:
    settings = [part for setting in TINY for part in ("--set", setting)]
    training = ["--updates", str(updates), "--seed", "3", "--checkpoint-every", "2"]
    return ["train", "CartPole-v1", "--dataset", str(store), *settings, *training]


def test_torchrun_trains_and_writes_once(store: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "sb3_dmamba", *train_command(store, 4), "--json"]
    finished = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)  # one, of the first process
    assert (document["updates"], document["processes"], document["seed"]) == (4, 2, 3)
    assert finished.stderr.count("wrote ") == 1
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["model.zip", "model_2_steps.zip", "model_4_steps.zip", "progress.csv"]
    assert DecisionMamba.load(tmp_path / document["model"]).num_timesteps == 4


def test_a_killed_process_ends_the_other(store: Path, tmp_path: Path) -> None:
    first, second = start(["-m", "sb3_dmamba", *train_command(store, 100_000)], tmp_path)
    try:
        limit = time.monotonic() + TIMEOUT
        while not list(tmp_path.rglob("model_*_steps.zip")) and first.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        _, said = first.communicate(timeout=TIMEOUT)
        assert time.monotonic() - killed_at < 60.0
    finally:
        finish([first, second])
    assert first.returncode == 1, said
    assert "DistributedError: process 0 of 2 has lost contact with another one" in said
    assert "dmamba train --resume" in said
    assert "Traceback" not in said
    latest = max(tmp_path.rglob("model_*_steps.zip"), key=lambda path: path.stat().st_mtime)
    assert DecisionMamba.load(latest).num_timesteps > 0


def test_ctrl_c_keeps_the_whole_batch_s_model_once(store: Path, tmp_path: Path) -> None:
    """The first process saves, the carried state of the other included."""
    command = [*train_command(store, 100_000), "--set", "carry_state=true"]
    both = start(["-m", "sb3_dmamba", *command], tmp_path)
    try:
        limit = time.monotonic() + TIMEOUT
        while not list(tmp_path.rglob("model_*_steps.zip")) and both[0].poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.05)
        for process in both:
            process.send_signal(signal.SIGINT)
        said = [process.communicate(timeout=TIMEOUT)[1] for process in both]
    finally:
        finish(both)
    assert [process.returncode for process in both] == [130, 130], said
    assert ("Kept" in said[0], "Kept" in said[1]) == (True, False)
    assert "DistributedError" not in "".join(said)
    (kept,) = re.findall(r"Continue with: dmamba train --resume (\S+)", said[0])
    model = DecisionMamba.load(tmp_path / kept)
    assert f"{model.num_timesteps:,} of 100,000 updates" in said[0]
    assert model._updater is not None
    carried = model._updater.carried.state()
    assert carried
    assert {len(rows) for rows in carried.values()} == {8}  # of the whole batch
