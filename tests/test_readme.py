"""What the README and the page on datasets show runs as it stands, with smaller numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sb3_dmamba.tasks import get_task

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
DATASETS = (README.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
SMALLER = {"n_updates=1200": "n_updates=2", "n_updates=100": "n_updates=2"}
SMALLER |= {"n_episodes=50": "n_episodes=1", "range(1000)": "range(3)"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT + DATASETS, flags=re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cheetah" in code:
        pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    monkeypatch.chdir(tmp_path)
    for full, small in SMALLER.items():
        code = code.replace(full, small)
    exec(compile(code, str(README), "exec"), {})


def test_the_rest_of_the_readme() -> None:
    assert all(full in TEXT for full in SMALLER)
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / link).exists(), link
    for task in re.findall(r"^dmamba train ([^-\s]\S*)", TEXT + DATASETS, re.MULTILINE):
        get_task(task)
