"""What a process spent on a cell, and on what: kept apart from the results."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

import sb3_dmamba
from sb3_dmamba.experiments.grid.folder import CellFolder, write_json
from sb3_dmamba.machine import describe_device

__all__ = ["Session", "describe_versions"]

_CHECKPOINT_SECONDS = 60.0
_PROGRESS_SECONDS = 1.0
_PACKAGES = ("torch", "numpy", "numba", "gymnasium", "stable-baselines3", "mujoco", "ale-py")


class Session:
    """The time that one process gives to a cell.

    Args:
        folder: The cell's; earlier sessions are in it.
        device: Where it computes.
    """

    def __init__(self, folder: CellFolder, device: str) -> None:
        self._folder = folder
        self._earlier = folder.read_json(folder.machine, [])
        self._record: dict[str, Any] = {
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": describe_device(device),
            "versions": describe_versions(),
            "updates": 0,
            "train_seconds": 0.0,
            "train_cpu_seconds": 0.0,
            "evaluation_seconds": 0.0,
        }
        self._checkpoint_at = self._progress_at = time.monotonic()
        self._clock: tuple[float, float] | None = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count what runs inside as training."""
        self._start()
        yield
        self._stop()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count what runs inside as no training: checkpoints, evaluations."""
        self._stop()
        yield
        self._checkpoint_at = time.monotonic()
        self._start()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count what runs inside as evaluation."""
        started = time.perf_counter()
        yield
        self._record["evaluation_seconds"] += time.perf_counter() - started

    def count_update(self) -> None:
        """Count one update."""
        self._record["updates"] += 1

    def is_checkpoint_due(self) -> bool:
        """Whether the last checkpoint is a minute ago."""
        return time.monotonic() - self._checkpoint_at > _CHECKPOINT_SECONDS

    def is_progress_due(self) -> bool:
        """Whether nothing was told for a second; if so, now something is."""
        now = time.monotonic()
        if now - self._progress_at < _PROGRESS_SECONDS:
            return False
        self._progress_at = now
        return True

    def write(self, update: int) -> None:
        """Keep what was spent until a checkpoint; what a crash takes away is not counted."""
        write_json(self._folder.machine, [*self._earlier, {**self._record, "until": update}])

    def _start(self) -> None:
        self._clock = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        assert self._clock is not None
        self._record["train_seconds"] += time.perf_counter() - self._clock[0]
        self._record["train_cpu_seconds"] += time.process_time() - self._clock[1]
        self._clock = None


def describe_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    versions = {"sb3_dmamba": sb3_dmamba.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
