"""Reports from results written by hand, so that every number is known."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments import report as module
from sb3_dmamba.experiments.plan import Plan
from sb3_dmamba.experiments.record import ExperimentSummary, Record, summarize
from sb3_dmamba.experiments.report import MACHINE_HEADING, main, rebuild_report, write_report
from sb3_dmamba.experiments.runs import write_json
from tests.experiments.toys import fake_result, save_data, toy_plan

PLOTS = dict(module._PLOTS)
REPOSITORY = Path(__file__).parents[2]
TARGETS = (5.0, 10.0, 14.0)
LEVELS = {"mamba": (4.0, 9.0, 13.0), "attention": (4.0, 5.0, 5.0)}


def finish(plan: Plan, levels: Mapping[str, tuple[float, ...]] = LEVELS, **options: Any) -> Plan:
    """Give every run a result: episodes around a level a target, half a unit apart by seed."""
    for planned in plan.runs:
        centres = dict(zip(TARGETS, levels[planned.variant], strict=True))
        episodes = {
            (memory, target): centre + 0.1 * planned.seed + np.array([-0.1, 0.0, 0.1])
            for memory in ("window", "stream")
            for target, centre in centres.items()
        }
        fake_result(planned.folder, episodes, **options)
    return plan


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take a second each."""
    monkeypatch.setattr(module, "_PLOTS", {})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return finish(toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1, 2)))


def summary_of(plan: Plan) -> ExperimentSummary:
    return summarize(Record.from_plan(plan, "dmamba experiment toy"))


def report_of(plan: Plan, out: Path) -> str:
    (report, *_) = write_report(plan, out, "dmamba experiment toy")
    return report.read_text()


def test_one_seed_tells_nothing_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_seed = finish(toy_plan(tmp_path, target_returns=TARGETS, seeds=(0,)))
    text = report_of(one_seed, tmp_path / "one")
    assert "one seed cannot tell it from `mamba`" in text
    assert "interval over episodes alone" in text
    for planned in one_seed.runs:  # an episode a target: no interval at all; and no losses
        fake_result(planned.folder, {("window", target): [4.0] for target in TARGETS})
        result = json.loads(planned.folder.result.read_text())
        write_json(planned.folder.result, {**result, "losses": []})
    monkeypatch.setattr(module, "_PLOTS", PLOTS)
    assert "an interquartile mean of 4.0" in report_of(one_seed, tmp_path / "one")


def test_a_part_of_the_runs_can_be_reported(plan: Plan, tmp_path: Path) -> None:
    for planned in plan.runs[4:]:
        planned.folder.result.unlink()
    text = report_of(plan, tmp_path / "out")
    assert "4 of 6 trainings are done" in text
    for planned in plan.runs[:4]:
        planned.folder.result.unlink()
    with pytest.raises(ExperimentError, match="nothing to report"):
        summary_of(plan)


def test_distances_and_all_tasks_together(plan: Plan, tmp_path: Path) -> None:
    """Seed s of mamba reaches (4, 9, 13) + s/10, of attention (4, 5, 5) + s/10; asked 5, 10, 14."""
    (task,) = summary_of(plan).tasks
    low, high = task.task["lowest_return"], task.task["highest_return"]
    within = [each for each in TARGETS if low <= each <= high]
    for arm in task.arms:
        reached = dict(zip(TARGETS, LEVELS[arm.variant], strict=True))
        expected = np.mean([t - reached[t] - 0.1 for t in within]) / (high - low)
        assert arm.distance is not None
        assert arm.distance.value == pytest.approx(expected)
        assert arm.distance.low < expected < arm.distance.high
    assert f"| spread between seeds, asked {task.headline:.0f}" in report_of(plan, tmp_path / "out")
    data = (str(tmp_path / "data"), str(save_data(tmp_path / "more", seed=1)))
    levels = {**LEVELS, "attention": (5.0, 9.9, 13.9)}
    both = finish(toy_plan(tmp_path, data=data, target_returns=TARGETS, seeds=(0, 1)), levels)
    summary = summary_of(both)
    (mamba, attention) = (each for each in summary.aggregates if each.arms[0].memory == "window")
    assert (mamba.ratio, mamba.improvement) == (1.0, None)
    distances = [arm.distance.value for arm in attention.arms if arm.distance]
    assert len(distances) == 2
    assert attention.distance == pytest.approx(np.mean(distances))
    assert attention.ratio == pytest.approx(attention.distance / mamba.distance)
    assert attention.improvement is not None
    assert (attention.improvement.value, attention.improvement.high) == (1.0, 1.0)
    assert attention.lowest_rank_correlation == pytest.approx(1.0)
    assert "### All tasks" in report_of(both, tmp_path / "both")


