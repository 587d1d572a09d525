"""Observation statistics, and the report of a dataset."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from sb3_dmamba.data import compute_observation_statistics, load_trajectories
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.data.inspection import DatasetIssue, Histogram, inspect_dataset
from sb3_dmamba.errors import DatasetError
from tests.data.builders import make_trajectories


def arrays(**changes: Any) -> dict[str, Any]:
    """Eight steps in two episodes that ended, with nothing odd."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(8, 3)),
        "actions": generator.uniform(-1, 1, (8, 2)),
        "rewards": np.arange(8.0),
        "terminals": np.arange(8) == 3,
        "timeouts": np.arange(8) == 7,
        **changes,
    }


def changed(name: str, where: Any, value: Any) -> dict[str, Any]:
    values = arrays()
    values[name][where] = value
    return values


def find(source: Any, kind: str) -> DatasetIssue:
    """Return the only issue, which is of that kind."""
    report = inspect_dataset(source)
    assert [issue.kind for issue in report.oddities] == [kind]
    return report.oddities[0]


def test_nothing_odd() -> None:
    report = inspect_dataset(arrays())
    assert report.oddities == ()
    assert report.summary == load_trajectories(arrays()).summary()
    assert "none found" in str(report)


def test_what_cannot_be_learnt_is_described() -> None:
    source = changed("observations", (5, 1), np.nan)
    source["observations"][7, 2] = np.inf
    source["observations"][1, :] = -np.inf
    with pytest.raises(DatasetError, match=r"observations\[1, 0\] is -inf"):
        load_trajectories(source)
    issue = find(source, "non_finite")
    assert (issue.count, issue.where) == (3, (1, 5, 7))
    assert "at 3 steps of 2 episodes (0, 1)" in issue.message
    with pytest.raises(DatasetError):
        inspect_dataset({})
    with pytest.raises(DatasetError):  # tolerance does not stay on
        load_trajectories(source)


def test_rewards_that_are_not_finite_leave_returns_of_the_others() -> None:
    source = changed("rewards", [4, 5], [np.inf, -np.inf])
    report = inspect_dataset(source)
    assert report.summary.episodes == 2
    assert report.summary.returns.mean == 0 + 1 + 2 + 3
    assert report.returns == Histogram((6.0, 6.0), (1,))
    json.dumps(report.to_dict(), allow_nan=False)
    none = inspect_dataset(arrays(rewards=np.full(8, np.nan)))
    assert none.returns == Histogram((), ())
    json.dumps(none.to_dict(), allow_nan=False)
    assert str(none)


def test_constant_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    issue = find(changed("observations", np.s_[:, [0, 2]], 4.0), "constant_dimension")
    assert (issue.count, issue.where) == (2, (0, 2))
    assert "2 of 3 dimensions of observations never change (0, 2)" in issue.message
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", 1)  # a step at a time
    issue = find(changed("actions", np.s_[:, 1], 0.5), "constant_dimension")
    assert "1 of 2 dimensions of actions never change (1)" in issue.message
    frames = np.zeros((8, 40, 40), np.uint8)  # whose pixels are left out
    frames[:, 0, 0] = np.arange(8)
    assert inspect_dataset(arrays(observations=frames)).oddities == ()


def test_actions_never_taken() -> None:
    source = arrays(actions=np.array([0, 3] * 4))
    issue = find(source, "unused_actions")
    assert (issue.count, issue.where) == (2, (1, 2))
    report = inspect_dataset(
        arrays(actions=np.array([1, 2] * 4)), action_space=spaces.Discrete(3, start=1)
    )
    assert report.oddities[0].where == (3,)


def test_constant_rewards_cut_and_short_episodes() -> None:
    assert "every reward is 2" in find(arrays(rewards=np.full(8, 2.0)), "constant_reward").message
    cut = find(arrays(timeouts=np.zeros(8)), "cut_episodes")
    short = find(arrays(terminals=np.isin(np.arange(8), (3, 4))), "single_step_episodes")
    assert (cut.count, cut.where) == (short.count, short.where) == (1, (1,))
    assert "1 episode of 2 neither terminated nor truncated" in cut.message


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_duplicate_episodes(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", chunk)
    data = make_trajectories([3, 4, 3], terminated=np.ones(3, bool), truncated=np.zeros(3, bool))
    issue = find(data[[0, 1, 0, 2, 1, 0]], "duplicate_episodes")
    assert (issue.count, issue.where) == (3, (2, 4, 5))
    assert "3 episodes of 6 repeat an earlier one" in issue.message


def test_episodes_that_are_nearly_alike_are_no_duplicates() -> None:
    whole = make_trajectories([3, 3], terminated=np.ones(2, bool), truncated=np.zeros(2, bool))
    twice = whole[[0, 0, 1]]
    for name in ("observations", "actions", "rewards"):
        other = dataclasses.replace(twice, **{name: getattr(twice, name).copy()})
        getattr(other, name).reshape(9, -1)[4, 0] += 0.01
        assert inspect_dataset(other).oddities == ()
    ends = dataclasses.replace(twice, truncated=np.array([False, True, False]))
    assert inspect_dataset(ends).oddities == ()
    assert len(inspect_dataset(twice).oddities) == 1


def test_histograms() -> None:
    histogram = Histogram.of(np.array([0.0, 1.0, 1.0, 12.0]))
    assert histogram.counts == (1, 2, *[0] * 8, 0, 1)
    lines = histogram.lines()
    assert lines[1].split() == ["1.0", "to", "2.0", "█" * 40, "2"]
    assert lines[0].split()[3] == "█" * 20
    assert lines[5].split() == ["5.0", "to", "6.0", "0"]
    many = Histogram.of(np.concatenate([np.zeros(1000), [1.0]]))
    assert many.lines()[-1].split()[-2:] == ["▏", "1"]


def test_reports_print_as_text_and_as_tables() -> None:
    report = inspect_dataset(arrays(timeouts=np.zeros(8)))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report)
    for text in (capture.get(), str(report)):
        assert "neither terminated nor truncated" in text
        assert "█" in text
    found = report.to_dict()
    assert found["oddities"][0]["kind"] == "cut_episodes"
    assert sum(found["returns"]["counts"]) == found["summary"]["episodes"] == 2


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 26])
def test_agrees_with_numpy_in_any_chunks(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    values = np.random.default_rng(0).normal([0.0, 1e4, -3.0], [1.0, 0.5, 1e-3], (700, 3))
    data = make_trajectories([300, 400], observations=values)
    statistics = compute_observation_statistics(data)
    assert statistics is not None
    assert statistics.mean.dtype == statistics.std.dtype == np.float32
    stored = data.observations.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, stored.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.std, stored.std(axis=0), rtol=1e-6)


def statistics_of(values: Any) -> Any:
    return compute_observation_statistics(make_trajectories([len(values)], observations=values))


def test_a_large_offset_costs_no_precision() -> None:
    # Naive float32 sums of squares would be off by more than the spread itself.
    statistics = statistics_of(np.tile([[4096.0], [4097.0]], (100_000, 3)))
    assert (statistics.mean.tolist(), statistics.std.tolist()) == ([4096.5] * 3, [0.5] * 3)


def test_dimensions_that_hardly_vary() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)) * [0, 1, 1e-7]  # a small unit is none
    std = statistics_of(values).std
    assert std[0] == 1.0
    np.testing.assert_allclose(std[1:], values.std(axis=0)[1:], rtol=1e-5)
    for constant in (np.full((50, 3), 0.1), values[:1]):
        assert statistics_of(constant).std.tolist() == [1.0] * 3
