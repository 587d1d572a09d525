"""``dmamba experiment``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sb3_dmamba.cli import app
from sb3_dmamba.cli.experiment import _reproduce
from sb3_dmamba.experiments import engines as room
from tests.experiments.toys import save_data

TINY = [
    "--set", "hidden_size=8", "n_layers=1", "d_state=2", "context_length=3", "batch_size=4",
    "--updates", "30", "--episodes", "2", "--targets", "5", "10",
]  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["experiment", *arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run nothing, and note what would be run."""
    found: dict[str, Any] = {}

    def note(*arguments: Any) -> room.Finished:
        names = ("experiment", "request", "out", "command", "engine", "slurm", "console")
        found.update(zip(names, arguments, strict=True))
        return room.Finished((), 3)

    monkeypatch.setattr(room, "run_experiment", note)
    return found


def test_without_a_name_it_lists_them() -> None:
    result = invoke("--json")
    assert result.exit_code == 0
    listed = json.loads(result.stdout)
    assert [each["name"] for each in listed][:2] == ["mixers", "channel-mixing"]
    assert all(each["question"].rstrip().endswith((".", "?")) for each in listed)
    assert "context-length" in invoke().stdout


def test_options_take_several_values_at_once(asked: dict[str, Any]) -> None:
    result = invoke(
        *("mixers", "--seeds", "3", "4", "--data", "hopper", "pendulum", "--targets", "-200"),
        "1e3",
        *("--set", "dropout=0.3", "n_layers=2", "--memory", "window", "stream", "--seeds", "5"),
        *("--jobs", "2", "--variants", "mamba", "--output", "here", "--updates", "9"),
    )
    assert result.exit_code == 0, result.output
    request, engine = asked["request"], asked["engine"]
    assert request.seeds == (3, 4, 5)
    assert request.data == ("hopper", "pendulum")
    assert request.target_returns == (-200.0, 1000.0)
    assert request.settings == {"dropout": 0.3, "n_layers": 2}
    assert request.memories == ("window", "stream")
    assert request.variants == ("mamba",)
    assert request.n_updates == 9
    assert (engine.kind, engine.jobs) == ("local", 2)
    assert (asked["out"], request.cells) == (Path("here"), Path("here/cells"))
    assert asked["slurm"] is None


def test_a_budget_of_processor_time(asked: dict[str, Any]) -> None:
    assert invoke("mixers", "--processor-seconds", "2.5").exit_code == 0
    assert asked["request"].processor_seconds == 2.5


def test_engines(asked: dict[str, Any]) -> None:
    assert invoke("mixers", "--ray", "--threads", "2", "--device", "cpu").exit_code == 0
    assert asked["engine"] == type(asked["engine"])("ray", 1, 2, "cpu")
    assert invoke("mixers", "--slurm", "x.sh", "--cells", "shared").exit_code == 0
    assert (asked["slurm"], asked["request"].cells) == (Path("x.sh"), Path("shared"))
    assert invoke("mixers", "--slurm", "x.sh", "--ray").exit_code == 2


def test_mistakes_are_said_in_a_line(tmp_path: Path) -> None:
    mistakes = {
        "did you mean 'mixers'": ["mixer"],
        "hidden_size": ["mixers", "--set", "hiden_size=3"],
        "--updates": ["mixers", "--set", "n_updates=3"],
        "no/such/folder": ["mixers", "--data", "no/such/folder/at-all"],
        "leave --updates out": ["efficiency", "--updates", "3"],
        "leave --processor-seconds out": ["efficiency", "--processor-seconds", "3"],
    }
    for message, arguments in mistakes.items():
        result = invoke(*arguments, "--out", str(tmp_path))
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


def test_the_command_of_a_report_is_what_decides_its_numbers() -> None:
    expected = "dmamba experiment mixers --data hopper --seeds 0 1"
    for output in ("--out x", "--output x", "--out=x", "--output=x"):
        arguments = f"experiment mixers --data hopper --jobs 2 {output} --cells=y --seeds 0 1 --ray"
        assert _reproduce(arguments.split()) == expected


def start(out: Path, data: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a sweep of two trainings in a process group of its own."""
    command = [
        *(sys.executable, "-c", "from sb3_dmamba.cli import main; main()", "experiment", "mixers"),
        *("--variants", "mamba", "--data", str(data), "--out", str(out), *TINY),
        *("--seeds", "0", "1", "--evaluations", "2", "--device", "cpu"),
    ]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def tables(out: Path) -> dict[str, bytes]:
    """Return everything in a report but what the machine was and took."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    del files["machine.json"]
    files["report.md"] = files["report.md"].split(b"## Machine and time")[0]
    return files


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_restarted_gives_the_same_bytes(tmp_path: Path) -> None:
    data, log = save_data(tmp_path / "data"), tmp_path / "log.txt"
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, data, log).wait(280) == 0, log.read_text()
    for reached in ("*/model.zip", "*/result.json"):  # once in a training, once between two
        process = start(killed, data, log)
        while not list((killed / "cells").glob(reached)) and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was through before it could be killed"
    assert not (killed / "report.md").exists()
    assert start(killed, data, log).wait(280) == 0, log.read_text()
    assert tables(killed) == tables(undisturbed)
    assert set(tables(killed)) >= {"report.md", "results.csv", "losses.csv", "settings.json"}
