"""Every command line on a page could be typed: its names and options exist."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import sys
from typing import Any

import pytest
import typer

from sb3_dmamba.cli import app
from tests.docs.blocks import PAGES, ROOT, read_blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOT_OURS = {"git", "cd", "sbatch", "hf", "export", "dmamba:", "srun", "ray"}


def test_command_lines_are_accepted() -> None:
    refused = {}
    for page in [*PAGES, ROOT / "README.md"]:
        for block in read_blocks(page):
            if block.language == "bash" and not block.has("skip"):
                for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
                    if error := find_error(line):
                        refused[f"{block.place}: {line}"] = repr(error)
    assert refused == {}


def find_error(line: str) -> Exception | None:
    """Return what is wrong with a line; Typer has its own usage errors or click's."""
    try:
        check_line(line)
    except Exception as error:
        return error
    return None


def check_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    for is_joint, command in itertools.groupby(words, lambda word: word == "&&"):
        if not is_joint:
            check(list(command))


def check(words: list[str]) -> None:
    """Check one command: its program, file, module, target, extra and options exist."""
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):  # variables
        words = words[1:]
    program, *rest = words
    if program == "dmamba":
        parse(rest)
    elif program in {"python", "python3"}:
        check_python(rest)
    elif program == "torchrun":
        check_python(list(itertools.dropwhile(lambda word: word.startswith("--"), rest)))
    elif program == "make":
        for target in rest:
            assert "=" in target or re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    elif program == "pip":
        for extras in re.findall(r"(?:sb3-dmamba|\.)\[([\w,]+)\]", " ".join(rest)):
            unknown = set(extras.split(",")) - set(PROJECT["optional-dependencies"])
            assert not unknown, f"no extra is called {sorted(unknown)}"
    else:
        assert program in NOT_OURS or (ROOT / program).is_file(), f"nothing is called {program}"


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "<command>", "exec")
    elif words[0] == "-m":
        check_module(words[1], words[2:])
    else:
        assert (ROOT / words[0]).is_file(), f"no script {words[0]}"


def check_module(module: str, words: list[str]) -> None:
    assert importlib.util.find_spec(module) is not None, f"no module {module}"
    if module == "sb3_dmamba":
        parse(words)


def parse(words: list[str]) -> None:
    """Let the command line read its words, without running anything."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if set(words) & {"--help", "-h", "--version"} or words[:1] == ["--install-completion"]:
        options = {name for each in command.params for name in each.opts}
        assert words[0] in options | {"--help", "-h"}, words
        return
    assert not getattr(command, "commands", None), f"dmamba has no command {' '.join(words)}"
    command.make_context(command.name, list(words))  # raises a usage error; empties its list
