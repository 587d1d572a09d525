"""The worked examples for contributors, followed to the letter in a copy of the package."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT, Block, read_blocks

PAGES = ("add_a_source", "add_a_mixer", "add_a_backend")
NO_CACHE = ("-p", "no:cacheprovider")
IGNORED = shutil.ignore_patterns("*.pyc")  # and not what Numba has compiled


def blocks_of(page: str) -> list[Block]:
    return read_blocks(DOCS / "contributing" / f"{page}.md")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests with the files and patches of all three pages."""
    copy = tmp_path_factory.mktemp("contributor")
    for folder in ("sb3_dmamba", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=IGNORED)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for page in PAGES:
        for block in blocks_of(page):
            for name in block.values("file"):
                assert not (copy / name).exists(), f"{name} is there already"
                (copy / name).write_text(block.text, encoding="utf-8")
            for name in block.values("patch"):
                apply(block, copy / name)
    return copy


def apply(block: Block, path: Path) -> None:
    """Apply a patch without line numbers, which must fit in exactly one place."""
    lines = block.text.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{block.place} fits {text.count(before)} places of {path.name}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def run(copy: Path, *arguments: str, folder: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder or copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_examples_work(changed: Path, tmp_path: Path) -> None:
    """One process for the three, since most of its time is the import of torch."""
    code = ["import sb3_dmamba, warnings", "warnings.simplefilter('error', ResourceWarning)"]
    code.append(f"assert sb3_dmamba.__file__.startswith({str(changed)!r}), sb3_dmamba.__file__")
    for page in PAGES:
        found = [block for block in blocks_of(page) if block.has("run")]
        assert len(found) == 1, page
        code.append(f"exec(compile({found[0].text!r}, {found[0].place!r}, 'exec'), {{}})")
    run(changed, "-c", "\n".join(code), folder=tmp_path)


def test_every_block_of_the_pages_is_followed() -> None:
    for block in (block for page in PAGES for block in blocks_of(page)):
        assert any(block.has(mark) for mark in ("file", "patch", "run", "command")), block.place


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add_a_source", "add_a_backend"])
def test_the_conformance_suites_take_what_was_added(changed: Path, page: str) -> None:
    (block,) = [block for block in blocks_of(page) if block.has("command")]
    _, *arguments = shlex.split(block.text)
    assert "passed" in run(changed, *arguments, *NO_CACHE)


@pytest.mark.slow
def test_the_suites_of_networks_run_over_the_new_mixer(changed: Path) -> None:
    told = run(changed, "-m", "pytest", "-q", "tests/networks", "-k", "average", *NO_CACHE)
    assert "passed" in told
