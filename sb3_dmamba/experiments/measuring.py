"""Experiments that train nothing: they measure, and write a report of the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["Measurement", "MeasurementRequest"]


@dataclass(frozen=True)
class MeasurementRequest:
    """What the user asks for.

    Args:
        out: Folder of the report.
        command: What reproduces it.
        variants: The variants to measure; none is all.
        settings: Fields of ``DecisionMambaConfig`` for all variants.
        device: Where to compute.
        threads: Threads to compute with.
    """

    out: Path
    command: str
    variants: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """A question, and the function that answers it.

    Args:
        name: As on the command line.
        title: The report's.
        question: What it asks.
        variants: Settings of what is measured, by name.
        function: ``"module:function"`` of a measurement and a request; returns the files written.
        rebuilder: ``"module:function"`` of a report's folder, which makes the report again from
            the files in it; returns the report.
    """

    name: str
    title: str
    question: str
    variants: Mapping[str, Mapping[str, Any]]
    function: str
    rebuilder: str

    def run(self, request: MeasurementRequest) -> list[Path]:
        """Measure, and write the report.

        Raises:
            ConfigError: A variant or setting is unknown.
            ExperimentError: What would be timed computes something else than it should.
        """
        files: list[Path] = _import(self.function)(self, request)
        return files

    def rebuild(self, folder: Path) -> Path:
        """Make the report in a folder again from the files in it.

        Raises:
            ExperimentError: A file is missing or damaged.
        """
        report: Path = _import(self.rebuilder)(folder)
        return report


def _import(name: str) -> Any:
    module, function = name.split(":")
    return getattr(import_module(module), function)
