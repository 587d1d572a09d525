"""What is written can be read, by people and by programs."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pictures import draw_bars, draw_shares
from benchmarks.reports import Column, Picture, Report, Table, print_report, write_report
from sb3_dmamba.experiments.report import draw_lines

COLUMNS = (
    Column("name", ""),
    Column("ratio", "against d3rlpy", ".2f", 1.0, "x"),
    Column("seconds", "ms", ".1f", 1e3),
    Column("count", "parameters", ","),
)
ROWS: list[dict[str, Any]] = [
    {"name": "ours", "ratio": 0.5, "seconds": 0.0123, "count": 1234, "n": 3},
    {"name": "theirs", "ratio": None, "seconds": math.nan, "count": 7},
]


def _report() -> Report:
    pictures = [
        Picture("bars", "Speed", lambda path: draw_bars(path, "t", "ms", {"ours": (2, 1, 3)})),
        Picture("lines", "", lambda path: draw_lines(path, "t", ("K", "ms"), {"a": ([1], [2])})),
        Picture("shares", "", lambda path: draw_shares(path, "t", {"Mamba": {"scan": 1.0}})),
    ]
    table = Table("updates", "One update", COLUMNS, ROWS, ["A note."])
    return Report("update", "Updates", "how.", [table], pictures, {"x": "absent"}, ["too slow"])


def test_a_page_for_people_and_a_document_for_programs(tmp_path: Path) -> None:
    machine = {"date": "2026-01-02", "device": "abacus"}
    files = write_report(_report(), tmp_path, machine, "dmamba bench update")
    assert [path.name for path in files] == [
        *("update.md", "update.json", "bars.png", "lines.png", "shares.png")
    ]
    page = files[0].read_text(encoding="utf-8")
    assert page.startswith("### Updates\n\n`dmamba bench update`: how.\n")
    assert "|  | against d3rlpy | ms | parameters |\n| --- | --- | --- | --- |\n" in page
    assert "| ours | 0.50x | 12.3 | 1,234 |\n| theirs | - | - | 7 |\n" in page
    for expected in ("date 2026-01-02", "A note.", "![Speed](bars.png)", "* x: absent", "too slow"):
        assert expected in page
    assert all(path.stat().st_size > 1000 for path in files[2:])
    document = json.loads(files[1].read_text(encoding="utf-8"))
    assert document["machine"] == machine
    assert document["tables"][0]["rows"][0] == ROWS[0]
    assert document["tables"][0]["rows"][1]["seconds"] is None
    assert document["left_out"] == {"x": "absent"}
    assert document["failures"] == ["too slow"]


def test_a_table_on_the_console() -> None:
    text = StringIO()
    print_report(_report(), Console(file=text, width=100))
    for expected in ("One update", "0.50x", "A note.", "left out: x: absent", "FAILED: too slow"):
        assert expected in text.getvalue()
