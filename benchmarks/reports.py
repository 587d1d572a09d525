"""Reports of suites: tables and pictures, as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from sb3_dmamba.experiments.report import format_table
from sb3_dmamba.experiments.runs import write_text

_ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: Where a row holds its value.
        heading: With the unit.
        style: How numbers are written, for ``format``; text is written as it is.
        factor: What numbers are multiplied with, for the unit.
        suffix: What follows each number.
    """

    key: str
    heading: str
    style: str = ""
    factor: float = 1.0
    suffix: str = ""

    def format(self, row: Mapping[str, Any]) -> str:
        """Format this column's value of a row."""
        value = row.get(self.key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return _ABSENT
        if isinstance(value, str):
            return value
        return f"{value * self.factor if self.factor != 1.0 else value:{self.style}}{self.suffix}"


@dataclass(frozen=True)
class Table:
    """Rows that were measured together.

    Args:
        name: For programs, unique within the report.
        title: For people: what was measured, at which size.
        columns: Ratios first.
        rows: Values by the columns' keys, and whatever else programs may want.
        notes: Sentences below the table.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows as text."""
        header = [column.heading for column in self.columns]
        return header, [[column.format(row) for column in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure: its file's name without suffix, what it shows, and what draws it."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Report:
    """Results of a suite.

    Args:
        suite: Its name.
        title: For people.
        method: How it was measured, and what the gate compared.
        tables: What was measured.
        pictures: The same to look at.
        left_out: Contenders that were not timed, with the reason.
        failures: Limits that were missed; the command then exits with 1.
    """

    suite: str
    title: str
    method: str
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()

    def to_json(self, machine: Mapping[str, Any], command: str) -> dict[str, Any]:
        """Return a document with everything in it; numbers that are none become null."""
        tables = [
            {
                "name": table.name,
                "title": table.title,
                "columns": [dataclasses.asdict(column) for column in table.columns],
                "rows": [_as_json(row) for row in table.rows],
                "notes": list(table.notes),
            }
            for table in self.tables
        ]
        return {
            "format": 1,
            "suite": self.suite,
            "command": command,
            "machine": dict(machine),
            "tables": tables,
            "left_out": dict(self.left_out),
            "failures": list(self.failures),
        }


def _as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def print_report(report: Report, console: Console) -> None:
    """Print a report's tables."""
    for table in report.tables:
        header, rows = table.cells()
        drawn = RichTable(title=table.title, title_justify="left", caption_justify="left")
        for index, heading in enumerate(header):
            is_text = all(isinstance(row.get(table.columns[index].key), str) for row in table.rows)
            drawn.add_column(heading, justify="left" if is_text else "right")
        for cells in rows:
            drawn.add_row(*cells)
        console.print(drawn)
        for note in table.notes:
            console.print(note, highlight=False)
    for name, reason in report.left_out.items():
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False)
    for failure in report.failures:
        console.print(f"FAILED: {failure}", highlight=False, markup=False)


def write_report(
    report: Report, folder: Path, machine: Mapping[str, Any], command: str
) -> list[Path]:
    """Write a report as a page for the documentation, as JSON, and its pictures.

    Args:
        report: What a suite found.
        folder: Where to write; made if it is not there.
        machine: What computed, when and with which versions.
        command: What reproduces it.

    Returns:
        The files written, the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, document = folder / f"{report.suite}.md", folder / f"{report.suite}.json"
    write_text(page, compose_page(report, machine, command))
    content = json.dumps(report.to_json(machine, command), indent=1, allow_nan=False)
    write_text(document, content + "\n")
    pictures = []
    for picture in report.pictures:
        pictures.append(folder / f"{picture.name}.png")
        picture.draw(pictures[-1])
    return [page, document, *pictures]


def compose_page(report: Report, machine: Mapping[str, Any], command: str) -> str:
    """Return a report as Markdown, its headings below those of the page that includes it."""
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    sections = [f"### {report.title}", f"`{command}`: {report.method}", f"Measured on: {facts}."]
    for table in report.tables:
        sections += [f"**{table.title}**", format_table(*table.cells()), *table.notes]
    sections += [f"![{picture.caption}]({picture.name}.png)" for picture in report.pictures]
    if report.left_out:
        listed = "\n".join(f"* {name}: {reason}" for name, reason in report.left_out.items())
        sections.append(f"Not timed:\n\n{listed}")
    sections += [f"Limit missed: {failure}" for failure in report.failures]
    return "\n\n".join(sections) + "\n"
