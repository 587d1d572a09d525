"""One process's view of others, and two processes that train one model over Gloo.

Run as a program (``RANK=0 python -m tests.training.test_distributed FOLDER``), this is one of the
two: it plays every scenario, one after the other, and writes what came of it to the folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import ConsecutiveSampler, WindowSampler
from sb3_dmamba.errors import ConfigError, DecisionMambaError, DistributedError
from sb3_dmamba.training.distributed import Processes, join_processes, local_device
from tests.models import Recorder, differences, everything_in, tiny_model, use_memory
from tests.scripts import run_python
from tests.toys import random_trajectories

TIMEOUT = 240.0  # of a machine that is busy; it takes seconds
TINY = ["hidden_size=16", "n_layers=1", "context_length=4", "batch_size=8", "backend=reference"]
RANK = int(os.environ.get("RANK", "0"))
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DATA = random_trajectories(tuple(range(2, 40)))
N_UPDATES = 12
HALF = N_UPDATES // 2
SETTINGS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "attention": {"mixer": "attention"},
    "burn-in": {"burn_in": 4},
    "carried": {"carry_state": True},
    "bf16": {"precision": "bf16", "conditioning": "sequence"},
    "averaged": {"ema_decay": 0.9, "sampling": "balanced"},
    "one step": {"context_length": 1},
}


def launcher_variables(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}


def make_model(name: str = "mamba", **settings: Any) -> DecisionMamba:
    """A model without dropout, whose learning rate lets differences grow."""
    defaults = {"dropout": 0.0, "learning_rate": 1e-2, "backend": "reference"}
    return tiny_model(**{**defaults, **SETTINGS[name], **settings})


def train(model: DecisionMamba, n_updates: int = N_UPDATES) -> list[float]:
    """Train on, and return the loss of each update that a callback has seen."""
    recorder = Recorder()
    model.fit(DATA, n_updates, callback=recorder, log_interval=4)
    return recorder.losses


def add_up(model: DecisionMamba) -> float:
    return sum(float(each.detach().double().sum()) for each in model.policy.parameters())


# --- Scenarios of each of two processes ----------------------------------------------------------


def train_and_save(name: str, folder: Path) -> list[float]:
    """Train, with a checkpoint in the middle."""
    model, recorder = make_model(name), Recorder()
    checkpoints = CheckpointCallback(HALF, str(folder), name_prefix=f"{name}-{RANK}")
    model.fit(DATA, N_UPDATES, callback=[checkpoints, recorder])
    model.save(folder / f"{name}-end-{RANK}")
    return recorder.losses


def go_on(folder: Path) -> list[float]:
    """Go on from a checkpoint of a single process."""
    model = DecisionMamba.load(folder / "carried-single")
    losses = train(model, HALF)
    model.save(folder / f"carried-on-{RANK}")
    return losses


def log(folder: Path) -> list[str]:
    """Give every process a logger, a progress bar and TensorBoard; see what they write."""
    own = folder / f"log-{RANK}"
    model = make_model(tensorboard_log=str(own / "board"), verbose=1)
    model.fit(DATA, 2, progress_bar=True)
    model.set_logger(configure(str(own), ["csv"]))
    model.fit(DATA, 2)
    return sorted(str(path.name) for path in own.rglob("*") if path.stat().st_size)


def draw_seeds(folder: Path) -> list[Any]:
    """Name no seed: the processes must end up with one, and with the same weights."""
    model = make_model(seed=None).fit(DATA, 3)
    return [model.seed, add_up(model)]


def mix_up(folder: Path) -> float:
    """Start from other weights and moments in one process: rank 0's are taken."""
    model = make_model(ema_decay=0.9).fit(DATA, 3)
    if RANK == 1:
        for parameter in model.trained_policy.parameters():
            parameter.data.mul_(2.0)
            model.policy.optimizer.state[parameter]["exp_avg"].mul_(2.0)
        for average in model.policy.parameters():
            average.data.mul_(2.0)
    return add_up(model.fit(DATA, 3))


def drop_out(folder: Path) -> list[float]:
    """Train with dropout, whose masks are each process's own."""
    return train(make_model(dropout=0.5), 3)


def stop(folder: Path) -> int:
    """Stop in a callback of rank 0; the other one's would stop elsewhere."""
    model = make_model()
    model.fit(DATA, 50, callback=Recorder(stop_at=3 if RANK == 0 else 1))
    return model.num_timesteps


class Failing(BaseCallback):
    """Fails at the second update."""

    def _on_step(self) -> bool:
        if self.n_calls == 2:
            raise ZeroDivisionError("in a callback")
        return True


