"""What a cell is called, and that the same name is the same cell."""

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
from sb3_dmamba.experiments import runs as folder_module
from sb3_dmamba.experiments.runs import (
    DataSource,
    EvaluationPlan,
    Run,
    RunFolder,
    compute_fingerprint,
)
from sb3_dmamba.tasks import Task
from tests.experiments.toys import cartpole_data, changed

CELL = Run(
    data=DataSource("somewhere", {"reward_mode": "delayed"}, "f1"),
    task=Task("toy", env_id="CartPole-v1", target_returns=(1.0,)),
    config=DecisionMambaConfig(hidden_size=8),
    seed=3,
    evaluation=EvaluationPlan((5.0, 10.0), 4),
    label="toy, mamba, seed 3",
)


def test_the_same_cell_has_the_same_name_in_every_process() -> None:
    # Written down: a change of the format would train every finished cell again.
    assert CELL.key == "67ca21511c2cfcb7"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"config": DecisionMambaConfig(hidden_size=16)},
        {"data": DataSource("somewhere", {}, "f2")},
        {"task": Task("toy", env_id="CartPole-v0")},
        {"task": Task("toy", env_id="CartPole-v1", env_kwargs={"sutton_barto_reward": True})},
        {"task": Task("toy", env_id="CartPole-v1", clip_rewards=True)},
        {"evaluation": EvaluationPlan((5.0,), 4)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 5)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, ("stream",))},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, every=7)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, seed=1)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, deterministic=False)},
        {"evaluation": EvaluationPlan((5.0, 10.0), 4, max_episode_steps=9)},
    ],
    ids=str,
)
def test_whatever_decides_the_result_makes_another_cell(changes: dict[str, Any]) -> None:
    assert changed(CELL, **changes).key != CELL.key


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "another name"},
        {"data": DataSource("elsewhere", {"reward_mode": "delayed"}, "f1")},
        {"task": Task("renamed", env_id="CartPole-v1", description="the same environment")},
    ],
    ids=str,
)
def test_names_and_places_do_not(changes: dict[str, Any]) -> None:
    assert changed(CELL, **changes).key == CELL.key


def test_settings_at_their_defaults_are_not_part_of_the_name() -> None:
    assert CELL.identity()["config"] == {"hidden_size": 8}


def test_a_cell_survives_json() -> None:
    again = Run.from_dict(json.loads(json.dumps(CELL.to_dict())))
    assert again == CELL
    assert again.label == CELL.label
    assert again.key == CELL.key


@pytest.mark.parametrize("fields", [{}, {"format": 2}, {"format": 1, "seed": 3}])
def test_another_version_s_cell_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"format|not a run"):
        Run.from_dict(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_returns": ()},
        {"target_returns": (1.0, 1.0)},
        {"memories": ()},
        {"n_episodes": 0},
        {"every": -1},
        {"seed": -1},
        {"n_episodes": True},
        {"n_episodes": np.float64(4.0)},
        {"max_episode_steps": 0},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        EvaluationPlan(**{"target_returns": (1.0,), "n_episodes": 1, **changes})


def test_numpys_integers_make_the_same_cell() -> None:
    four, nine, zero = (np.array([4, 9, 0])[place] for place in range(3))
    plan = EvaluationPlan((5.0,), four, every=nine, seed=zero, max_episode_steps=nine)
    plain = EvaluationPlan((5.0,), 4, every=9, seed=0, max_episode_steps=9)
    assert plan == plain
    config = DecisionMambaConfig().replace(hidden_size=np.int64(8))
    cell = changed(CELL, evaluation=plan, config=config)
    assert cell.key == changed(CELL, evaluation=plain).key
    assert json.loads(json.dumps(cell.to_dict())) == changed(CELL, evaluation=plain).to_dict() | {
        "evaluation": json.loads(json.dumps(cell.to_dict()["evaluation"]))
    }


@pytest.mark.parametrize(
    ("every", "expected"), [(0, [10]), (4, [4, 8, 10]), (5, [5, 10]), (10, [10]), (11, [10])]
)
def test_the_last_weights_are_always_evaluated(every: int, expected: list[int]) -> None:
    assert EvaluationPlan((1.0,), 1, every=every).evaluated_updates(10) == expected


def test_a_changed_default_is_found_out(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path, CELL)
    fields = json.loads(folder.description.read_text())
    fields["config"]["dropout"] = 0.4  # as if the default had been this when it was trained
    folder.description.write_text(json.dumps(fields))
    with pytest.raises(ExperimentError, match=r"dropout.*0\.4.*0\.1.*--cells"):
        RunFolder.prepare(tmp_path, CELL)


def test_a_description_says_where_the_data_lies_now(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path, CELL)
    moved = changed(CELL, data=changed(CELL.data, source="elsewhere"))
    assert RunFolder.prepare(tmp_path, moved).read_run().data.source == "elsewhere"


def test_a_folder_without_a_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=str(tmp_path)):
        RunFolder(tmp_path).read_run()
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(ExperimentError, match="cannot be read"):
        RunFolder(tmp_path).read_run()


def test_a_result_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="not done"):
        RunFolder(tmp_path).read_result()
    (tmp_path / "result.json").write_text('{"losses": []}')
    with pytest.raises(ExperimentError, match="delete it"):
        RunFolder(tmp_path).read_result()


# --- Fingerprints --------------------------------------------------------------------------------


def test_the_same_data_has_the_same_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    data = cartpole_data()
    data.save(tmp_path / "store")
    mapped = Trajectories.open(tmp_path / "store")
    assert compute_fingerprint(mapped) == compute_fingerprint(data)
    assert compute_fingerprint(changed(data, source="another")) == compute_fingerprint(data)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminated", "truncated"])
def test_any_value_changes_the_fingerprint(name: str) -> None:
    data = cartpole_data()
    values = np.array(getattr(data, name))
    values[-1] = 1 - values[-1]
    others = {"terminated": data.terminated} if name != "terminated" else {}
    assert compute_fingerprint(changed(data, **{**others, name: values})) != compute_fingerprint(
        data
    )


def test_episodes_and_the_environment_change_it_too() -> None:
    data = cartpole_data()
    offsets = np.array(data.episode_offsets)
    offsets[1] += 1
    for changes in ({"episode_offsets": offsets}, {"env_id": "CartPole-v0"}):
        assert compute_fingerprint(changed(data, **changes)) != compute_fingerprint(data)


def test_large_data_is_hashed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_dmamba.experiments import runs as fingerprint

    whole = compute_fingerprint(cartpole_data())
    monkeypatch.setattr(fingerprint, "_CHUNK_BYTES", 50)
    assert compute_fingerprint(cartpole_data()) == whole


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_works_on_a_cell_and_a_killed_one_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_LOCK_SECONDS", 0.05)
    folder = RunFolder(tmp_path / "cell")
    with folder.locked():
        assert folder.path.is_dir()
    command = [sys.executable, "-c", HOLD, str(folder.path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        def give_up() -> None:
            raise SystemExit("nobody waits for this any more")

        with pytest.raises(SystemExit, match="nobody waits"), folder.locked(give_up):
            pytest.fail("two processes have the cell")
        waits = []

        def kill() -> None:
            waits.append(other.poll())
            other.kill()

        with folder.locked(kill):
            assert waits
            assert waits[0] is None  # it held the lock until it was killed
