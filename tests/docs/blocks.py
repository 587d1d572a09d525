"""The fenced blocks of a Markdown page, with what invisible comments above them say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "notebooks" not in page.parts)

_FENCE = re.compile(r"^(`{3,})(.*)$")
_MARK = re.compile(r"^<!-- test: (.*?) -->$")
KNOWN_MARKS = ("small", "names only", "skip", "raises", "needs", "file", "patch", "run", "command")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Its page.
        line: The fence's line, from 1.
        info: What follows the fence: the language, and words behind it.
        text: What is inside.
        marks: The comments above it, without what encloses them.
    """

    page: Path
    line: int
    info: str
    text: str
    marks: list[str] = field(default_factory=list)

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info else ""

    @property
    def is_directive(self) -> bool:
        return self.info.startswith("{")

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def values(self, mark: str) -> list[str]:
        """Return what follows a mark, for each of its comments."""
        return [
            each[len(mark) :].lstrip(": ")
            for each in self.marks
            if each == mark or each.startswith((f"{mark} ", f"{mark}: "))
        ]

    def has(self, mark: str) -> bool:
        return bool(self.values(mark))

    def code(self) -> str:
        """Return the text with its small numbers in place of the real ones.

        Raises:
            AssertionError: A number that is to be replaced is not there.
        """
        text = self.text
        for rule in self.values("small"):
            full, _, small = rule.partition(" => ")
            assert full in text, f"{self.place}: no {full!r} to make smaller"
            text = text.replace(full, small)
        return text


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    blocks: list[Block] = []
    marks: list[str] = []
    fence, info, first, inside = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        found = _FENCE.match(line)
        if fence:
            if found and found[1] == fence and not found[2]:
                blocks.append(Block(page, first, info, "\n".join(inside) + "\n", marks))
                fence, marks = "", []
            else:
                inside.append(line)
        elif found:
            fence, info, first, inside = found[1], found[2].strip(), number, []
        elif mark := _MARK.match(line):
            marks.append(mark[1])
        elif line.strip():
            marks = []
    assert not fence, f"{page}: the fence of line {first} is not closed"
    return blocks
