"""``dmamba data``: what it prints where, what it writes, and how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from sb3_dmamba import d4rl
from sb3_dmamba.cli import app
from sb3_dmamba.cli.output import parse_options
from sb3_dmamba.data import load_trajectories
from tests.serving import serving


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every command in an empty folder, without a network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("SB3_DMAMBA_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, exit_code: int = 0) -> Result:
    """Run a command of ``dmamba data`` and check its exit code."""
    result = CliRunner().invoke(app, ["data", *arguments])
    assert result.exit_code == exit_code, f"{result.exception!r}\n{result.output}"
    return result


def write(path: Path, **changes: Any) -> Path:
    """Write twelve steps of a hopper as D4RL does: three episodes of four, the last one cut."""
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.normal(size=(12, 11)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (12, 3)).astype(np.float32),
        "rewards": np.arange(12.0, dtype=np.float32),
        "terminals": np.arange(12) == 3,
        "timeouts": np.arange(12) == 7,
    }
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in {**arrays, **changes}.items():
            file[key] = values
    return path


def test_info(tmp_path: Path) -> None:
    write(tmp_path / "hopper_medium-v2.hdf5")
    text = run("info", "hopper_medium-v2.hdf5").stdout
    for part in ("Hopper-v4", "Box(-inf, inf, (11,), float32)", "12", "█"):
        assert part in text
    assert re.search(r"1 episode of 3 neither terminated nor truncated", text)
    options = ("--option", "top_fraction=0.4", "--option", "env-id=Hopper-v5")
    document = json.loads(run("info", "hopper_medium-v2.hdf5", "--json", *options).stdout)
    assert document["summary"]["episodes"] == 1
    assert document["summary"]["env_id"] == "Hopper-v5"


def test_info_as_json(tmp_path: Path) -> None:
    observations = np.zeros((12, 11), np.float32)
    observations[2, 1] = np.nan
    observations[:, 0] = np.arange(12)
    write(tmp_path / "a.hdf5", observations=observations)
    result = run("info", "a.hdf5", "--json")
    document = json.loads(result.stdout)
    assert document["summary"]["episodes"] == 3
    assert sum(document["returns"]["counts"]) == 3
    kinds = {issue["kind"]: issue["count"] for issue in document["oddities"]}
    assert kinds == {"non_finite": 1, "constant_dimension": 10, "cut_episodes": 1}
    assert "NaN" in result.stderr  # the table


MISTAKES = [
    (["info", "nothing"], "DatasetError: .*'nothing'"),
    (["info", "broken.hdf5"], "DatasetError: broken.hdf5"),
    (["info", "a.hdf5", "--option", "zzz=1"], "DatasetError: no option"),
    (["info", "hopper-medium-v2"], r"is not downloaded .*put it at .*hopper_medium-v2.hdf5"),
    (["convert", "a.hdf5", "full"], "DatasetError: .*full"),
    (["convert", "a.hdf5", "store", "--option", "overwrite=true"], "overwrite is not an option"),
    (["download", "hopper-mediun-v2"], "did you mean 'hopper-medium-v2'"),
    (["download", "some/data-v0"], "SB3_DMAMBA_OFFLINE is set"),
    (["download", "some/data-v0", "--folder", "x"], "--folder is for D4RL's files"),
]


def test_errors_are_one_line_and_exit_with_1(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    (tmp_path / "broken.hdf5").write_bytes(b"no")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for arguments, message in MISTAKES:
        result = run(*arguments, "--json", exit_code=1)
        assert result.stdout == ""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", result.stderr).strip().splitlines()
        assert re.search(message, lines[-1]), lines
        assert "Traceback" not in result.stderr


def test_usage_errors_exit_with_2() -> None:
    for arguments in (
        ["info"],
        ["info", "a.hdf5", "--option", "top_fraction"],
        ["info", "a.hdf5", "--option", "x=1", "--option", "x=2"],
        ["convert", "a.hdf5"],
        ["nothing"],
    ):
        run(*arguments, exit_code=2)


def test_options_are_json_or_text() -> None:
    texts = ["a=0.1", "b=paper", 'c={"g": 9.8}', "d=true", "e=null", "f=x=y", "g-h="]
    found = {"a": 0.1, "b": "paper", "c": {"g": 9.8}, "d": True, "e": None, "f": "x=y", "g_h": ""}
    assert parse_options(texts) == found
    with pytest.raises(typer.BadParameter, match="is not a NAME=VALUE"):
        parse_options(["=3"])


def test_convert(tmp_path: Path) -> None:
    write(tmp_path / "hopper_medium-v2.hdf5")
    result = run("convert", "hopper_medium-v2.hdf5", "my stores/hopper")
    assert "3 episodes, 12 steps" in result.stdout
    assert "wrote my stores/hopper" in result.stdout
    assert "next: dmamba train Hopper-v4 --dataset 'my stores/hopper'" in result.stdout
    assert load_trajectories(tmp_path / "my stores" / "hopper").lengths.tolist() == [4, 4, 4]
    assert "12/12 steps" in result.stderr
    again = run("convert", "hopper_medium-v2.hdf5", "my stores/hopper", exit_code=1)
    assert "holds a store already" in again.stderr
    assert "--overwrite" in again.stderr


def test_convert_as_json(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    for _ in range(2):
        result = run(
            *("convert", "a.hdf5", "store", "--overwrite", "--json"),
            *("--option", "reward_mode=delayed"),
        )
    document = json.loads(result.stdout)
    assert document["dataset"]["steps"] == 12
    files = list((tmp_path / "store").iterdir())
    assert document["bytes"] == sum(file.stat().st_size for file in files)
    assert load_trajectories(tmp_path / "store").rewards[:4].tolist() == [0, 0, 0, 6]


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SB3_DMAMBA_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    here = write(tmp_path / "d4rl" / "hopper_expert-v2.hdf5")
    with serving() as server:
        server.content = here.read_bytes()
        server.drop_after = [len(server.content) // 2]
        monkeypatch.setattr(d4rl, "ADDRESS", f"http://127.0.0.1:{server.server_address[1]}")
        result = run("download", "hopper-expert-v2", "hopper-medium-v2")
        assert re.search(r"hopper-expert-v2 .* was there", result.stdout)
        assert re.search(r"hopper-medium-v2 .* downloaded", result.stdout)
        assert len(server.paths) == 2  # it broke off once
        new = tmp_path / "d4rl" / "hopper_medium-v2.hdf5"
        assert f"wrote {new}" in result.stdout
        assert "hopper_medium-v2.hdf5" in result.stderr  # the bar
        document = json.loads(
            run(
                "download", "hopper-medium-v2", "hopper-random-v2", "--json", "--folder", "x"
            ).stdout
        )
    assert [entry["path"] for entry in document] == [
        "x/hopper_medium-v2.hdf5",
        "x/hopper_random-v2.hdf5",
    ]
    assert all(entry["downloaded"] for entry in document)
    assert document[0]["bytes"] == len(server.content)
    assert len(load_trajectories("hopper-medium-v2")) == 3
