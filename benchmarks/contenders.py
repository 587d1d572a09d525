"""Contenders: implementations that are timed if they agree with their reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.timing import Run, Timer, Timing


class UnavailableError(Exception):
    """A contender cannot run here; the message says why and goes into the report."""


@dataclass(frozen=True)
class Agreement:
    """Result of comparing an implementation with its reference.

    Args:
        what: For the report, such as "outputs and gradients".
        error: The largest difference, relative to the size of what is compared.
        tolerance: The largest error allowed.
        wording: How the error is written in a table, for ``str.format``.
    """

    what: str
    error: float
    tolerance: float
    wording: str = "{:.0e}"

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to run.

    Args:
        run: One call of what is timed.
        check: Compares it with its reference.
        facts: Further columns of its row.
    """

    run: Run
    check: Callable[[], Agreement]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A name, and a function that makes the contender or raises :class:`UnavailableError`."""

    name: str
    make: Callable[[], Contender]


@dataclass(frozen=True)
class Outcome:
    """Contenders that were timed, and those left out.

    Args:
        rows: A row each: ``name``, ``seconds``, ``low``, ``high``, ``samples``, ``gate``,
            ``error``, ``tolerance`` and the contender's facts, in the order of the candidates.
        left_out: The others, each with its reason.
    """

    rows: list[dict[str, Any]]
    left_out: dict[str, str]

    def seconds(self, name: str) -> float | None:
        """Return a contender's median seconds, None where it was left out."""
        return next((row["seconds"] for row in self.rows if row["name"] == name), None)

    def add_ratio(self, column: str, name: str) -> None:
        """Add to each row its time over that of ``name``, None where there is none."""
        base = self.seconds(name)
        for row in self.rows:
            row[column] = None if base is None else row["seconds"] / base


def race(candidates: Sequence[Candidate], timer: Timer) -> Outcome:
    """Make the contenders, check each, and time those that agree with their reference."""
    ready, left_out = gate(candidates)
    timings = timer.measure({name: contender.run for name, (contender, _) in ready.items()})
    rows = [
        make_row(name, timings[name], agreement) | dict(contender.facts)
        for name, (contender, agreement) in ready.items()
    ]
    return Outcome(rows, left_out)


def gate(
    candidates: Sequence[Candidate],
) -> tuple[dict[str, tuple[Contender, Agreement]], dict[str, str]]:
    """Return the contenders that may be timed, and why the others may not."""
    ready: dict[str, tuple[Contender, Agreement]] = {}
    left_out: dict[str, str] = {}
    for candidate in candidates:
        try:
            contender = candidate.make()
            agreement = contender.check()
        except UnavailableError as reason:
            left_out[candidate.name] = str(reason)
            continue
        if agreement.holds:
            ready[candidate.name] = contender, agreement
        else:
            left_out[candidate.name] = (
                f"{agreement.what} are off by {agreement.error:.2g} (allowed: "
                f"{agreement.tolerance:g}), so it was not timed"
            )
    return ready, left_out


def make_row(name: str, timing: Timing, agreement: Agreement) -> dict[str, Any]:
    """Return a row of a table."""
    return {
        "name": name,
        "seconds": timing.median,
        "low": timing.low,
        "high": timing.high,
        "samples": timing.n_samples,
        "checked": agreement.what,
        "gate": agreement.wording.format(agreement.error),
        "error": agreement.error,
        "tolerance": agreement.tolerance,
    }
