"""The catalogue; ``d4rl`` and ``atari`` from end to end, on stand-in files of the right format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.experiments import engines
from sb3_dmamba.experiments import report as module
from sb3_dmamba.experiments.catalogue import (
    Experiment,
    get_experiment,
    list_experiments,
    list_small_tasks,
)
from sb3_dmamba.experiments.grid import execute_run
from sb3_dmamba.experiments.plan import Request, _make_config
from sb3_dmamba.experiments.plan import _with_recipe as with_recipe
from sb3_dmamba.experiments.runs import RunFolder
from sb3_dmamba.tasks import get_task
from tests.data import dqn_files
from tests.experiments.toys import changed

REQUEST = Request(cells=Path("unused"))
D4RL = {"hopper": (11, 3), "walker2d": (17, 6)}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute runs here, and draw nothing."""

    def run_here(folders: list[RunFolder], *_: Any) -> dict[str, str]:
        for folder in folders:
            execute_run(folder.path, "cpu")
        return {}

    monkeypatch.setattr(engines, "execute_runs", run_here)
    monkeypatch.setattr(module, "_PLOTS", {})


def the(name: str) -> Experiment:
    found = get_experiment(name)
    assert isinstance(found, Experiment)
    return found


def write_d4rl(path: Path, robot: str) -> Path:
    """Write three episodes of noise as D4RL keeps them."""
    rng = np.random.default_rng(0)
    n_observations, n_actions = D4RL[robot]
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(60, n_observations)).astype(np.float32)
        file["actions"] = rng.uniform(-0.9, 0.9, size=(60, n_actions)).astype(np.float32)
        file["rewards"] = rng.uniform(1, 3, size=60).astype(np.float32)
        file["terminals"] = np.arange(60) % 20 == 19
        file["timeouts"] = np.zeros(60, dtype=bool)
    return path


def write_breakout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ten episodes of noise as the DQN replay keeps them; skips where nothing plays games."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    monkeypatch.setattr(dqn_files, "FRAME", (84, 84))
    recorder = dqn_files.Recorder(folder / "Breakout" / "1" / "replay_logs", 60)
    for seed, length in enumerate([12, 15, 14, 13, 12, 15, 9, 12, 13, 15]):
        recorder.play(dqn_files.Played.random(length, seed))
    return folder / "Breakout"


def test_every_variant_has_its_own_config_on_every_task() -> None:
    small = {task.name: task for task in list_small_tasks()}
    for experiment in list_experiments():
        for name in experiment.tasks:
            task = small.get(name) or get_task(name)
            planned = [
                (
                    _make_config(with_recipe(task, variant), experiment, variant, REQUEST, None)
                    if not variant.algorithm
                    else (variant.algorithm, repr(variant.settings)),
                    repr(variant.data_options),
                )
                for variant in experiment.variants.values()
            ]
            assert len(set(planned)) == len(planned), experiment.name


def test_experiments_are_found_by_name() -> None:
    assert get_experiment("mixers").name == "mixers"
    for name, hint in (("mixer", "did you mean 'mixers'"), ("zzz", "there are mixers")):
        with pytest.raises(ConfigError, match=hint) as caught:
            get_experiment(name)
        assert (caught.value.setting, caught.value.value) == ("experiment", name)
        assert "mixers" in caught.value.choices
    with pytest.raises(ConfigError):
        changed(the("mixers"), variants={})


def test_medium_expert_is_joined_by_name_and_a_file_is_what_it_is() -> None:
    options = the("d4rl").data_options
    name = "hopper-medium-expert-v2"
    assert options(name, name, 12) == {"medium_expert": "paper"}
    assert options(name, "my.hdf5", 12) == {}
    assert options("hopper-medium-v2", "hopper-medium-v2", 12) == {}


def test_d4rl_runs_from_files_to_the_table(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    names = ("hopper-medium-v2", "walker2d-medium-replay-v2")
    files = [write_d4rl(tmp_path / f"{name}.hdf5", name.split("-")[0]) for name in names]
    request = Request(
        cells=tmp_path / "cells",
        data=tuple(f"{name}={path}" for name, path in zip(names, files, strict=True)),
        seeds=(12, 23),
        n_updates=4,
        n_episodes=1,
        evaluations=2,
        max_episode_steps=6,
        target_returns=(1800.0, 3600.0),
        settings={"hidden_size": 8, "n_layers": 1, "d_state": 2, "context_length": 3},
    )
    engines.run_experiment(the("d4rl"), request, tmp_path / "out", "dmamba experiment d4rl")
    text = (tmp_path / "out" / "report.md").read_text()
    table = text.split("### Beside what others report")[1].split("###")[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert "mamba, last" in rows["task"]
    assert rows["hopper-medium-v2"].endswith("| 67.6 | 83.5 ± 12.5 |")
    assert rows["walker2d-medium-replay-v2"].endswith("| 66.6 | 70.9 |")
    assert "all (interquartile mean)" in rows
    assert "optimistic" in text


def test_atari_runs_from_replay_files_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(
        cells=tmp_path / "cells",
        data=(f"breakout={write_breakout(tmp_path, monkeypatch)}",),
        seeds=(123, 231),
        n_updates=2,
        n_episodes=1,
        evaluations=1,
        max_episode_steps=6,
        target_returns=(5.0,),
        settings={
            "hidden_size": 8,
            "n_layers": 1,
            "d_state": 2,
            "context_length": 3,
            "batch_size": 4,
        },
        data_options={"n_buffers": 2, "n_steps": 40, "trajectories_per_buffer": 1},
    )
    engines.run_experiment(the("atari"), request, tmp_path / "out", "dmamba experiment atari")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 76.9 | 70.6 |" in text
    fingerprints = {
        RunFolder(path).read_run().data.fingerprint
        for path in (tmp_path / "cells").iterdir()
        if path.name != "data"
    }
    assert len(fingerprints) == 2  # each seed draws its own episodes
    stores = list((tmp_path / "cells" / "data").iterdir())
    assert len(stores) == 2
    assert all((store / "trajectories.json").is_file() for store in stores)
