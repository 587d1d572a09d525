"""The drawing of the rooms is of the package as it is."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

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


def test_a_room_stands_on_what_it_imports(script: Any) -> None:
    imports = script.find_imports(script.PACKAGE)
    rows = script.stack(imports)
    place = {room: number for number, row in enumerate(rows) for room in row}
    assert place.keys() == imports.keys()
    assert {"data", "ops", "networks", "cli"} <= place.keys()
    for room, others in imports.items():
        assert all(place[other] < place[room] for other in others), room


def test_it_is_an_image_that_names_every_room(script: Any) -> None:
    root = ElementTree.fromstring(script.PICTURE.read_text(encoding="utf-8"))
    texts = {"".join(each.itertext()) for each in root.iter() if each.tag.endswith("text")}
    assert script.find_imports(script.PACKAGE).keys() <= texts


def test_the_table_beside_it_has_every_room(script: Any) -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for room in script.find_imports(script.PACKAGE):
        assert f"| `{room}.py` |" in page or f"| `{room}/` |" in page, room
