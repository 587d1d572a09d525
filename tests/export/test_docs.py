"""What the page on exporting shows runs as it stands, with fewer updates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SMALLER = {'"halfcheetah-bundled"': '"halfcheetah-bundled", n_layers=1, hidden_size=16'}
SMALLER |= {"n_steps=1200": "n_steps=1"}


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
    assert names["outputs"]["action"].shape == (2, 6)
