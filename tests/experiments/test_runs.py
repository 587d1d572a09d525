"""Runs: keys, folders, fingerprints of data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, ExperimentError
from sb3_dmamba.experiments import runs
from sb3_dmamba.experiments.runs import (
    DataSource,
    EvaluationPlan,
    Run,
    RunFolder,
    compute_fingerprint,
)
from sb3_dmamba.tasks import Task
from tests.experiments.toys import cartpole_data, changed

RUN = Run(
    data=DataSource("somewhere", {"reward_mode": "delayed"}, "f1"),
    task=Task("toy", env_id="CartPole-v1", target_returns=(1.0,)),
    config=DecisionMambaConfig.from_recipe("paper", hidden_size=8),
    seed=3,
    evaluation=EvaluationPlan((5.0, 10.0), 4),
    label="toy, mamba, seed 3",
)


def test_the_key_of_a_run_is_the_same_in_every_version() -> None:
    # Written down: a change of the format would train every finished run again.
    assert RUN.key == "67ca21511c2cfcb7"
    assert RUN.identity()["config"] == {"hidden_size": 8}  # defaults are left out


def test_everything_that_decides_the_result_changes_the_key() -> None:
    different: list[dict[str, Any]] = [
        {"seed": 4},
        {"config": DecisionMambaConfig.from_recipe("paper", hidden_size=16)},
        {"data": DataSource("somewhere", {}, "f2")},
        {"task": Task("toy", env_id="CartPole-v0")},
        {"task": Task("toy", env_id="CartPole-v1", env_kwargs={"sutton_barto_reward": True})},
        {"task": Task("toy", env_id="CartPole-v1", clip_rewards=True)},
        {"algorithm": "d3rlpy:BC"},
        {"algorithm": "d3rlpy:BC", "algorithm_settings": {"batch_size": 8}},
        {"evaluation": EvaluationPlan((5.0,), 4)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 5)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, ("stream",))},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, every=7)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, seed=1)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, deterministic=False)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, max_episode_steps=9)},
    ]
    assert len({RUN.key, *(changed(RUN, **each).key for each in different)}) == len(different) + 1
    alike: list[dict[str, Any]] = [
        {"label": "another name"},
        {"data": DataSource("elsewhere", {"reward_mode": "delayed"}, "f1")},
        {"task": Task("renamed", env_id="CartPole-v1", description="the same environment")},
    ]
    assert {changed(RUN, **each).key for each in alike} == {RUN.key}


def test_a_run_survives_json() -> None:
    again = Run.from_dict(json.loads(json.dumps(RUN.to_dict())))
    assert (again, again.label, again.key) == (RUN, RUN.label, RUN.key)
    peer = changed(RUN, algorithm="d3rlpy:BC", algorithm_settings={"batch_size": 8})
    assert Run.from_dict(json.loads(json.dumps(peer.to_dict()))) == peer
    fields: dict[str, Any]
    for fields in ({}, {"format": 2}, {"format": 1, "seed": 3}):
        with pytest.raises(ConfigError):
            Run.from_dict(fields)


def test_impossible_evaluations_are_refused() -> None:
    mistakes: list[tuple[str, Any]] = [
        ("target_returns", ()),
        ("target_returns", (1.0, 1.0)),
        ("memories", ()),
        ("n_episodes", 0),
        ("every", -1),
        ("seed", -1),
        ("max_episode_steps", 0),
    ]
    for name, value in mistakes:
        with pytest.raises(ConfigError) as caught:
            EvaluationPlan(**{"target_returns": (1.0,), "n_episodes": 1, name: value})
        assert (caught.value.setting, caught.value.value) == (name, value)


def test_the_last_weights_are_always_evaluated() -> None:
    for every, expected in {0: [10], 4: [4, 8, 10], 5: [5, 10], 10: [10], 11: [10]}.items():
        assert EvaluationPlan((1.0,), 1, every=every).evaluated_updates(10) == expected


def test_a_folder_trained_under_another_default_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path, RUN)
    fields = json.loads(folder.description.read_text())
    fields["config"]["dropout"] = 0.4  # as if the default had been this when it was trained
    folder.description.write_text(json.dumps(fields))
    with pytest.raises(ExperimentError, match=r"dropout.*0\.4.*0\.1") as caught:
        RunFolder.prepare(tmp_path, RUN)
    assert caught.value.setting == "cells"


def test_a_description_says_where_the_data_lies_now(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path, RUN)
    moved = changed(RUN, data=changed(RUN.data, source="elsewhere"))
    assert RunFolder.prepare(tmp_path, moved).read_run().data.source == "elsewhere"


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ExperimentError, match=str(tmp_path)):
        folder.read_run()
    folder.description.write_text("{")
    with pytest.raises(ExperimentError, match=r"cell\.json cannot be read"):
        folder.read_run()
    with pytest.raises(ExperimentError, match="not done"):
        folder.read_result()
    folder.result.write_text('{"losses": []}')
    with pytest.raises(ExperimentError, match="delete it"):
        folder.read_result()


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_has_a_run_and_a_killed_one_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_LOCK_SECONDS", 0.05)
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        assert folder.path.is_dir()
    command = [sys.executable, "-c", HOLD, str(folder.path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        def give_up() -> None:
            raise SystemExit("nobody waits for this any more")

        with pytest.raises(SystemExit, match="nobody waits"), folder.locked(give_up):
            pytest.fail("two processes have the run")
        waits = []

        def kill() -> None:
            waits.append(other.poll())
            other.kill()

        with folder.locked(kill):
            assert waits
            assert waits[0] is None  # it held the lock until it was killed


def test_the_same_data_has_the_same_fingerprint_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cartpole_data()
    fingerprint = compute_fingerprint(data)
    data.save(tmp_path / "store")
    assert compute_fingerprint(Trajectories.open(tmp_path / "store")) == fingerprint
    assert compute_fingerprint(changed(data, source="another")) == fingerprint
    monkeypatch.setattr(runs, "_CHUNK_BYTES", 50)
    assert compute_fingerprint(data) == fingerprint


def test_any_other_value_changes_the_fingerprint() -> None:
    data = cartpole_data()
    others = [changed(data, env_id="CartPole-v0")]
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        values = np.array(getattr(data, name))
        values[-1] = 1 - values[-1]
        others.append(changed(data, **{name: values}))
    offsets = np.array(data.episode_offsets)
    offsets[1] += 1
    others.append(changed(data, episode_offsets=offsets))
    assert len({compute_fingerprint(each) for each in [data, *others]}) == len(others) + 1
