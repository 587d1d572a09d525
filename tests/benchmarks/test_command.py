"""``dmamba bench``: what it finds, refuses, runs and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.reports import Column, Report, Table
from benchmarks.suites import SUITES, Suite, choose
from sb3_dmamba.cli import app
from sb3_dmamba.cli import experiment as command
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.machine import describe_cpu

ROOT = Path(__file__).parents[2]


def _invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_every_suite_has_a_module_and_stands_in_the_help() -> None:
    code, stdout, _ = _invoke("--help")
    assert code == 0
    for name in SUITES:
        assert (ROOT / "benchmarks" / "suites" / f"{name}.py").is_file()
        assert name in stdout


def test_suites_are_chosen_by_name() -> None:
    assert list(choose(())) == [name for name, suite in SUITES.items() if not suite.by_name]
    assert list(choose(("frames", "data", "frames"))) == ["frames", "data"]
    with pytest.raises(ConfigError) as caught:
        choose(("updates",))
    assert (caught.value.setting, caught.value.value) == ("suite", "updates")
    mistakes = {"frames": "--replay", "tune": "device is 'cpu'", "updates": "mean 'update'"}
    for name, message in mistakes.items():
        code, _, stderr = _invoke(name, "--device", "cpu")
        assert code == 1
        assert message in stderr


def test_an_installed_package_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "sb3_dmamba" / "cli" / "bench.py"
    monkeypatch.setattr(command, "__file__", str(installed))
    code, stdout, stderr = _invoke("data")
    assert code == 1
    assert stdout == ""
    assert stderr.startswith("CheckoutError: the benchmarks are in the repository")
    assert len(stderr.splitlines()) == 1


def test_another_package_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    kept = {name: each for name, each in sys.modules.items() if name.split(".")[0] == "benchmarks"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, stderr = _invoke("data")
    assert code == 1
    assert "another package called benchmarks" in stderr
    for name in [each for each in sys.modules if each.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_suite_runs_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("d3rlpy", reason="d3rlpy is not installed")
    options = ("--quick", "--rounds", "1", "--threads", "1", "--device", "cpu", "--json")
    code, stdout, stderr = _invoke("data", *options, "--output", str(tmp_path))
    assert code == 0, stderr
    (document,) = json.loads(stdout)
    names = [row["name"] for row in document["tables"][0]["rows"]]
    ours = ["ours, in memory", "ours, from a store on disk", "ours, kept on the device"]
    assert names == [*ours, "d3rlpy"]
    assert document["machine"]["threads"] == 1
    assert all(table["title"].endswith(f"; {describe_cpu()}") for table in document["tables"])
    assert "mean nothing" in document["machine"]["figures"]
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"data.md", "data.json", "data_vectors.png", "data_images.png"}


def test_a_missed_limit_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("t", "T", (Column("name", ""),), [{"name": "ours"}])
    missed = Report("data", "T", "how.", [table], failures=["too slow"])
    monkeypatch.setattr(Suite, "run", lambda self, name, request: missed)
    code, stdout, _ = _invoke("data")
    assert code == 1
    assert "FAILED: too slow" in stdout
