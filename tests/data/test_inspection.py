"""What is odd about a dataset, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.inspection import DatasetReport, Histogram, Oddity, inspect_dataset
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


def find(source: Any, kind: str) -> Oddity:
    """Return the only oddity, which is of that kind."""
    report = inspect_dataset(source)
    assert [oddity.kind for oddity in report.oddities] == [kind]
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
    oddity = find(source, "non_finite")
    assert (oddity.count, oddity.where) == (3, (1, 5, 7))
    assert "at 3 steps of 2 episodes (0, 1)" in oddity.message
    with pytest.raises(DatasetError):  # tolerance does not stay on
        load_trajectories(source)


def test_actions_that_are_not_finite() -> None:
    oddity = find(changed("actions", (6, 0), np.nan), "non_finite")
    assert oddity.message.startswith("actions hold NaN or infinities at 1 step of 1 episode (1)")
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


def test_tolerance_ends_with_an_error() -> None:
    with pytest.raises(DatasetError):
        inspect_dataset({})
    with pytest.raises(DatasetError, match="is nan"):
        load_trajectories(changed("rewards", 0, np.nan))


def test_constant_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    oddity = find(changed("observations", np.s_[:, [0, 2]], 4.0), "constant_dimension")
    assert (oddity.count, oddity.where) == (2, (0, 2))
    assert "2 of 3 dimensions of observations never change (0, 2)" in oddity.message
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", 1)  # a step at a time
    oddity = find(changed("actions", np.s_[:, 1], 0.5), "constant_dimension")
    assert "1 of 2 dimensions of actions never change (1)" in oddity.message


def test_pixels_that_never_change_are_not_told_one_by_one() -> None:
    frames = np.zeros((8, 40, 40), np.uint8)
    frames[:, 0, 0] = np.arange(8)
    assert inspect_dataset(arrays(observations=frames)).oddities == ()


def test_actions_never_taken() -> None:
    source = arrays(actions=np.array([0, 3] * 4))
    oddity = find(source, "unused_actions")
    assert (oddity.count, oddity.where) == (2, (1, 2))
    report = inspect_dataset(
        arrays(actions=np.array([1, 2] * 4)), action_space=spaces.Discrete(3, start=1)
    )
    assert report.oddities[0].where == (3,)


def test_rewards_that_are_all_alike() -> None:
    assert "every reward is 2" in find(arrays(rewards=np.full(8, 2.0)), "constant_reward").message


def test_episodes_that_collection_cut() -> None:
    oddity = find(arrays(timeouts=np.zeros(8)), "cut_episodes")
    assert (oddity.count, oddity.where) == (1, (1,))
    assert "1 episode of 2 neither terminated nor truncated" in oddity.message


def test_episodes_of_one_step() -> None:
    oddity = find(arrays(terminals=np.isin(np.arange(8), (3, 4))), "single_step_episodes")
    assert (oddity.count, oddity.where) == (1, (1,))


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_duplicate_episodes(
    make_trajectories: Make, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("sb3_dmamba.data.validation.CHUNK_BYTES", chunk)
    data = make_trajectories([3, 4, 3], terminated=np.ones(3, bool), truncated=np.zeros(3, bool))
    oddity = find(data[[0, 1, 0, 2, 1, 0]], "duplicate_episodes")
    assert (oddity.count, oddity.where) == (3, (2, 4, 5))
    assert "3 episodes of 6 repeat an earlier one" in oddity.message


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
    oddity = find(source, "single_step_episodes")
    assert len(oddity.where) == 8
    long = {name: np.concatenate([value, value + 0.01]) for name, value in arrays().items()}
    long |= {"actions": long["actions"] / 2, "terminals": np.ones(16), "timeouts": np.zeros(16)}
    assert "(0, 1, 2, 3, 4, 5, 6, 7, ...)" in find(long, "single_step_episodes").message


def test_a_store_is_inspected_without_loading_it(make_trajectories: Make, tmp_path: Path) -> None:
    data = make_trajectories([3, 4, 5])
    data.save(tmp_path / "store")
    report = inspect_dataset(tmp_path / "store")
    assert report.summary.returns == data.summary().returns
    assert [oddity.kind for oddity in report.oddities] == ["cut_episodes"]


def test_options_are_passed_on(make_trajectories: Make) -> None:
    assert inspect_dataset(make_trajectories([3, 4, 5]), top_fraction=0.4).summary.episodes == 1


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
