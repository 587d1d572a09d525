"""``dmamba experiment --ray`` on a real Ray of two CPUs."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sb3_dmamba.cli import app
from sb3_dmamba.experiments.engines import _warn_if_no_node_has
from sb3_dmamba.experiments.grid import execute_run
from sb3_dmamba.experiments.runs import RunFolder
from tests.experiments.toys import save_data

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.timeout(2400),  # for a busy machine
]

TWO_CPUS = "import ray; ray.init(num_cpus=2, log_to_driver=False, logging_level='ERROR'); "
COMMAND = "from sb3_dmamba.cli import main; main()"
TINY = [
    "experiment", "mixers", "--variants", "mamba", "--evaluations", "4", "--device", "cpu",
    "--set", "hidden_size=8", "n_layers=1", "d_state=2", "context_length=3", "batch_size=4",
    "--updates", "3000", "--episodes", "1", "--targets", "5", "10",
]  # fmt: skip
DEADLINE = 1000.0


def wait_for(found: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    until = time.monotonic() + DEADLINE
    while not (result := found()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return result


def processes_of(folder: Path) -> dict[int, int]:
    """Return the processes that execute a run, and the parent of each, a worker of Ray."""
    command = ["ps", "-wweo", "pid=,ppid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    run = f"sb3_dmamba.experiments.grid {folder} "
    return {int(line.split()[0]): int(line.split()[1]) for line in lines if run in line}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """Start a sweep; return its process and what it prints."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log, token = tmp_path / f"log-{len(started)}.txt", tmp_path / "token"
        token.write_text(uuid.uuid4().hex)  # Ray would write one into the user's home
        own = {
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_worker_niceness": "0",  # a busy machine would starve the workers
            "RAY_raylet_start_wait_time_s": "300",
            "RAY_ADDRESS": "",
            "OMP_NUM_THREADS": "1",
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *TINY, *arguments, "--ray"],
                stdout=file,
                stderr=file,
                env={**os.environ, **own},
            )
        started.append(process)
        return process, log

    yield begin
    for process in started:
        process.terminate()
        process.wait(60)


def plan(out: Path, *arguments: str) -> list[RunFolder]:
    """Prepare the folders of the runs, and execute none."""
    script = str(out / "array.sh")
    result = CliRunner().invoke(app, [*TINY, "--output", str(out), *arguments, "--slurm", script])
    assert result.exit_code == 0, result.output
    folders = [RunFolder(path.parent.resolve()) for path in out.glob("cells/*/cell.json")]
    return sorted(folders, key=lambda folder: folder.read_run().seed)


@pytest.mark.slow
def test_what_is_killed_is_tried_again_and_what_fails_is_named(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = "--data", str(save_data(tmp_path / "data")), "--seeds", "0", "1", "2"
    fails, *others = plan(out, *arguments)
    fails.model.write_bytes(b"no model")
    process, log = start(TWO_CPUS + COMMAND, *arguments, "--output", str(out))
    kill: tuple[Any, Any] = dict.keys, dict.values  # the process of a run, a worker of Ray
    for folder, get in zip(others, kill, strict=True):
        wait_for(folder.progress.exists, process, log)
        (pid,) = get(processes_of(folder.path))
        os.kill(pid, signal.SIGKILL)
    assert "2 of 3 runs done" not in log.read_text()
    assert "data, mamba, seed 1: " in log.read_text()  # a line before the first run ends
    assert process.wait(DEADLINE) == 1, log.read_text()
    printed = log.read_text()
    assert "data, mamba, seed 0: failed: " in printed
    assert "ModelFileError" in printed
    assert [folder.is_done for folder in (fails, *others)] == [False, True, True]
    assert (out / "report.md").exists()
    for folder in others:
        alone = RunFolder(tmp_path / "alone" / folder.path.name)
        alone.path.mkdir(parents=True)
        alone.description.write_bytes(folder.description.read_bytes())
        execute_run(alone.path, "cpu")
        assert alone.result.read_bytes() == folder.result.read_bytes()


def test_sigterm_ends_the_driver_its_runs_and_ray(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = "--data", str(save_data(tmp_path / "data")), "--seeds", "0"
    (folder,) = plan(out, *arguments, "--updates", "1000000")
    process, log = start(COMMAND, *arguments, "--updates", "1000000", "--output", str(out))
    wait_for(folder.progress.exists, process, log)
    ((run, worker),) = processes_of(folder.path).items()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 128 + signal.SIGTERM, log.read_text()
    printed = log.read_text()
    assert "Stopped." in printed
    assert "***" not in printed, printed  # Ray's trace of its C++
    assert "Traceback" not in printed, printed
    for pid in (run, worker):
        until = time.monotonic() + DEADLINE
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_more_than_any_node_has_is_said() -> None:
    nodes = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}]
    _warn_if_no_node_has({"num_cpus": 4, "num_gpus": 1}, nodes)
    with pytest.warns(UserWarning, match="no node of Ray"):
        _warn_if_no_node_has({"num_cpus": 4, "num_gpus": 1}, [*nodes[:1], {"CPU": 8.0}])
