"""What the page on exporting shows runs as it stands, with fewer updates."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from sb3_dmamba.cli import app
from tests.export.test_model import fitted

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SMALLER = {'"hopper-bundled"': '"hopper-bundled", n_layers=1, hidden_size=16'}
SMALLER |= {"n_steps=3000": "n_steps=1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = blocks("python")
    for full, small in SMALLER.items():
        assert full in code[0]
        code[0] = code[0].replace(full, small)
    for block in code:
        exec(compile(block, "docs/export.md", "exec"), names)
    assert names["is_over"]
    assert names["outputs"]["action"].shape == (2, 3)


def test_command_lines_are_accepted() -> None:
    lines = "\n".join(blocks("bash")).splitlines()
    group: Any = typer.main.get_command(app)
    assert lines
    for line in lines:
        _, name, *arguments = shlex.split(line, comments=True)
        group.commands[name].make_context(name, arguments)  # raises a usage error


def test_every_key_of_the_file_is_explained(tmp_path: Path) -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE.split("## Metadata")[1]))
    exported = fitted().export(tmp_path / "policy.onnx", verify=False)
    assert set(exported.metadata) <= explained
