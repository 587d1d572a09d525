"""The code of every page runs, unless a comment above it says why not."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sb3_dmamba
from sb3_dmamba.errors import DecisionMambaError
from tests.docs.blocks import DOCS, KNOWN_MARKS, PAGES, ROOT, Block, read_blocks

# Pages with a test of their own, which says what to make smaller.
TESTED_ELSEWHERE = {
    "datasets.md": "tests/test_readme.py",
    "d3rlpy.md": "tests/test_drop_in.py",
    "drop_in.md": "tests/test_drop_in.py",
    "export.md": "tests/export/test_docs.py",
    "stable_baselines3.md": "tests/sb3/test_page.py",
}
LANGUAGES = {"python", "bash", "diff", "json", "yaml", "bibtex", "text"}
MUJOCO = ("halfcheetah-bundled", "Hopper-v5", "sb3_dmamba/halfcheetah-v0")
WORKED_EXAMPLES = ("file", "patch", "run", "command")


def python_blocks(page: Path) -> list[Block]:
    blocks = [block for block in read_blocks(page) if block.language == "python"]
    return [block for block in blocks if not any(block.has(mark) for mark in WORKED_EXAMPLES)]


def runnable_pages() -> list[Any]:
    return [
        pytest.param(page, id=str(page.relative_to(DOCS)))
        for page in PAGES
        if python_blocks(page) and str(page.relative_to(DOCS)) not in TESTED_ELSEWHERE
    ]


@pytest.mark.parametrize("page", runnable_pages())
def test_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = python_blocks(page)
    for block in blocks:
        for module in block.values("needs"):
            pytest.importorskip(module, reason=f"{page.name} needs {module}")
        if any(name in block.code() for name in MUJOCO):
            pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    messages = _messages(page)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", UserWarning)  # of gymnasium, about its environments
        for block in blocks:
            _follow(block, names, messages.get(block.line))


def _follow(block: Block, names: dict[str, Any], message: str | None) -> None:
    if block.has("skip"):
        return
    code = compile(block.code(), block.place, "exec")
    if block.has("names only") or "notest" in block.info:
        _resolve_imports(block)
    elif block.has("raises"):
        assert message, f"{block.place}: no text block with the message follows"
        with pytest.raises(DecisionMambaError) as caught:
            exec(code, names)
        said = f"{type(caught.value).__name__}: {caught.value}"
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("..."))
        assert re.fullmatch(pattern, said, re.DOTALL), f"{block.place}: it said {said!r}"
    else:
        exec(code, names)


def _messages(page: Path) -> dict[int, str]:
    """Return the text that follows a block, in one line, by the block's line."""
    blocks = read_blocks(page)
    return {
        first.line: " ".join(second.text.split())
        for first, second in itertools.pairwise(blocks)
        if second.language == "text"
    }


def _resolve_imports(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: no {alias.name} in {module}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for page, test in TESTED_ELSEWHERE.items():
        assert (DOCS / page).is_file()
        assert page in (ROOT / test).read_text(encoding="utf-8")
    blocks = [block for page in [*PAGES, ROOT / "README.md"] for block in read_blocks(page)]
    for block in (block for block in blocks if not block.is_directive):
        assert block.language in LANGUAGES, f"{block.place}: {block.info!r} is checked by nothing"
        for mark in block.marks:
            assert mark.startswith(KNOWN_MARKS), f"{block.place}: nothing is called {mark!r}"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "yaml":
            yaml.safe_load(block.text)
        if block.language == "bibtex":
            assert f"version = {{{sb3_dmamba.__version__}}}" in block.text, block.place
            assert block.text.count("{") == block.text.count("}"), block.place
