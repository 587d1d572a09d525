"""Run suites one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import describe
from benchmarks.reports import print_report, write_report
from benchmarks.request import Request
from benchmarks.suites import choose
from sb3_dmamba.machine import describe_cpu, describe_device

_WIDTH = 160  # of tables that go into a file


def run(
    names: Sequence[str], request: Request, output: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Run suites, print their tables, and write them where that is asked for.

    Args:
        names: Of suites; none is all but those that are run by name.
        request: What to measure.
        output: Folder for pages, JSON and pictures.
        console: Where tables are printed.

    Returns:
        A JSON document for each suite.

    Raises:
        ConfigError: A suite is unknown, or cannot run with these options.
    """
    suites = choose(names)
    if not console.is_terminal:
        console.width = _WIDTH
    documents = []
    with _threads(request.threads):
        kind = describe_device(request.device) if request.on_gpu else describe_cpu()
        for name, suite in suites.items():
            machine = describe(request)
            console.rule(f"{name}: {suite.question}")
            report = suite.run(name, request)
            tables = [dataclasses.replace(t, title=f"{t.title}; {kind}") for t in report.tables]
            report = dataclasses.replace(report, tables=tables)
            command = request.command.replace("dmamba bench", f"dmamba bench {name}", 1)
            print_report(report, console)
            if output is not None:
                for path in write_report(report, output, machine, command):
                    console.print(f"wrote {path}", soft_wrap=True, highlight=False)
            documents.append(report.to_json(machine, command))
    return documents


@contextlib.contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