DIVERGING: dict[str, Any] = {"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_updates": 0}
SCENARIOS: dict[str, Any] = {
    **{each.__name__: each for each in (log, draw_seeds, mix_up, drop_out, stop)},
    "go_on": go_on,
    "split_badly": lambda _: make_model(batch_size=7).fit(DATA, 1),
    "record": lambda _: make_model(cuda_graph="on").fit(DATA, 1),
    "differ": lambda _: make_model(n_layers=1 + RANK).fit(DATA, 1),
    "differ_in_data": lambda _: make_model().fit(random_trajectories((30, 30), seed=RANK), 1),
    "diverge": lambda _: make_model(**DIVERGING).fit(DATA, 50),
    "fail": lambda _: make_model().fit(DATA, 50, callback=Failing()),  # rank 0 alone has callbacks
}


def attempt(scenario: Any, *arguments: Any) -> Any:
    """Return what a scenario returned or the error that it raised."""
    try:
        return scenario(*arguments)
    except (DecisionMambaError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {name: attempt(train_and_save, name, folder) for name in SETTINGS}
    results |= {name: attempt(scenario, folder) for name, scenario in SCENARIOS.items()}
    results["group"] = dist.is_initialized() and dist.get_world_size()
    (folder / f"results-{RANK}.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    "sampler", [WindowSampler, ConsecutiveSampler, partial(WindowSampler, balance=0.5)]
)
def test_rows_of_all_processes_make_the_batch(sampler: Callable[..., WindowSampler]) -> None:
    whole = sampler(DATA, 5, 8, 7)
    for size in (1, 2, 4):
        parts = [sampler(DATA, 5, 8, 7, rows=Processes(r, size).rows(8)) for r in range(size)]
        for update in (0, 1, 9):
            found = [part.sample(update) for part in parts]
            assert [len(batch) for batch in found] == [8 // size] * size
            for index, tensor in enumerate(whole.sample(update).inputs()):
                assert torch.equal(torch.cat([batch.inputs()[index] for batch in found]), tensor)
    for batch_size, size, advice in ((7, 2, "6 or 8"), (3, 4, "4")):
        with pytest.raises(ConfigError, match=rf"batch_size={batch_size} .*batch_size={advice},"):
            Processes(0, size).rows(batch_size)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="device='gpu'"):
        DecisionMamba("CartPole-v1", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="device='cuda' and torch sees no GPU"):
        assert DecisionMamba("CartPole-v1", device="cuda").device.type == "cpu"


def test_one_process_is_alone() -> None:
    with join_processes(CPU) as processes, processes.leader_first():
        assert (processes.rank, processes.size, processes.is_leader) == (0, 1, True)
        assert processes.from_leader("own") == "own"
        processes.check_alike({"anything": object()})
        assert processes.tell(7) == 7
        tensors = {"rows": torch.arange(3)}
        assert processes.join_rows(tensors) == tensors


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_the_variables_mean_nothing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in launcher_variables(1, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    model = make_model()
    memory = use_memory(model)
    model.fit(DATA, 1)
    assert len(memory.rows) == 1


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**launcher_variables(0, 1), "RANK": "first"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"RANK=first, WORLD_SIZE=2.*torchrun"):
        make_model().fit(DATA, 1)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [local_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    for name, value in launcher_variables(0, 1).items():
        monkeypatch.setenv(name, value)
    devices = [local_device(name) for name in ("auto", "cuda", "cpu", "cuda:3")]
    assert devices == ["cuda:0", "cuda:0", "cpu", "cuda:3"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 1 .*no GPU.*--nproc-per-node=1"):
        local_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("auto") == "auto"


# --- Two processes -------------------------------------------------------------------------------


def start(arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Start Python twice, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**own, **launcher_variables(rank, port)},
            cwd=folder,
            **pipes,
        )
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
    """Where the two processes have left what they saw and saved."""
    place = tmp_path_factory.mktemp("together")
    model = make_model("carried")
    train(model, HALF)
    model.save(place / "carried-single")
    processes = start(["-W", "error::FutureWarning", "-m", __name__, str(place)], place)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    (place / "output-1").write_text("".join(outputs[1]))
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


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-5, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_as_one(name: str, folder: Path, results: list[dict[str, Any]]) -> None:
    together, other = (DecisionMamba.load(folder / f"{name}-end-{rank}") for rank in (0, 1))
    assert differences(everything_in(together), everything_in(other)) == []
    model = make_model(name)
    losses = train(model)
    assert results[0]["group"] == 2
    if name == "bf16":  # Adam makes steps of one size of what are rounding errors there
        np.testing.assert_allclose(results[0][name], losses, rtol=1e-3)
        return
    np.testing.assert_allclose(results[0][name], losses, rtol=1e-5)
    assert_close(determined_in(together), determined_in(model))


def test_checkpoints_of_two_and_of_one_are_continued_by_the_other(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    for name in ("mamba", "carried", "averaged"):
        model = DecisionMamba.load(folder / f"{name}-0_{HALF}_steps")
        np.testing.assert_allclose(train(model, HALF), results[0][name][HALF:], rtol=1e-5)
        assert model.num_timesteps == N_UPDATES
    model = DecisionMamba.load(folder / "carried-single")
    np.testing.assert_allclose(results[0]["go_on"], train(model, HALF), rtol=1e-5)
    on = DecisionMamba.load(folder / "carried-on-0")
    assert_close(everything_in(on), everything_in(model))


def test_rank_0_alone_logs_calls_back_and_stops_both(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    assert {"progress.csv", "DecisionMamba_1"} <= set(results[0]["log"])
    assert not set(results[1]["log"]) & {"progress.csv", "DecisionMamba_1"}
    assert [results[1][name] for name in SETTINGS] == [[]] * len(SETTINGS)
    assert list(folder.glob("*-0_*_steps.zip"))
    assert not list(folder.glob("*-1_*_steps.zip"))
    said = (folder / "output-1").read_text()
    assert "updates/s" not in said
    assert "loss" not in said
    assert [each["stop"] for each in results] == [3, 3]


def test_processes_agree_on_rank_0_s_weights_and_moments(results: list[dict[str, Any]]) -> None:
    for name in ("draw_seeds", "mix_up"):
        assert results[0][name] == results[1][name]
    expected = add_up(make_model(ema_decay=0.9).fit(DATA, 3).fit(DATA, 3))
    assert results[0]["mix_up"] == pytest.approx(expected, rel=1e-5)


def test_dropout_is_each_process_own(results: list[dict[str, Any]]) -> None:
    losses = train(make_model(dropout=0.5), 3)
    np.testing.assert_allclose(results[0]["drop_out"], losses, rtol=0.5)
    assert not np.allclose(results[0]["drop_out"], losses, rtol=1e-3)


def test_mistakes_are_told_by_every_process(results: list[dict[str, Any]]) -> None:
    messages = {
        "split_badly": "ConfigError: batch_size=7 cannot be split.* 2 processes.*=6 or 8",
        "differ": "DistributedError: n_layers is 1 in process 0 and 2 in process 1",
        "differ_in_data": "DistributedError: the sum of the dataset's returns is .* in process 1",
        "record": 'BackendError: cuda_graph="on" .* 2 processes.*cuda_graph="auto"',
        "diverge": "DivergenceError: update 2 had loss nan",
    }
    wrong = {
        n: each[n] for each in results for n, m in messages.items() if not re.match(m, each[n])
    }
    assert wrong == {}
    assert results[0]["fail"] == "ZeroDivisionError: in a callback"
    lost = r"DistributedError: process 1 of 2 has lost contact(.|\n)*--resume"
    assert re.match(lost, results[1]["fail"])


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


def start_training(store: Path, folder: Path, *options: str) -> list[subprocess.Popen[str]]:
    """Start a long training in two processes; return them after the first checkpoint."""
    both = start(["-m", "sb3_dmamba", *train_command(store, 100_000), *options], folder)
    limit = time.monotonic() + TIMEOUT
    while not list(folder.rglob("model_*_steps.zip")) and both[0].poll() is None:
        if time.monotonic() > limit:
            finish(both)
        time.sleep(0.05)
    return both


def test_torchrun_trains_and_writes_once(store: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "sb3_dmamba", *train_command(store, 4), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = run_python(*command, env=environment, cwd=tmp_path, timeout=TIMEOUT)
    document = json.loads(said)  # one, of rank 0
    assert (document["updates"], document["processes"], document["seed"]) == (4, 2, 3)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["model.zip", "model_2_steps.zip", "model_4_steps.zip", "progress.csv"]
    assert DecisionMamba.load(tmp_path / document["model"]).num_timesteps == 4


def test_a_killed_process_ends_the_other(store: Path, tmp_path: Path) -> None:
    first, second = start_training(store, tmp_path)
    second.send_signal(signal.SIGKILL)
    (_, said), _ = finish([first, second])
    assert first.returncode == 1, said
    assert "DistributedError: process 0 of 2 has lost contact with another one" in said
    assert "dmamba train --resume" in said
    assert "Traceback" not in said
    latest = max(tmp_path.rglob("model_*_steps.zip"), key=lambda path: path.stat().st_mtime)
    assert DecisionMamba.load(latest).num_timesteps > 0


def test_ctrl_c_keeps_the_whole_batch_s_model_once(store: Path, tmp_path: Path) -> None:
    """Rank 0 saves, the carried state of the other included."""
    both = start_training(store, tmp_path, "--set", "carry_state=true")
    for process in both:
        process.send_signal(signal.SIGINT)
    said = [stderr for _, stderr in finish(both)]
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


if __name__ == "__main__":
    main()
