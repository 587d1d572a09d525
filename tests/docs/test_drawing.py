"""The drawing of the rooms is of the package as it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs.blocks import DOCS
from tests.scripts import load_script

SCRIPT = DOCS / "draw_rooms.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


def test_it_is_of_the_imports_as_they_are(script: Any) -> None:
    drawn = script.draw(script.find_imports(script.PACKAGE))
    assert drawn == script.PICTURE.read_text(encoding="utf-8"), "run python docs/draw_rooms.py"


def test_the_table_beside_it_has_every_room(script: Any) -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for room in script.find_imports(script.PACKAGE):
        assert f"| `{room}.py` |" in page or f"| `{room}/` |" in page, room
