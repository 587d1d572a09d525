"""Whole suites at toy size: what each of them writes is there. The figures mean nothing."""

from __future__ import annotations

import pytest

from benchmarks.request import Request
from benchmarks.suites import SUITES

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
