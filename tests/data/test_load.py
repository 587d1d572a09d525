from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.sources import SOURCES
from sb3_dmamba.errors import DatasetError

Make = Callable[..., Trajectories]


def test_trajectories_come_back(make_trajectories: Make) -> None:
    data = make_trajectories([2])
    assert load_trajectories(data) is data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (42, "a builtins.int is not a known dataset"),
        (None, "a builtins.NoneType is not a known"),
        (np.zeros(3), "a numpy.ndarray is not a known"),
    ],
)
def test_objects_of_another_kind(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_trajectories(source)
    for row in SOURCES:
        assert (row.accepts in str(caught.value)) == (row.kind == "object")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no/such.hdf5", "there is no file or folder './no/such.hdf5' in {folder}"),
        (Path("nowhere"), "there is no file or folder 'nowhere' in {folder}"),
        ("data/hoper.hdf5", "'data/hoper.hdf5' in {folder} (near names there: data/hopper.hdf5)"),
        ("dat/hopper.hdf5", "'dat/hopper.hdf5' in {folder} (near names there: {folder}/data)"),
        ("{folder}/x.pkl", "there is no file or folder '{folder}/x.pkl'"),
    ],
)
def test_paths_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | Path, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "hopper.hdf5").touch()
    if isinstance(source, str):
        source = source.format(folder=tmp_path)
    with pytest.raises(DatasetError) as caught:
        load_trajectories(source)
    assert str(caught.value).endswith(message.format(folder=tmp_path))


def test_names_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"no file or folder 'hopper' in .*no dataset is called"):
        load_trajectories("hopper")
    with pytest.raises(DatasetError, match=r"names are a D4RL name .*; a Minari id"):
        load_trajectories("hopper")


def test_a_folder_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DatasetError, match=r"there is no file or folder 'nothing\.pkl' in .*"):
        load_trajectories("nothing.pkl")


def test_files_and_folders_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    with pytest.raises(
        DatasetError, match=r"the file '.*data.csv' is not a known dataset"
    ) as caught:
        load_trajectories(tmp_path / "data.csv")
    for row in SOURCES:
        assert (row.accepts in str(caught.value)) == (row.kind == "path")
    with pytest.raises(DatasetError, match=r"the folder '.*' is not a known dataset"):
        load_trajectories(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({}, {"env": 1}, "no option of a dict of flat arrays .* 'env': did you mean 'env_id'"),
        ({}, {"zzz": 1}, "takes observation_space, action_space, env_id, env_kwargs, name"),
        ("a/b-v0", {"env_id": "x"}, "no option of a Minari id .* 'env_id': it takes download"),
    ],
)
def test_options_that_do_not_exist(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_trajectories(source, **options)


def test_no_options_with_trajectories(make_trajectories: Make) -> None:
    with pytest.raises(DatasetError, match="no option of Trajectories is called 'env_id'"):
        load_trajectories(make_trajectories([2]), env_id="x")


@pytest.mark.parametrize("row", SOURCES, ids=lambda row: row.loader)
def test_every_row_loads(row: Any) -> None:
    assert callable(row.import_loader())


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
