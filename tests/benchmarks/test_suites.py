"""Whole suites at toy size: what each of them writes is there. The figures mean nothing."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from benchmarks.contenders import Agreement, Candidate, Contender
from benchmarks.request import Request
from benchmarks.suites import SUITES, update
from benchmarks.suites.update import DECOUPLED, OURS, PEER
from benchmarks.timing import Timer, Timing
from sb3_dmamba.machine import describe_machine

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
    if name == "update":
        assert [row["name"] for row in report.tables[1].rows] == [OURS, DECOUPLED, PEER]


def test_updates_beside_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **options)
        if update._NEIGHBOUR in arguments[0]:
            started.append(process)
        return process

    def seconds(self: Timer, runs: dict[str, Any]) -> dict[str, Timing]:
        busy = [each for each in started if each.poll() is None]
        median = {OURS: 3.0, DECOUPLED: 2.0, PEER: 9.0} if busy else dict.fromkeys(runs, 1.0)
        return {name: Timing(median[name], 0.0, 0.0, 1) for name in runs}

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(Timer, "measure", seconds)
    right = Contender(lambda: None, lambda: Agreement("all", 0.0, 1.0))
    candidates = [Candidate(name, lambda: right) for name in (OURS, DECOUPLED, "other", PEER)]
    table = update.measure_beside_neighbours(candidates, QUICK)
    kept = {row["name"]: round(row["kept"], 3) for row in table.rows}
    assert kept == {OURS: 0.333, DECOUPLED: 0.5, PEER: 0.111}
    n_busy = max(1, int(describe_machine().cores) // 2)
    assert [row["neighbours"] for row in table.rows] == 3 * [n_busy]
    assert len(started) == n_busy
    assert all(each.poll() is not None for each in started)
    (collapsed,) = update._find_collapsed(table)  # a peer has no limit
    assert collapsed.startswith(f"{OURS} keeps 0.33")


def test_operations_at_toy_size() -> None:
    (table,) = SUITES["ops"].run("ops", QUICK).tables
    measured = {(row["operation"], row["name"]) for row in table.rows}
    for operation in ("selective_scan", "causal_conv1d", "mamba_step"):
        assert {(operation, "cpu"), (operation, "reference")} <= measured
