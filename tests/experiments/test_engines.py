"""Engines: processes, Ray, SLURM. The runs themselves are stand-ins here."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sb3_dmamba.errors import ConfigError, ExperimentError, MissingDependencyError
from sb3_dmamba.experiments import engines
from sb3_dmamba.experiments.engines import Engine, execute_runs, raise_failures, write_slurm_script
from sb3_dmamba.experiments.grid import main
from sb3_dmamba.experiments.runs import RunFolder, write_json
from tests.experiments.toys import toy_plan

DONE = "import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'result.json').write_text('{}')"
KILLED = "import os; os.kill(os.getpid(), 9)"
FAILS = "import sys; print('a notice', file=sys.stderr); sys.exit('DatasetError: no such data')"


@pytest.fixture
def folders(tmp_path: Path) -> list[RunFolder]:
    return [planned.folder for planned in toy_plan(tmp_path, seeds=(0, 1)).runs]


def stand_in(
    monkeypatch: pytest.MonkeyPatch, code: Callable[[Path], str]
) -> list[tuple[Path, str, int]]:
    """Run some code instead of a run; return what was asked for."""
    asked: list[tuple[Path, str, int]] = []

    def command(path: Path, device: str, threads: int) -> list[str]:
        asked.append((path, device, threads))
        return [sys.executable, "-c", code(path), str(path)]

    monkeypatch.setattr(engines, "run_command", command)
    return asked


def test_every_run_runs_once(folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, lambda _: DONE)
    folders[0].result.write_text("{}")
    assert execute_runs(folders, Engine(jobs=2, threads=3, device="cpu")) == {}
    assert sorted(asked) == sorted((each.path, "cpu", 3) for each in folders[1:])
    assert execute_runs(folders, Engine()) == {}
    assert len(asked) == 3


def test_a_worker_that_dies_names_its_run_and_takes_no_other_with_it(
    folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {folders[1].path: KILLED, folders[2].path: FAILS}
    stand_in(monkeypatch, lambda path: codes.get(path, DONE))
    failures = execute_runs(folders, Engine(jobs=2))
    assert [each.is_done for each in folders] == [True, False, False, True]
    assert set(failures) == {"data, mamba, seed 1", "data, attention, seed 0"}
    assert "killed by signal 9" in failures["data, mamba, seed 1"]
    assert "status 1: DatasetError: no such data" in failures["data, attention, seed 0"]
    assert str(folders[2].log) in failures["data, attention, seed 0"]
    with pytest.raises(ExperimentError, match=r"2 runs failed(.|\n)*data, mamba, seed 1"):
        raise_failures(failures)


def test_an_interrupt_ends_every_process(
    folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    stand_in(monkeypatch, lambda path: DONE if path == folders[0].path else code)

    def interrupt(*_: Any) -> None:
        while not (folders[1].log.exists() and folders[1].log.read_text().strip()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engines.execute_locally(folders, Engine(jobs=2), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(folders[1].log.read_text()), 0)


def test_an_engines_counts_are_positive_integers() -> None:
    for counts in ({"jobs": 0}, {"threads": 0}, {"jobs": 1.5}):
        with pytest.raises(ConfigError) as caught:
            Engine(**counts)
        assert {caught.value.setting: caught.value.value} == counts
    engine = Engine(jobs=np.int64(2), threads=np.uint8(3))  # type: ignore[arg-type]
    assert (type(engine.jobs), type(engine.threads)) == (int, int)


def test_progress_shows_runs_and_their_updates(
    folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"updates": 7, "total": 20, "phase": "evaluating (window)", "time": time.time()}
    write_json(folders[1].progress, running)
    stand_in(monkeypatch, lambda _: "import time; time.sleep(0.7)")
    console = Console(record=True, width=120, force_terminal=True, file=io.StringIO())
    execute_runs(folders[:2], Engine(jobs=2), console)
    text = console.export_text()
    assert "runs" in text
    assert "data, mamba, seed 1" in text
    assert "7/20" in text
    assert "evaluating (window)" in text


def test_progress_in_a_log_is_lines(
    folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"updates": 7, "total": 20, "phase": "training", "time": time.time()}
    write_json(folders[1].progress, running)
    codes = {folders[1].path: "import time; time.sleep(1.2);" + DONE, folders[2].path: FAILS}
    stand_in(monkeypatch, lambda path: codes[path])
    folders[0].result.write_text("{}")
    console = Console(width=20, file=io.StringIO())
    execute_runs(folders[:3], Engine(jobs=1), console)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0].startswith("3 runs, 1 of them done before")
    assert said[1] == "data, mamba, seed 1: 7 of 20 updates, training"  # once a minute
    assert said[2] == "data, mamba, seed 1: done (2 of 3 runs done)"
    assert said[3].startswith("data, attention, seed 0: failed: its process ended with status 1")
    assert len(said) == 4


def test_the_command_of_a_run_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *arguments = engines.run_command(tmp_path / "none", "cpu", 1)
    assert module == "sb3_dmamba.experiments.grid"
    assert main(arguments) == 1
    assert f"ExperimentError: there is no run at {tmp_path / 'none'}" in capsys.readouterr().err


def test_without_ray_the_error_says_how_to_get_it(
    folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"sb3-dmamba\[ray\]"):
        execute_runs(folders, Engine("ray"))


def test_a_slurm_script_executes_one_run_a_task(
    folders: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engines, "run_command", lambda path, device, threads: ["echo", str(path), device]
    )
    folders[0].result.write_text("{}")
    script = tmp_path / "a script.sh"
    count = write_slurm_script(
        script, folders, "toy", "dmamba experiment toy", Engine(threads=2, device="cuda")
    )
    assert count == 3
    text = script.read_text()
    for line in ("--array=1-3", "--cpus-per-task=2", "--gpus=1", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    assert "dmamba experiment toy" in text
    for task, folder in enumerate(folders[1:], start=1):
        finished = subprocess.run(
            ["bash", str(script)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stdout.split() == [str(folder.path.resolve()), "cuda"]
    assert "export OMP_NUM_THREADS=2 " in text
    assert "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0" in text


def test_a_cpu_s_script_asks_for_no_gpu_and_one_of_nothing_is_refused(
    folders: list[RunFolder], tmp_path: Path
) -> None:
    script = tmp_path / "x.sh"
    write_slurm_script(script, folders, "toy", "dmamba experiment toy", Engine())
    assert "--gpus" not in script.read_text()
    assert f'exec {sys.executable} -m sb3_dmamba.experiments.grid "${{runs[' in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "3"}
    subprocess.run(["bash", str(script)], env=environment, check=True)  # a real training
    assert [folder.is_done for folder in folders] == [False, False, True, False]
    assert folders[2].read_result().last_update == 20
    for folder in folders:
        folder.result.write_text("{}")
    with pytest.raises(ExperimentError, match="without --slurm"):
        write_slurm_script(script, folders, "toy", "", Engine())
