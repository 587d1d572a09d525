"""``dmamba export``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sb3_dmamba.cli import app
from tests.export.test_model import fitted


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    fitted().save("model.zip")


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == exit_code, f"{result.exception!r}\n{result.output}"
    return result


def test_it_writes_beside_the_model_and_shows_the_inputs() -> None:
    text = run("model.zip").stdout
    assert Path("model.onnx").is_file()
    assert "memory: window" in text
    assert re.search(r"state\.embedded_observations\W+float32\W+5 x 16", text)
    assert "action and each next_state" in text
    assert "differs from the model by at most" in text
    assert "wrote model.onnx" in text


def test_json_is_one_document() -> None:
    result = run("model.zip", "out/policy.onnx", "--memory", "stream", "--no-verify", "--json")
    document = json.loads(result.stdout)
    assert document["path"] == "out/policy.onnx"
    assert document["max_error"] is None
    assert document["metadata"]["memory"] == "stream"
    assert Path("out/policy.onnx").is_file()


def test_errors_are_one_line() -> None:
    result = run("model.zip", "policy.bin", exit_code=1)
    assert result.stderr.startswith("ConfigError: path='policy.bin'")
    assert "ModelFileError" in run("nothing.zip", exit_code=1).stderr
