"""What the README and the page on datasets show runs as it stands, with smaller numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from sb3_dmamba.cli import app
from sb3_dmamba.tasks import get_task

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
DATASETS = (README.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
SMALLER = {"n_updates=3000": "n_updates=2", "n_updates=100": "n_updates=2"}
SMALLER |= {"n_episodes=50": "n_episodes=1", "range(1000)": "range(3)"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT + DATASETS, flags=re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "hopper" in code:
        pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    monkeypatch.chdir(tmp_path)
    for full, small in SMALLER.items():
        code = code.replace(full, small)
    exec(compile(code, str(README), "exec"), {})


def test_every_number_that_is_made_smaller_is_there() -> None:
    assert all(full in TEXT for full in SMALLER)


def _commands() -> list[list[str]]:
    lines = "\n".join(_blocks("bash")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dmamba ")]


def _all_commands() -> list[Any]:
    group: Any = typer.main.get_command(app)
    return list(group.commands.values())


@pytest.mark.parametrize("arguments", _commands(), ids=" ".join)
def test_command_lines_are_accepted(arguments: list[str]) -> None:
    name, *rest = arguments
    commands = {command.name: command for command in _all_commands()}
    commands[name].make_context(name, list(rest))  # raises a usage error; empties its list
    if name == "train" and not rest[0].startswith("-"):
        get_task(rest[0])


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", TEXT))
def test_links_into_the_repository_lead_somewhere(link: str) -> None:
    assert (README.parent / link).exists()
