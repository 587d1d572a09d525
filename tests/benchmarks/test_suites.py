"""Whole suites at toy size: what each of them writes is there. The figures mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.request import Request
from benchmarks.suites import SUITES
from tests.data.dqn_files import Played, Recorder

QUICK = Request(quick=True, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["update", "predict", "evaluation", "scaling", "memory"])
def test_a_suite_at_toy_size(name: str) -> None:
    pytest.importorskip("d3rlpy", reason="d3rlpy is not installed")
    if name == "evaluation":
        pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    report = SUITES[name].run(name, QUICK)
    assert all(table.rows for table in report.tables)
    assert all("compile_graph" in each or "mamba_ssm" in each for each in report.left_out)


def test_operations_at_toy_size() -> None:
    (table,) = SUITES["ops"].run("ops", QUICK).tables
    measured = {(row["operation"], row["name"]) for row in table.rows}
    for operation in ("selective_scan", "causal_conv1d", "mamba_step"):
        assert {(operation, "cpu"), (operation, "reference")} <= measured


def test_the_profile_sees_what_an_update_is_made_of() -> None:
    (table,) = SUITES["profile"].run("profile", QUICK).tables
    rows = {row["name"]: row for row in table.rows}
    for group in ("sampler", "optimiser", "dropout", "norm", "GEMM"):
        assert rows["Mamba"][f"seconds {group}"] > 0, group
    for group in ("scan", "convolution"):
        assert rows["Mamba"][f"seconds {group}"] > 0, group
        assert rows["attention + MLP"][f"seconds {group}"] == 0, group
    assert rows["attention + MLP"]["seconds attention"] > 0
    total = sum(value for key, value in rows["Mamba"].items() if key.startswith("share "))
    assert total == pytest.approx(1.0)


@pytest.mark.slow
def test_frames_of_a_recorded_replay(tmp_path: Path) -> None:
    pytest.importorskip("d3rlpy", reason="d3rlpy is not installed")
    recorder = Recorder(tmp_path, 200)
    for seed in range(6):
        recorder.play(Played.random(30, seed))
    recorder.write()
    report = SUITES["frames"].run("frames", Request(quick=True, rounds=1, replay=tmp_path))
    memory, speed = report.tables
    assert memory.rows[0]["steps"] > 1000
    assert [row["name"] for row in speed.rows] == ["ours", "d3rlpy's frame-stacking slicer"]
    assert speed.rows[0]["gate"] == "0e+00"
    assert not report.left_out
