"""The suites by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from benchmarks.reports import Report
from benchmarks.request import Request
from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.errors import ConfigError

__all__ = ["SUITES", "Suite", "choose"]


@dataclass(frozen=True)
class Suite:
    """A question of speed or memory.

    Args:
        question: What it answers, in a line.
        by_name: Whether it runs only when it is named: it takes long, or needs something.
    """

    question: str
    by_name: bool = False

    def run(self, name: str, request: Request) -> Report:
        """Run it; its module is called as it is, and has a function ``measure``."""
        report: Report = import_module(f"benchmarks.suites.{name}").measure(request)
        return report


SUITES = {
    "update": Suite("one update beside the peers, in every backend, mixer and precision"),
    "data": Suite("drawing a batch beside d3rlpy"),
    "predict": Suite("acting: one prediction beside d3rlpy, and many environments at once"),
    "evaluation": Suite("whole evaluations in an environment beside d3rlpy"),
    "scaling": Suite("time and memory as context, width, batch and episode grow"),
    "ops": Suite("each operation in each backend, and its bandwidth on a GPU"),
    "profile": Suite("where the time of an update goes, and how busy a GPU is"),
    "memory": Suite("memory of learning from data larger than memory (writes 2 GiB)", True),
    "frames": Suite("memory and speed of Atari frames (needs --replay)", True),
    "tune": Suite("other cuts of Triton's scan, on a GPU", True),
}


def choose(names: Sequence[str]) -> dict[str, Suite]:
    """Return the suites of these names, or all that are not run by name alone.

    Raises:
        ConfigError: There is none of a name; suggests the nearest.
    """
    for name in names:
        if name not in SUITES:
            hint = did_you_mean(near_names(name, SUITES)) or f"there are {', '.join(SUITES)}"
            raise ConfigError(
                f"no suite is called {name!r}: {hint}", setting="suite", value=name, choices=SUITES
            )
    if names:
        return {name: SUITES[name] for name in dict.fromkeys(names)}
    return {name: suite for name, suite in SUITES.items() if not suite.by_name}
