"""The cluster scripts hand their options on; Ray itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sb3_dmamba.errors import MissingDependencyError
from sb3_dmamba.experiments import engines as running
from sb3_dmamba.experiments.catalogue import get_experiment
from tests.experiments.toys import save_data
from tests.scripts import load_script

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = FOLDER / "ray_experiment.py"
    return load_script(path)


def test_an_experiment_goes_to_ray(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Any]] = []

    def execute_runs(folders: Any, engine: Any, console: Any) -> dict[str, str]:
        asked.append((len(folders), engine))
        return {}

    monkeypatch.setattr(running, "execute_runs", execute_runs)
    data = save_data(tmp_path / "data")
    arguments = f"mixers --data {data} --seeds 3 4 --updates 2 --device cuda --threads 2"
    options = example.parse_arguments([*arguments.split(), "--cells", str(tmp_path / "cells")])
    assert example.run(options) == []  # nothing is done, so there is nothing to report
    ((count, engine),) = asked
    assert count == 2 * len(get_experiment("mixers").variants)
    assert (engine.kind, engine.threads, engine.device) == ("ray", 2, "cuda")


def test_a_cluster_is_joined_only_where_one_is_named(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    ray = ModuleType("ray")
    ray.init = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    example.connect(None)
    assert calls == []
    example.connect("auto")
    assert calls == [{"address": "auto", "log_to_driver": False}]
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"sb3-dmamba\[ray\]"):
        example.connect("auto")
