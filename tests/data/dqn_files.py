"""Small replay buffers, written row by row as Dopamine writes them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

FRAME = (6, 5)
STACK = 4


@dataclass
class Played:
    """One episode of random frames, none of them black."""

    observations: ndarray
    actions: ndarray
    rewards: ndarray
    terminated: bool = True

    @classmethod
    def random(cls, length: int, seed: int, terminated: bool = True) -> Played:
        generator = np.random.default_rng(seed)
        return cls(
            generator.integers(1, 256, (length, *FRAME), dtype=np.uint8),
            generator.integers(0, 4, length, dtype=np.int32),
            generator.integers(-1, 2, length).astype(np.float32),
            terminated,
        )


@dataclass
class Recorder:
    """Dopamine's circular buffer of ``capacity`` rows, and the log that it writes of it.

    A checkpoint is written ``log_at`` rows into each pass: Dopamine's own is the last but one, so
    that a file's last row is older than its others.
    """

    folder: Path
    capacity: int
    log_at: int = 0
    count: int = 0
    number: int = 0
    rows: dict[str, ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = {
            "observation": np.zeros((self.capacity, *FRAME), np.uint8),
            "action": np.zeros(self.capacity, np.int32),
            "reward": np.zeros(self.capacity, np.float32),
            "terminal": np.zeros(self.capacity, np.uint8),
        }

    def play(self, episode: Played) -> None:
        """Write an episode, after the three blank rows that Dopamine puts before each."""
        for _ in range(STACK - 1):
            self._add(observation=0, action=0, reward=0, terminal=0)
        last = len(episode.actions) - 1
        for step, frame in enumerate(episode.observations):
            self._add(
                observation=frame,
                action=episode.actions[step],
                reward=episode.rewards[step],
                terminal=episode.terminated and step == last,
            )

    def _add(self, **row: Any) -> None:
        for name, value in row.items():
            self.rows[name][self.count % self.capacity] = value
        self.count += 1
        if self.count % self.capacity == self.log_at:
            self.write()

    def write(self) -> None:
        """Write a checkpoint of the buffer as it is."""
        for name, array in self.rows.items():
            write_member(self.folder, name, self.number, array)
        path = self.folder / f"add_count_ckpt.{self.number}.gz"
        with gzip.open(path, "wb") as file:
            np.save(file, np.array(self.count))
        self.number += 1


def member_path(folder: Path, member: str, number: int) -> Path:
    return folder / f"$store$_{member}_ckpt.{number}.gz"


def write_member(folder: Path, member: str, number: int, array: ndarray) -> None:
    with gzip.open(member_path(folder, member, number), "wb", compresslevel=1) as file:
        np.save(file, array)