def test_the_same_results_give_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    machine = [{"updates": 20, "train_seconds": 3.0, "train_cpu_seconds": 2.0}]
    details = {"evaluation_seconds": 1.0, "machine": "M", "device": "cpu", "threads": 1}
    write_report(plan, first, "c")
    for planned in plan.runs:
        record = {**machine[0], **details, "versions": {"torch": "2"}}
        write_json(planned.folder.machine, [record])
    write_report(plan, second, "c")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        if name == "machine.json":
            continue
        if name == "report.md":
            texts = [(folder / name).read_text() for folder in (first, second)]
            parts = [text.split(MACHINE_HEADING) for text in texts]
            assert parts[0][0] == parts[1][0]
            assert "150.0" in parts[1][1]  # ms an update
        else:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_csv_has_a_row_for_each_evaluation_and_episodes_of_the_last_weights(
    tmp_path: Path,
) -> None:
    plan = toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1), evaluations=2)
    report_of(finish(plan, updates=(10, 20)), tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2 * 3  # variants, seeds, updates, memories, targets
    for row in rows:
        assert len(row["returns"].split()) == (3 if row["update"] == "20" else 0)
    wanted = {"variant": "attention", "seed": "1", "memory": "stream", "update": "20"}
    (row,) = (r for r in rows if r.items() >= {**wanted, "target_return": "10"}.items())
    assert (float(row["mean"]), float(row["min"]), float(row["max"])) == (5.1, 5.0, 5.2)
    assert (row["n_episodes"], row["mean_length"], row["n_parameters"]) == ("3", "7", "123")
    assert row["returns"] == "5 5.1 5.2"


def test_the_report_is_made_from_its_files_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_PLOTS", PLOTS)
    out = tmp_path / "out"
    report_of(plan, out)
    sources = {"results.csv", "losses.csv", "settings.json", "machine.json"}
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.name not in sources}
    assert len(made) == 4
    for name in made:
        (out / name).unlink()
    main([str(out)])
    assert capsys.readouterr().out.split() == [str(out / "report.md")]
    assert {name: (out / name).read_bytes() for name in made} == made
    assert (out / "settings.json").stat().st_size < 10_000


def test_a_published_report_is_what_its_files_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PLOTS", dict.fromkeys(PLOTS, lambda task, path: None))
    for name in ("context-length-breakout", "long-memory"):
        folder = shutil.copytree(REPOSITORY / "docs" / "results" / name, tmp_path / name)
        published = (folder / "report.md").read_text()
        (folder / "report.md").unlink()
        assert rebuild_report(folder).read_text() == published


def test_a_damaged_report_is_refused(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExperimentError, match=r"settings\.json is missing"):
        rebuild_report(out)
    report_of(plan, out)
    table = (out / "results.csv").read_text()
    damages = [
        ("results.csv", table.replace("returns", "rewards"), "lacks the columns returns"),
        ("results.csv", table.replace("14,3", "15,3"), "do not fit together"),
        ("results.csv", "", "cannot be read"),
        ("settings.json", "{", "cannot be read"),
        ("settings.json", '{"format": 2}', "format 2"),
    ]
    for name, text, message in damages:
        (out / name).write_text(text)
        with pytest.raises(ExperimentError, match=message):
            rebuild_report(out)
