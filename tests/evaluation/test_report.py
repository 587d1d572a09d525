"""Scores, and what a report prints, exports, reads back and draws."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation import (
    EvaluationReport,
    ReportDetails,
    TargetResult,
    compute_confidence_interval,
    compute_normalized_score,
    compute_standard_error,
)
from sb3_dmamba.tasks import ReferenceScores

REFERENCE = ReferenceScores(-20.0, 3234.0, "somebody's table")
DETAILS: dict[str, Any] = {
    "task": "hopper-medium-v2",
    "dataset": "hopper.h5",
    "mixer": "mamba",
    "training_seed": 12,
    "weights": "best",
    "n_updates": 10_000,
}
CONDITIONS = {"env_id": "Hopper-v4", "memory": "stream", "eval_seed": 7, "seconds": 12.5}


def make_report(**options: Any) -> EvaluationReport:
    results = tuple(
        TargetResult(target, np.array(returns), np.array(lengths), REFERENCE)
        for target, returns, lengths in (
            (1800.0, [1700.0, 1900.0, 1750.5], [500, 600, 550]),
            (3600.0, [3000.0, 2800.0, 2900.25], [900, 800, 1000]),
            (7200.0, [2000.0, 2100.0, 2500.0], [900, 800, 1000]),
        )
    )
    details = ReportDetails(**DETAILS, dataset_returns=np.array([500.0, 1000.0, 3100.0]))
    return EvaluationReport.from_results(results, details, **{**CONDITIONS, **options})


def test_standard_error_by_hand() -> None:
    assert compute_standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx(
        math.sqrt((4 + 1 + 0 + 9) / 3) / 2
    )
    assert math.isnan(compute_standard_error(np.array([1.0])))


def test_normalised_score_by_hand() -> None:
    # D4RL: Decision Transformer's 67.6 on hopper-medium is a return of 2180
    assert compute_normalized_score(2179.82, -20.272305, 3234.3) == pytest.approx(67.6, abs=1e-3)
    assert compute_normalized_score(-20.272305, -20.272305, 3234.3) == 0.0
    np.testing.assert_array_equal(compute_normalized_score(np.array([1.0, 2.0]), 1.0, 3.0), [0, 50])


def test_confidence_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    samples = random.exponential(1000.0, size=(300, 60))
    bounds = np.array([compute_confidence_interval(each, n_resamples=400) for each in samples])
    covered = np.mean((bounds[:, 0] <= 1000.0) & (bounds[:, 1] >= 1000.0))
    assert 0.90 <= covered <= 0.97
    halves = np.array(
        [compute_confidence_interval(each, level=0.5, n_resamples=400) for each in samples]
    )
    covered = np.mean((halves[:, 0] <= 1000.0) & (halves[:, 1] >= 1000.0))
    assert 0.42 <= covered <= 0.57


def test_confidence_interval_of_little_data() -> None:
    assert all(math.isnan(end) for end in compute_confidence_interval(np.array([5.0])))
    assert compute_confidence_interval(np.array([5.0, 5.0])) == (5.0, 5.0)


def test_a_results_figures_by_hand() -> None:
    result = make_report().results[0]
    assert result.mean == pytest.approx(5350.5 / 3)
    assert result.std == pytest.approx(np.std([1700, 1900, 1750.5], ddof=1))
    assert result.standard_error == pytest.approx(result.std / math.sqrt(3))
    assert result.mean_length == 550.0
    assert result.normalized_score == pytest.approx(100 * (result.mean + 20) / 3254)
    low, high = result.confidence_interval
    assert 1700 <= low < result.mean < high <= 1900
    assert make_report().best.target_return == 3600.0


def test_to_pandas() -> None:
    frame = make_report().to_pandas()
    assert frame["target_return"].tolist() == [1800.0, 3600.0, 7200.0]
    assert frame["mean"].tolist() == [result.mean for result in make_report().results]
    assert frame["n_episodes"].tolist() == [3, 3, 3]
    assert {"std", "standard_error", "ci_low", "ci_high", "normalized_score", "mean_length"} < {
        *frame.columns
    }
    assert frame.attrs["memory"] == "stream"
    assert frame.attrs["reference"]["maximum"] == 3234.0


def test_json_round_trip_keeps_everything(tmp_path: Path) -> None:
    report = make_report(deterministic=False)
    path = tmp_path / "report.json"
    text = report.to_json(path)
    for source in (text, path, str(path)):
        again = EvaluationReport.from_json(source)
        assert again.to_json() == text
        assert str(again) == str(report)
        assert again.reference == REFERENCE
        assert again.dataset_returns is not None
        np.testing.assert_array_equal(again.dataset_returns, [500.0, 1000.0, 3100.0])
        for one, other in zip(again.results, report.results, strict=True):
            np.testing.assert_array_equal(one.returns, other.returns)
            np.testing.assert_array_equal(one.lengths, other.lengths)
    fields, expected = json.loads(text), {**DETAILS, **CONDITIONS, "deterministic": False}
    assert {name: fields[name] for name in expected} == expected


def test_a_report_of_nothing_but_one_episode() -> None:
    report = EvaluationReport(results=(TargetResult(1.0, np.array([2.0]), np.array([3])),))
    fields = json.loads(report.to_json())
    assert fields["results"][0]["ci_low"] is None
    assert math.isnan(EvaluationReport.from_json(report.to_json()).results[0].std)
    assert " - " in str(report)
    assert "normalised" not in str(report)
    report.plot()


def test_a_cut_is_said_wherever_the_score_is() -> None:
    report = dataclasses.replace(make_report(), max_episode_steps=1500)
    assert "episodes cut after 1,500 steps" in str(report)
    assert json.loads(report.to_json())["max_episode_steps"] == 1500
    assert EvaluationReport.from_json(report.to_json()).max_episode_steps == 1500
    assert "cut" not in str(make_report())


def test_printing_it_in_a_notebook_gives_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "asked" in str(make_report())


def test_what_is_no_report() -> None:
    for text in ("{}", "{ nonsense", '{"format": 1, "reference": null, "results": [{}]}'):
        with pytest.raises(ConfigError, match="not an evaluation report"):
            EvaluationReport.from_json(text)
    with pytest.raises(ConfigError, match="upgrade") as raised:
        EvaluationReport.from_json('{"format": 99}')
    assert (raised.value.setting, raised.value.value) == ("format", 99)
    wrong: Any
    for setting, wrong in (
        ("results", lambda: EvaluationReport(results=())),
        ("weights", lambda: ReportDetails(weights="latest")),  # type: ignore[arg-type]
        ("dataset_returns", lambda: ReportDetails(dataset_returns=np.array([1.0, np.nan]))),
        ("returns", lambda: TargetResult(1.0, np.array([]), np.array([]))),
        ("lengths", lambda: TargetResult(1.0, np.array([1.0, 2.0]), np.array([1]))),
        ("maximum", lambda: compute_normalized_score(1.0, 3.0, 3.0)),
        ("level", lambda: compute_confidence_interval(np.array([5.0, 6.0]), level=95)),
    ):
        with pytest.raises(ConfigError) as raised:
            wrong()
        assert raised.value.setting == setting


def test_printing() -> None:
    text = str(make_report())
    assert "\x1b" not in text
    for words in (
        *("hopper-medium-v2 on Hopper-v4", "dataset hopper.h5", "training seed 12"),
        *("memory stream", "best weights", "episode seeds 7 to 9", "somebody's table"),
    ):
        assert words in text
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["3,600"])
    assert row[:5] == ["3,600", "2,900", "2,800", "to", "3,000"]
    assert row[5] == f"{make_report().best.normalized_score:.1f}"
    rich = io.StringIO()
    Console(file=rich, force_terminal=True, width=100).print(make_report())
    assert "\x1b[1m" in rich.getvalue()  # the best target is bold


def test_plot(tmp_path: Path) -> None:
    report = make_report()
    axes = report.plot(tmp_path / "new" / "plot.svg").axes[0]
    assert (tmp_path / "new" / "plot.svg").stat().st_size
    lines = {line.get_label(): line for line in axes.get_lines()}
    identity = lines["achieved = asked"]
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    np.testing.assert_array_equal(lines["dataset's highest"].get_ydata(), 3100.0)
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars[0].get_ydata(), [result.mean for result in report.results])
    figure = Figure()
    axes = figure.add_subplot()
    assert dataclasses.replace(report, dataset_returns=None).plot(ax=axes) is figure
    assert not axes.child_axes
    with pytest.raises(ConfigError, match=r"plot\.xyz"):
        report.plot(tmp_path / "plot.xyz")
