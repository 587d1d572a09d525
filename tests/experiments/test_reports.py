"""Reports from results written by hand, so that every number is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.grid.folder import write_json
from sb3_dmamba.experiments.planning import Plan
from sb3_dmamba.experiments.reports import build, summarize, write_report
from sb3_dmamba.experiments.reports.build import MACHINE_HEADING
from sb3_dmamba.experiments.reports.wording import format_number
from sb3_dmamba.tasks import ReferenceScores
from tests.experiments.toys import changed, fake_result, toy_plan

TARGETS = (5.0, 10.0, 14.0)
LEVELS = {"mamba": (4.0, 9.0, 13.0), "attention": (4.0, 5.0, 5.0)}


def finish(plan: Plan, levels: Mapping[str, tuple[float, ...]] = LEVELS, **options: Any) -> Plan:
    """Give every cell a result: episodes around a level a target, half a unit apart by seed."""
    for planned in plan.cells:
        centres = dict(zip(TARGETS, levels[planned.variant], strict=True))
        episodes = {
            (memory, target): centre + 0.1 * planned.seed + np.array([-0.1, 0.0, 0.1])
            for memory in ("window", "stream")
            for target, centre in centres.items()
        }
        fake_result(planned.folder, episodes, **options)
    return plan


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take a second each, where a test does not look at them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(build, "_PLOTS", {})


@pytest.fixture
def pictures() -> None:
    """Ask for the pictures."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return finish(toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1, 2)))


def report_of(plan: Plan, out: Path) -> str:
    (report, *_) = write_report(plan, out, "dmamba experiment toy")
    return report.read_text()


def test_arms_are_variants_under_memories(plan: Plan) -> None:
    (task,) = summarize(plan).tasks
    assert [arm.name for arm in task.arms] == [
        "mamba, window",
        "mamba, stream",
        "attention, window",
        "attention, stream",
    ]
    own = task.arms[0].targets[10.0]
    assert own.returns.shape == (3, 3)
    np.testing.assert_allclose(own.seed_means, [9.0, 9.1, 9.2])
    assert own.estimate.value == pytest.approx(9.1)


def test_each_arm_is_compared_with_the_first_under_its_memory(plan: Plan) -> None:
    (task,) = summarize(plan).tasks
    others = [task.reference_arm(arm) for arm in task.arms]
    names = [None if other is None else other.name for other in others]
    assert names == [None, "mamba, window", "mamba, window", "mamba, stream"]


def test_a_winner_s_interval_is_above_all_others(plan: Plan) -> None:
    (task,) = summarize(plan).tasks
    assert task.winner(14.0) is None  # mamba's two memories are alike
    alone = changed(task, arms=(task.arms[0], task.arms[2]))
    winner = alone.winner(14.0)
    assert winner is not None
    assert winner.name == "mamba, window"
    assert alone.winner(5.0) is None


def test_bold_is_for_winners_alone(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1, 2))
    for planned in finish(plan).cells:  # one memory is left
        fields = json.loads(planned.folder.result.read_text())
        rows = [row for row in fields["evaluations"] if row["memory"] == "window"]
        write_json(planned.folder.result, {**fields, "evaluations": rows})
    text = report_of(plan, tmp_path / "out")
    row = next(line for line in text.splitlines() if line.startswith("| mamba | window | "))
    cells = [cell.strip() for cell in row.split("|")]
    assert [cell.startswith("**") for cell in cells[3:6]] == [False, True, True]
    assert "**5" not in text


def test_the_answer_says_what_the_intervals_say(plan: Plan, tmp_path: Path) -> None:
    text = report_of(plan, tmp_path / "out")
    answer = text.split("## Answer")[1].split("## Results")[0]
    assert "asked 14.0 (the highest target that the data reaches)" in answer
    assert "`mamba` in window memory reached an interquartile mean of 13.1" in answer
    assert "over 3 seeds of 3 episodes" in answer
    assert "not told apart from window memory, the intervals overlap" in answer
    assert "below `mamba`, the intervals separate" in answer
    assert "better one in 0 of 9 pairs" in answer
    assert "Rank correlation" in answer
    assert "do not show that the two are alike" in answer


def test_one_seed_tells_nothing_apart(tmp_path: Path) -> None:
    plan = finish(toy_plan(tmp_path, target_returns=TARGETS, seeds=(0,)))
    text = report_of(plan, tmp_path / "out")
    assert "one seed cannot tell it from `mamba`" in text
    assert "interval over episodes alone" in text


