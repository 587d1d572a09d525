"""The folder for the hub: its files and texts, and the hub's own tools reading it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
from typer.testing import CliRunner

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.cli import app
from sb3_dmamba.errors import ConfigError, MissingDependencyError, NotFittedError, UnknownTaskError
from sb3_dmamba.evaluation import ReportDetails, TargetResult
from sb3_dmamba.evaluation.report import EvaluationReport
from sb3_dmamba.hub import Card, make_folder
from sb3_dmamba.tasks import ReferenceScores, Task
from tests.evaluation.toys import SeededEnv
from tests.models import tiny_model
from tests.sb3.setting import PickledEnv
from tests.toys import random_trajectories

DATA = random_trajectories(observation_shape=(2,))
FILES = {"README.md", "config.json", "evaluation.json", "evaluation.png", "results.json"}


def _make_pickled(render_mode: str | None = None, **_: Any) -> gym.Env[Any, Any]:
    env = PickledEnv()
    env.render_mode = render_mode  # type: ignore[assignment]  # frames only where asked for
    return env


@pytest.fixture(scope="module")
def model() -> Any:
    """Of a task whose environment Gymnasium can make, frames included."""
    gym.register("Pickled-v0", _make_pickled)
    task = Task(name="toy", env_id="Pickled-v0", reference=ReferenceScores(0.0, 50.0, "by hand"))
    data = dataclasses.replace(DATA, source="toy noise")
    fitted = tiny_model(task).fit(data, 2)
    fitted.target_return = 20.0
    yield fitted
    del gym.registry["Pickled-v0"]


@pytest.fixture(scope="module")
def report(model: DecisionMamba) -> EvaluationReport:
    return model.evaluate([10.0, 20.0], 4, seed=7, memory="stream", n_workers=0)


@pytest.fixture(scope="module")
def folder(model: Any, report: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub") / "new" / "folder"
    return make_folder(model, place, report=report, repo_id="me/toy", license="mit")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def read_card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_files(folder: Path, model: DecisionMamba, report: EvaluationReport) -> None:
    assert {path.name for path in folder.iterdir()} == FILES | {"dmamba-Pickled-v0.zip"}
    loaded = DecisionMamba.load(folder / "dmamba-Pickled-v0")
    again = loaded.evaluate([10.0, 20.0], 4, seed=7, memory="stream", n_workers=0)
    assert [each.returns.tolist() for each in again.results] == [
        each.returns.tolist() for each in report.results
    ]
    assert EvaluationReport.from_json(folder / "evaluation.json").to_json() == report.to_json()
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    config = read(folder, "config.json")
    assert config["config"] == model.config.to_file()
    assert config["task"]["env_id"] == "Pickled-v0"
    assert "Python" in config["system_info"]


def test_results_are_the_reports(folder: Path, report: EvaluationReport) -> None:
    results, reached = read(folder, "results.json"), report.results[1]
    assert results.pop("eval_datetime").startswith("20")
    assert results == {
        "mean_reward": reached.mean,
        "std_reward": float(np.std(reached.returns)),
        "is_deterministic": True,
        "n_eval_episodes": 4,
        "target_return": 20.0,  # the model's own, not the best
        "memory": "stream",
        "weights": "last",
        "first_seed": 7,
        "confidence_interval": list(reached.confidence_interval),
        "normalized_score": reached.normalized_score,
        "n_targets": 2,
        "clip_rewards": False,
        "delayed_rewards": False,
        "max_episode_steps": None,
    }


def test_headlines_that_are_optimistic_or_of_one_episode(model: DecisionMamba) -> None:
    results = (
        TargetResult(0.0, np.array([1.0, 2.0]), np.ones(2, np.int64)),
        TargetResult(1.0, np.array([5.0]), np.ones(1, np.int64)),
    )
    report = EvaluationReport.from_results(results, ReportDetails(weights="best"))
    card = Card(
        name="x", repo_id="me/x", env_name="X-v0", report=report, result=results[1],
        config=model.config, dataset=model.dataset, env_id=None,
    )  # fmt: skip
    text = card.to_model_card().text
    for part in ("the best of the 2 targets", "picked by evaluations", "names no environment"):
        assert part in text
    assert card.results()["confidence_interval"] is None


@pytest.mark.parametrize("block", [0, 1])
def test_the_code_on_the_card_runs(
    block: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    text = read_card(folder)
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(code) == 2
    exec(compile("\n".join(code[: block + 1]), "README.md", "exec"), {})
    assert asked == [("me/toy", "dmamba-Pickled-v0.zip")]
    headline = f"{read(folder, 'results.json')['mean_reward']:.1f}"
    assert headline in capsys.readouterr().out.replace(",", "")


def test_huggingface_hub_reads_the_card(folder: Path) -> None:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    results = read(folder, "results.json")
    assert (card.data.library_name, card.data.license) == ("stable-baselines3", "mit")
    assert {"Pickled-v0", "deep-reinforcement-learning"} <= set(card.data.tags)
    first, second = card.data.eval_results
    assert (first.metric_type, second.metric_type) == ("mean_reward", "normalized_score")
    assert (first.dataset_type, first.task_type) == ("Pickled-v0", "reinforcement-learning")
    conditions = ("target_return", "memory", "weights", "n_eval_episodes", "first_seed")
    assert first.metric_args == {name: results[name] for name in conditions}
    assert second.metric_value == round(results["normalized_score"], 2)
    text = read_card(folder)
    for part in ("Asked for **20** ", "seeds 7 to 10", "toy noise", '"hidden_size": 16'):
        assert part in text
    for link in re.findall(r"\]\(([\w.]+)\)", text):
        assert (folder / link).is_file()


def test_it_evaluates_where_there_is_no_report(model: Any, tmp_path: Path) -> None:
    folder = make_folder(model, tmp_path / "x", n_episodes=2, name="my.model-1", target_return=9.0)
    assert (folder / "my.model-1.zip").is_file()
    results = read(folder, "results.json")
    assert (results["target_return"], results["n_eval_episodes"]) == (9.0, 2)
    assert (results["n_targets"], results["memory"]) == (1, "window")
    assert "<user>/my.model-1" in read_card(folder)


def test_folders_that_are_there(model: Any, report: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_folder(model, tmp_path / "empty", report=report)
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        make_folder(model, tmp_path / "empty", report=report)
    assert caught.value.setting == "folder"
    (tmp_path / "empty" / "README.md").write_text("old")
    make_folder(model, tmp_path / "empty", report=report, overwrite=True)
    assert (tmp_path / "empty" / "notes.txt").read_text() == "mine"
    assert "Asked for" in (tmp_path / "empty" / "README.md").read_text()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError):
        make_folder(model, tmp_path / "file", report=report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]  # nothing is left


def test_mistakes(model: Any, report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFittedError):
        make_folder(tiny_model(), tmp_path / "x", report=report)
    with pytest.raises(ConfigError) as caught:
        make_folder(model, tmp_path / "x", report=report, target_return=3.0)
    assert (caught.value.setting, caught.value.choices) == ("target_return", (10.0, 20.0))
    with pytest.raises(ConfigError) as caught:
        make_folder(model, tmp_path / "x", report=report, name="a/b")
    assert caught.value.setting == "name"
    with pytest.raises(UnknownTaskError):
        make_folder(tiny_model().fit(DATA, 1), tmp_path / "x", target_return=1.0)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError) as missing:
        make_folder(model, tmp_path / "x", report=report)
    assert missing.value.extra == "hub"
    assert list(tmp_path.iterdir()) == []


def test_video(model: Any, report: Any, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="Gymnasium records with moviepy")
    folder = make_folder(model, tmp_path / "x", report=report, video=True, video_steps=3)
    assert (folder / "replay.mp4").stat().st_size > 500
    text = read_card(folder)
    returned = f"{report.results[1].returns[0]:,.2f} in 5 steps, of which the video shows 3"
    assert f"the episode with seed 7, asked for 20: it returned {returned}" in text


class Unequipped(PickledEnv):
    def render(self) -> Any:
        raise gym.error.DependencyNotInstalled("pygame is not installed")


class Blind(SeededEnv):
    """Renders nothing."""

    render_mode = None  # type: ignore[assignment]


def test_environments_that_render_no_frames(model: Any, report: Any, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="Gymnasium records with moviepy")
    for env, setting in ((Blind, "render_mode"), (Unequipped, "video")):
        with pytest.raises(ConfigError) as caught:
            make_folder(model, tmp_path / "x", report=report, video=True, env=env)
        assert caught.value.setting == setting
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = random_trajectories(observation_shape=(4,), n_actions=2)
    path = tmp_path_factory.mktemp("model") / "model.zip"
    tiny_model("CartPole-v1").fit(data, 2).save(path)
    return path


def run_card(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["card", *map(str, arguments)])
    return result.exit_code, result.output


def test_command(model_file: Path, tmp_path: Path) -> None:
    hub, again = tmp_path / "hub", tmp_path / "again"
    code, text = run_card(
        *(model_file, hub, "--target", 20, "--target", 50, "--episodes", 2),
        *("--memory", "stream", "--repo", "me/pole", "--license", "mit", "--json"),
    )
    assert code == 0, text
    assert "dmamba-CartPole-v1.zip" in json.loads(text.splitlines()[-1])["files"]
    assert "\nlicense: mit\n" in read_card(hub)
    assert "me/pole" in read_card(hub)
    code, text = run_card(model_file, again, "--report", hub / "evaluation.json")
    assert code == 0, text
    for folder in (hub, again):
        results = read(folder, "results.json")
        assert (results["memory"], results["n_targets"]) == ("stream", 2)
    assert run_card(model_file, again, "--target", 20, "--episodes", 1)[0] == 1
