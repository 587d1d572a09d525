"""Timer: contenders take turns, so that other load on the machine affects them alike.

A turn is some calls of one contender, because in training one model's updates follow each other:
an update after another model's finds neither its weights in the cache nor its memory with the
allocator. The first call of a turn is not counted, unless a single call fills the turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

Run = Callable[[], object]
Name = TypeVar("Name")

MOST_CALLS = 500  # of a turn
_LONG = 20.0  # seconds of a call that is not made once more to plan turns


@dataclass(frozen=True)
class Timing:
    """What a call took.

    Args:
        median: Seconds.
        low: Lower quartile, in seconds.
        high: Upper quartile.
        n_samples: Measurements behind these.
    """

    median: float
    low: float
    high: float
    n_samples: int

    @classmethod
    def from_samples(cls, seconds: Sequence[float]) -> Timing:
        """Summarise measurements, at least one."""
        low, median, high = np.quantile(np.asarray(seconds, dtype=np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high), len(seconds))


@dataclass(frozen=True)
class Timer:
    """Times calls side by side.

    On the CPU each call is a sample. On a GPU a turn is: the device is waited for at both its ends
    and not in between, as a training loop runs, and the turn's time is shared out over its calls.

    Args:
        device: Where the contenders compute.
        rounds: Turns of each contender.
        turn_seconds: About how long a turn lasts; a slower call is a turn of its own.
        clock: Returns seconds; for tests.
    """

    device: str
    rounds: int
    turn_seconds: float = 0.5
    clock: Callable[[], float] = field(default=time.perf_counter)

    def measure(self, runs: Mapping[Name, Run]) -> dict[Name, Timing]:
        """Time each run.

        Args:
            runs: Functions to call, by name.

        Returns:
            What a call of each took.
        """
        n_calls = {name: self._plan_turn(run) for name, run in runs.items()}
        samples: dict[Name, list[float]] = {name: [] for name in runs}
        for _ in range(self.rounds):
            for name, run in runs.items():
                samples[name] += self._take_turn(run, n_calls[name])
        return {name: Timing.from_samples(seconds) for name, seconds in samples.items()}

    def measure_along(
        self, runs: Mapping[Name, tuple[Run, Run]], n_steps: int, at: Sequence[int], reach: int
    ) -> dict[Name, dict[int, Timing]]:
        """Time calls of which each goes on from the one before, at some of their places.

        Args:
            runs: What starts anew, and what goes on.
            n_steps: Calls from a start.
            at: Places whose time is wanted, from 0.
            reach: Calls to both sides of a place that count for it.

        Returns:
            What a call around each place took.
        """
        samples: dict[Name, dict[int, list[float]]] = {
            name: {place: [] for place in at} for name in runs
        }
        for turn in range(self.rounds + 1):
            for name, (start, go_on) in runs.items():
                start()
                seconds = [self._time(go_on, 1) for _ in range(n_steps if turn else reach)]
                for place in at if turn else ():  # the first turn warms up
                    samples[name][place] += seconds[max(0, place - reach) : place + reach]
        return {
            name: {place: Timing.from_samples(each) for place, each in places.items()}
            for name, places in samples.items()
        }

    def _plan_turn(self, run: Run) -> int:
        if self._time(run, 1) > _LONG and not self._is_asynchronous:  # compiles and warms up
            return 1
        once = self._time(run, 1)
        return int(min(MOST_CALLS, max(1.0, self.turn_seconds / max(once, 1e-9))))

    def _take_turn(self, run: Run, n_calls: int) -> list[float]:
        if n_calls == 1:
            return [self._time(run, 1)]
        self._time(run, 1)
        if self._is_asynchronous:
            return [self._time(run, n_calls - 1) / (n_calls - 1)]
        return [self._time(run, 1) for _ in range(n_calls - 1)]

    def _time(self, run: Run, n_calls: int) -> float:
        self._wait()
        started = self.clock()
        for _ in range(n_calls):
            run()
        self._wait()
        return self.clock() - started

    @property
    def _is_asynchronous(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def _wait(self) -> None:
        if self._is_asynchronous:
            torch.cuda.synchronize(self.device)
