"""Observation statistics, and the report of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from sb3_dmamba.data import Trajectories, compute_observation_statistics, load_trajectories
from sb3_dmamba.data import validation as _checks
from sb3_dmamba.data.inspection import DatasetIssue, DatasetReport, Histogram, inspect_dataset
from sb3_dmamba.errors import DatasetError

Make = Callable[..., Trajectories]


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


def test_actions_that_are_not_finite() -> None:
    issue = find(changed("actions", (6, 0), np.nan), "non_finite")
    assert issue.message.startswith("actions hold NaN or infinities at 1 step of 1 episode (1)")
    with pytest.raises(DatasetError, match="the action space cannot be inferred"):
        inspect_dataset(changed("actions", (6, 0), 1.5))


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
def test_duplicate_episodes(
    make_trajectories: Make, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", chunk)
    data = make_trajectories([3, 4, 3], terminated=np.ones(3, bool), truncated=np.zeros(3, bool))
    issue = find(data[[0, 1, 0, 2, 1, 0]], "duplicate_episodes")
    assert (issue.count, issue.where) == (3, (2, 4, 5))
    assert "3 episodes of 6 repeat an earlier one" in issue.message


def test_episodes_that_are_nearly_alike_are_no_duplicates(make_trajectories: Make) -> None:
    whole = make_trajectories([3, 3], terminated=np.ones(2, bool), truncated=np.zeros(2, bool))
    twice = whole[[0, 0, 1]]
    for name in ("observations", "actions", "rewards"):
        other = twice[:].__class__(**{**vars_of(twice), name: getattr(twice, name).copy()})
        getattr(other, name).reshape(9, -1)[4, 0] += 0.01
        assert inspect_dataset(other).oddities == ()
    ends = Trajectories(**{**vars_of(twice), "truncated": np.array([False, True, False])})
    assert inspect_dataset(ends).oddities == ()
    assert len(inspect_dataset(twice).oddities) == 1


def vars_of(data: Trajectories) -> dict[str, Any]:
    return {name: getattr(data, name) for name in Trajectories.__dataclass_fields__}


def test_long_lists_are_shortened() -> None:
    source = arrays(terminals=np.ones(8), timeouts=np.zeros(8))
    issue = find(source, "single_step_episodes")
    assert len(issue.where) == 8
    long = {name: np.concatenate([value, value + 0.01]) for name, value in arrays().items()}
    long |= {"actions": long["actions"] / 2, "terminals": np.ones(16), "timeouts": np.zeros(16)}
    assert "(0, 1, 2, 3, 4, 5, 6, 7, ...)" in find(long, "single_step_episodes").message


def test_a_store_is_inspected_without_loading_it(make_trajectories: Make, tmp_path: Path) -> None:
    data = make_trajectories([3, 4, 5])
    data.save(tmp_path / "store")
    report = inspect_dataset(tmp_path / "store")
    assert report.summary.returns == data.summary().returns
    assert [issue.kind for issue in report.oddities] == ["cut_episodes"]
    assert inspect_dataset(data, top_fraction=0.4).summary.episodes == 1  # options are passed on


def test_histograms() -> None:
    returns = np.array([0.0, 1.0, 1.0, 12.0])
    histogram = Histogram.of(returns)
    assert sum(histogram.counts) == 4
    assert histogram.counts[:2] == (1, 2)
    assert histogram.counts[-1] == 1
    assert histogram.edges == tuple(float(edge) for edge in range(13))
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
        assert "episodes" in text
        assert "neither terminated nor truncated" in text
        assert "█" in text
    assert isinstance(report, DatasetReport)
    found = report.to_dict()
    assert found["oddities"][0]["kind"] == "cut_episodes"
    assert sum(found["returns"]["counts"]) == found["summary"]["episodes"] == 2


# --- Statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 26])
def test_agrees_with_numpy_in_any_chunks(
    make_trajectories: Make, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(_checks, "CHUNK_BYTES", chunk_bytes)
    values = np.random.default_rng(0).normal([0.0, 1e4, -3.0], [1.0, 0.5, 1e-3], (700, 3))
    data = make_trajectories([300, 400], observations=values)
    statistics = compute_observation_statistics(data)
    assert statistics is not None
    assert statistics.mean.dtype == statistics.std.dtype == np.float32
    stored = data.observations.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, stored.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.std, stored.std(axis=0), rtol=1e-6)


def test_a_large_offset_costs_no_precision(make_trajectories: Make) -> None:
    # Naive float32 sums of squares would be off by more than the spread itself.
    values = np.tile([[4096.0], [4097.0]], (100_000, 3))
    statistics = compute_observation_statistics(make_trajectories([200_000], observations=values))
    assert statistics is not None
    assert statistics.mean.tolist() == [4096.5] * 3
    assert statistics.std.tolist() == [0.5] * 3


def test_dimensions_that_hardly_vary(make_trajectories: Make) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)) * [0, 1, 1e-7]  # a small unit is none
    statistics = compute_observation_statistics(make_trajectories([50], observations=values))
    assert statistics is not None
    assert statistics.std[0] == 1.0
    np.testing.assert_allclose(statistics.std[1:], values.std(axis=0)[1:], rtol=1e-5)
    constant = compute_observation_statistics(
        make_trajectories([50], observations=np.full((50, 3), 0.1))
    )
    one_step = compute_observation_statistics(make_trajectories([1]))
    assert constant is not None
    assert one_step is not None
    assert constant.std.tolist() == one_step.std.tolist() == [1.0] * 3


def test_images_have_none(make_trajectories: Make) -> None:
    frames = np.zeros((4, 40, 40, 3), dtype=np.uint8)
    space = spaces.Box(0, 255, frames.shape[1:], np.uint8)
    data = make_trajectories([4], observations=frames, observation_space=space)
    assert compute_observation_statistics(data) is None
