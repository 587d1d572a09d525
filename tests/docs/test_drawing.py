"""The drawing and the tree on the page on architecture are of the package as it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs.blocks import DOCS
from tests.scripts import load_script

SCRIPT = DOCS / "draw_packages.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


def test_the_drawing_is_of_the_imports_as_they_are(script: Any) -> None:
    drawn = script.draw(script.find_imports(script.PACKAGE))
    assert drawn == script.PICTURE.read_text(encoding="utf-8"), "run python docs/draw_packages.py"


def test_the_tree_names_every_module(script: Any) -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("```text")[2].partition("```")[0]
    words = set(
        tree.replace("(", " ").replace(")", " ").replace(",", " ").replace(":", " ").split()
    )
    words |= {word.rstrip("/;") for word in words}
    missing = [
        str(path.relative_to(script.PACKAGE))
        for path in script.PACKAGE.rglob("*.py")
        if path.stem not in words
        and path.name not in words
        and path.stem != "__init__"
        and path.parent.parent.name != "ops"
    ]
    assert not missing
