from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data.sources import SOURCES
from tests.data.builders import make_trajectories, refusal


def test_objects_of_another_kind() -> None:
    for source in (42, None, np.zeros(3)):
        error = refusal(source)
        assert (error.setting, error.value) == ("source", type(source))
        for row in SOURCES:
            assert (row.accepts in str(error)) == (row.kind == "object")


def test_paths_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "hopper.hdf5").touch()
    cases: list[tuple[str | Path, str]] = [
        ("./no/such.hdf5", f"there is no file or folder './no/such.hdf5' in {tmp_path}"),
        (Path("nowhere"), f"there is no file or folder 'nowhere' in {tmp_path}"),
        ("data/hoper.hdf5", "(near names there: data/hopper.hdf5)"),
        ("dat/hopper.hdf5", f"(near names there: {tmp_path}/data)"),
        (f"{tmp_path}/x.pkl", f"there is no file or folder '{tmp_path}/x.pkl'"),
    ]
    for source, message in cases:
        error = refusal(source)
        assert str(error).endswith(message)
        assert error.path == str(source)

    def refuse(self: Path) -> Any:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)  # a folder that may not be listed
    assert "there is no file or folder 'nothing.pkl'" in str(refusal("nothing.pkl"))
    name = refusal("hopper-medium")  # that is none
    assert name.choices[0].startswith("hopper-medium")
    assert all((row.accepts in str(name)) == (row.kind == "name") for row in SOURCES)


def test_files_and_folders_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    for source in (tmp_path / "data.csv", str(tmp_path)):
        error = refusal(source)
        assert (error.setting, error.path) == ("source", str(source))
        for row in SOURCES:
            assert (row.accepts in str(error)) == (row.kind == "path")


def test_options_that_do_not_exist() -> None:
    cases: list[tuple[Any, str, str]] = [
        ({}, "env", "did you mean 'env_id'?"),
        ({}, "zzz", "max_episode_steps, no_time_limit, name, reward_mode, top_fraction"),
        (
            "a/b-v0",
            "env_id",
            "download, observation_space, action_space, reward_mode, top_fraction",
        ),
        (
            make_trajectories([2]),
            "env_id",
            "it takes reward_mode, top_fraction, observation_space, action_space",
        ),
    ]
    for source, name, hint in cases:
        error = refusal(source, **{name: 1})
        assert (error.setting, error.value) == (name, 1)
        assert str(error).endswith(hint)


def test_every_row_loads() -> None:
    assert all(callable(row.import_loader()) for row in SOURCES)


def test_sources_are_imported_when_used() -> None:
    code = """
import sys
import stable_baselines3.common.preprocessing
before = set(sys.modules)
from sb3_dmamba.data import load_trajectories
load_trajectories({"observations": [[0.0]], "actions": [0], "rewards": [0.0], "terminals": [1]})
print(sorted(n for n in ("minari", "h5py", "PIL.Image") if n in set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