def test_a_part_of_the_grid_can_be_reported(plan: Plan, tmp_path: Path) -> None:
    for planned in plan.cells[4:]:
        planned.folder.result.unlink()
    text = report_of(plan, tmp_path / "out")
    assert "4 of 6 trainings are done" in text
    for planned in plan.cells[:4]:
        planned.folder.result.unlink()
    with pytest.raises(ExperimentError, match="nothing to report"):
        summarize(plan)


@pytest.mark.usefixtures("pictures")
def test_the_report_stands_by_itself(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = report_of(plan, out)
    for said in (
        "# A toy",
        "Does it work?",
        "dmamba experiment toy",
        "Seeds 0, 1, 2",
        plan.tasks[0].fingerprint,
        "mixer=attention",
        "hidden_size=8",
    ):
        assert said in text
    pictures = {line.split("(")[1][:-1] for line in text.splitlines() if line.startswith("![")}
    assert pictures == {"achieved-data.png", "learning-data.png", "profile-data.png"}
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("pictures")
def test_the_same_results_give_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    machine = [{"updates": 20, "train_seconds": 3.0, "train_cpu_seconds": 2.0}]
    details = {"evaluation_seconds": 1.0, "machine": "M", "device": "cpu", "threads": 1}
    write_report(plan, first, "c")
    for planned in plan.cells:
        record = {**machine[0], **details, "versions": {"torch": "2"}}
        write_json(planned.folder.machine, [record])
    write_report(plan, second, "c")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        if name == "report.md":
            texts = [(folder / name).read_text() for folder in (first, second)]
            parts = [text.split(MACHINE_HEADING) for text in texts]
            assert parts[0][0] == parts[1][0]
            assert "150.0" in parts[1][1]  # ms an update
        else:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_csv_has_a_row_for_each_evaluation_and_target(plan: Plan, tmp_path: Path) -> None:
    report_of(plan, tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 3
    (row,) = (
        row
        for row in rows
        if (row["variant"], row["seed"], row["memory"], row["target_return"])
        == ("attention", "2", "stream", "10")
    )
    assert (float(row["mean"]), float(row["min"]), float(row["max"])) == (5.2, 5.1, 5.3)
    assert (row["n_episodes"], row["update"], row["mean_length"]) == ("3", "20", "7")


def test_the_json_has_every_figure_and_episode(plan: Plan, tmp_path: Path) -> None:
    report_of(plan, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    (task,) = document["tasks"]
    arm = task["arms"][2]
    assert (arm["variant"], arm["memory"], arm["seeds"]) == ("attention", "window", [0, 1, 2])
    assert arm["compared_with"] == "mamba, window"
    assert arm["probability_of_improvement"]["value"] == 0.0
    assert arm["targets"]["10"]["returns"][1] == pytest.approx([5.0, 5.1, 5.2])
    assert {cell["key"] for cell in document["cells"]} == {
        planned.folder.path.name for planned in plan.cells
    }


def test_last_and_best_are_told_apart(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1), evaluations=2)
    finish(plan, updates=(10, 20), growth=-1.0)  # it was better half-way
    (task,) = summarize(plan).tasks
    np.testing.assert_allclose(task.arms[0].last_scores, [12.0, 12.1])
    np.testing.assert_allclose(task.arms[0].best_scores, [13.0, 13.1])
    text = report_of(plan, tmp_path / "out")
    assert "| variant | memory | last | best |" in text
    assert "optimistic" in text


def test_scores_are_normalised_where_there_is_a_reference(tmp_path: Path) -> None:
    plan = finish(toy_plan(tmp_path, target_returns=TARGETS, seeds=(0, 1), evaluations=2))
    (planned,) = plan.tasks
    reference = ReferenceScores(3.0, 23.0, "toy")
    planned = changed(planned, task=changed(planned.task, reference=reference))
    plan = changed(plan, tasks=(planned,))
    (task,) = summarize(plan).tasks
    assert task.normalize(13.0) == 50.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(2484.4, "2,484"), (-666.6, "-667"), (24.84, "24.8"), (0.612, "0.61"), (0.0, "0")],
)
def test_numbers_have_the_digits_they_bear(value: float, text: str) -> None:
    assert format_number(value) == text
