"""``dmamba doctor``: its checks, what counts as broken, and the speed check."""

from __future__ import annotations

import importlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from typer.testing import CliRunner

from sb3_dmamba import doctor
from sb3_dmamba.cli import app
from sb3_dmamba.doctor import (
    Backend,
    Package,
    check_backends,
    find_packages,
    find_places,
    find_problems,
    measure_speed,
    why_no_bundled_dataset,
)
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.machine import advise_threads, describe_cpu, describe_machine
from sb3_dmamba.ops import available_backends, explain_backends

REQUIREMENTS = [
    "numpy>=1",
    "absent-package>=2",
    "torch>=999",
    "rich; extra == 'video'",
    "absent-extra>=3; extra == 'video'",
    "absent-tool; extra == 'dev'",
]


WORKING = [Backend("cpu", "cpu", True, None, 0.0)]
NUMPY = Package("numpy", "", "2.0", None, True)


@pytest.fixture
def _requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    about: Any = metadata.metadata("numpy")
    for name in ("video", "dev"):
        about["Provides-Extra"] = name
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)


@pytest.mark.usefixtures("_requirements")
def test_packages_of_the_distribution() -> None:
    torch_version = metadata.version("torch")
    assert [(each.name, each.extra, each.lack, each.remedy) for each in find_packages()] == [
        ("numpy", None, None, None),
        ("absent-package", None, "is not installed", 'pip install "absent-package>=2"'),
        (*("torch", None, f"is {torch_version}, and >=999 is needed"), 'pip install "torch>=999"'),
        ("rich", "video", None, None),
        ("absent-extra", "video", "is not installed", 'pip install "sb3-dmamba[video]"'),
    ]


def test_mamba_ssm_is_built_with_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("mamba-ssm", ">=2.2", None, "cuda", False)
    for path, needs in ((None, True), ("/usr/bin/nvcc", False)):
        monkeypatch.setattr("shutil.which", lambda _, path=path: path)
        assert package.remedy is not None
        assert package.remedy.startswith('pip install "sb3-dmamba[cuda]"')
        assert ("nvcc" in package.remedy) is needs


@pytest.mark.usefixtures("_requirements")
def test_missing_packages_are_problems_and_missing_extras_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "check_backends", lambda device: WORKING)
    monkeypatch.setenv("COLUMNS", "200")
    text = CliRunner().invoke(app, ["doctor", "--seconds", "0"]).stdout
    row = text[text.index(" video ") :].splitlines()
    assert f"rich {metadata.version('rich')}" in row[0]
    assert row[0].rstrip().endswith("absent-extra is not installed:")
    assert row[1].strip() == 'pip install "sb3-dmamba[video]"'
    result = CliRunner().invoke(app, ["doctor", "--seconds", "0", "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["speed"] is None
    assert [problem.split()[0] for problem in document["problems"]] == ["absent-package", "torch"]


def test_backends_are_run_beside_the_reference() -> None:
    found = {each.name: each for each in check_backends("cpu")}
    assert list(found) == list(explain_backends("cpu"))
    works = [name for name, each in found.items() if each.reason is None]
    assert set(available_backends("cpu")) <= set(works)
    assert [name for name, each in found.items() if each.is_auto] == available_backends("cpu")[:1]
    assert found["reference"].max_error == 0.0
    error = found["cpu"].max_error
    assert error is not None
    assert 0.0 < error < 1e-4


@pytest.mark.parametrize("how", ["wrong", "failing"])
def test_a_broken_backend(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = importlib.import_module("sb3_dmamba.ops.dispatch")
    right = dispatch.get_implementation("selective_scan", "traceable", "cpu")

    def wrong(*arguments: Any) -> Any:
        if how == "failing":
            raise RuntimeError("no such kernel\nand more")
        y, state = right(*arguments)
        return 1.01 * y, state

    key = ("selective_scan", "traceable", "cpu")
    monkeypatch.setitem(dispatch._implementations, key, wrong)
    (broken,) = [each for each in check_backends("cpu") if each.is_broken]
    assert broken.name == "traceable"
    assert broken.reason is not None
    assert ("no such kernel)" if how == "failing" else "off by") in broken.reason
    (problem,) = find_problems([NUMPY], [*WORKING, broken])
    assert problem.startswith("backend 'traceable' on 'cpu'")


def test_advice_about_threads() -> None:
    cases: list[tuple[int, float, Any, str]] = [  # threads, cores, load
        (2, 2, 0.1, "as many as are free"),
        (2, 2, 1.0, "set OMP_NUM_THREADS=1 while"),
        (1, 2, 5.8, "as many as are free"),
        (1, 8, 2.0, "OMP_NUM_THREADS=6 uses"),
        (8, 2.5, 0.0, "8 threads on 2.5 cores wait for each other: set OMP_NUM_THREADS=3"),
        (1, 4, None, "OMP_NUM_THREADS=4 uses"),
    ]
    for threads, cores, load, advice in cases:
        assert advice in advise_threads(threads, cores, load)


def test_a_container_s_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sb3_dmamba.machine")
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(module, "_QUOTA", quota)
    whole = describe_machine().cores
    for content, expected in (("50000 100000", 0.5), ("max 100000", whole), ("", whole)):
        quota.write_text(content, encoding="ascii")
        assert describe_machine().cores == expected


def test_places_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "minari" / "cartpole" / "tiny-v0" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_bytes(b"")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "not" / "there"))
    minari, d4rl = find_places()
    assert (minari.n_datasets, d4rl.n_datasets) == (1, 0)
    assert (minari.path, d4rl.path) == (str(tmp_path / "minari"), str(tmp_path / "not" / "there"))
    assert d4rl.is_writable
    assert d4rl.free_gib > 0
    assert not (tmp_path / "not").exists()  # looking makes nothing


def test_the_bundled_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_bundled_dataset() is None
    monkeypatch.setattr(doctor, "check_backends", lambda device: WORKING)
    monkeypatch.setattr(doctor, "find_packages", lambda: [NUMPY])
    failing = Mock(side_effect=DatasetError("it was cut off"))
    monkeypatch.setattr(doctor, "load_trajectories", failing)
    (problem,) = doctor.examine(1).problems
    assert "it was cut off" in problem


def test_the_speed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    speed = measure_speed(0.2, "cpu")
    assert torch.get_num_threads() == threads
    assert speed.device == "cpu"
    assert min(speed.updates, speed.window_steps, speed.stream_steps) > 0
    assert (speed.updates_on_one_thread is None) == (threads == 1)
    assert min(speed.products[name] for name in ("fp32", "bf16")) > 0
    monkeypatch.setattr(doctor, "check_backends", lambda device: WORKING)
    monkeypatch.setattr(doctor, "measure_speed", lambda *_: speed)
    result = CliRunner().invoke(app, ["doctor", "--seconds", "0.1"], env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.output
    for text in (
        "Machine",
        describe_cpu(),
        "GFLOP",
        "Packages",
        "Backends",
        "Datasets",
        "updates",
        "Nothing is broken.",
    ):
        assert text in result.stdout


def test_a_training_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_backends", lambda device: WORKING)
    failing = Mock(side_effect=RuntimeError("illegal instruction"))
    monkeypatch.setattr(doctor, "measure_speed", failing)
    found = doctor.examine(0.1)
    assert found.speed is None
    assert found.problems == ["training and acting fail (RuntimeError: illegal instruction)"]
