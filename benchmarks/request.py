"""Options of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import Timer


@dataclass(frozen=True)
class Shape:
    """The size of a network and its batch; the defaults are Hopper's.

    Args:
        width: Width of a token.
        n_layers: Blocks.
        context: Steps of a window, K.
        batch_size: Windows of an update.
    """

    width: int = 128
    n_layers: int = 3
    context: int = 20
    batch_size: int = 64


@dataclass(frozen=True)
class Request:
    """What to measure, and how long.

    Args:
        device: ``"cpu"`` or ``"cuda"``, never ``"auto"``.
        threads: Threads to compute with on the CPU.
        rounds: Turns of each contender; None is the suite's own number.
        quick: Whether to see that a suite works: small networks, figures that mean nothing.
        updates: Updates of the training whose length is projected.
        replay: Folder of a recorded DQN replay, for the suite ``frames``.
        command: What reproduces the run.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int | None = None
    quick: bool = False
    updates: int = 100_000
    replay: Path | None = None
    command: str = "dmamba bench"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def shape(self) -> Shape:
        """The size that suites measure at."""
        return Shape(16, 2, 4, 4) if self.quick else Shape()

    def make_timer(self, rounds: int = 7, turn_seconds: float = 0.5) -> Timer:
        """Return the timer that all suites share.

        Args:
            rounds: Turns of each contender, where the user gave no number.
            turn_seconds: About how long a turn lasts.
        """
        n_rounds = self.rounds or (2 if self.quick else rounds)
        return Timer(self.device, n_rounds, turn_seconds=0.01 if self.quick else turn_seconds)
