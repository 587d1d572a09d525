"""``dmamba card``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sb3_dmamba.cli import app
from tests.models import tiny_model
from tests.toys import random_trajectories


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = random_trajectories(observation_shape=(4,), n_actions=2)
    path = tmp_path_factory.mktemp("model") / "model.zip"
    tiny_model("CartPole-v1").fit(data, 2).save(path)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["card", *map(str, arguments)])
    return result.exit_code, result.output


def test_card(model_file: Path, tmp_path: Path) -> None:
    code, text = run(
        *(model_file, tmp_path / "hub", "--target", 20, "--target", 50, "--episodes", 2),
        *("--memory", "stream", "--repo", "me/pole", "--license", "mit", "--json"),
    )
    assert code == 0, text
    document = json.loads(text.splitlines()[-1])
    assert "dmamba-CartPole-v1.zip" in document["files"]
    results = json.loads((tmp_path / "hub" / "results.json").read_text())
    assert (results["memory"], results["n_targets"]) == ("stream", 2)
    readme = (tmp_path / "hub" / "README.md").read_text()
    assert "me/pole" in readme
    assert "\nlicense: mit\n" in readme
    code, text = run(
        *(model_file, tmp_path / "again", "--report", tmp_path / "hub" / "evaluation.json")
    )
    assert code == 0, text
    assert "wrote" in text
    assert json.loads((tmp_path / "again" / "results.json").read_text())["memory"] == "stream"
    code, text = run(model_file, tmp_path / "again", "--target", 20, "--episodes", 1)
    assert code == 1
    assert "overwrite=True" in text


def test_a_report_has_its_targets(model_file: Path, tmp_path: Path) -> None:
    code, text = run(model_file, tmp_path / "x", "--report", "r.json", "--target", 20)
    assert code == 2
    assert "the report has its targets" in text
