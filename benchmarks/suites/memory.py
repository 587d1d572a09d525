"""Memory of training on data larger than memory.

Writes a store of random continuous episodes (observations of 17 numbers, actions of 6) and fits the
default network to the folder, each in a process of its own that reads its memory from ``/proc``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from benchmarks.reports import Column, Report, Table
from benchmarks.request import Request
from sb3_dmamba.errors import ConfigError

OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (17,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (6,), np.float32)
LENGTH = 1000
EPISODE_BYTES = 4 * LENGTH * (17 + 6 + 1)
LIMIT = 64.0  # MiB of its own that fitting may take above a training on a few episodes in memory
_INTERVAL = 0.02  # seconds between two readings

_METHOD = (
    "a store of random episodes is written, and the default network fitted to its folder, each in "
    "a process of its own that reads its memory from /proc: what is resident; of it, pages of "
    "files, which the kernel takes back when memory is short; and the most private memory so far. "
    "The last row, the same training on 20 episodes in memory, is what libraries, network and "
    "batch take by themselves."
)
_COLUMNS = (
    Column("stage", "after"),
    Column("VmRSS", "resident [MiB]", ",.0f"),
    Column("RssFile", "of it pages of files [MiB]", ",.0f"),
    Column("peak", "most private so far [MiB]", ",.0f"),
    Column("seconds", "s", ",.1f"),
)

Stage = dict[str, Any]


class Meter:
    """Notes the process's memory after each stage, and the most private memory so far."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, _read_status()["RssAnon"])
            time.sleep(_INTERVAL)

    def note(self, stage: str) -> None:
        """Print what is resident now, and the most private memory since the meter began, in MiB."""
        status = _read_status()
        self._peak = max(self._peak, status["RssAnon"])
        seconds = time.perf_counter() - self._start
        line = {"stage": stage, "seconds": seconds, "peak": self._peak, **status}
        print(json.dumps(line), flush=True)
        self._start = time.perf_counter()


def _read_status() -> dict[str, float]:
    """Return the process's resident memory, all, private and of files, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {
        name: int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024  # type: ignore[index]
        for name in ("VmRSS", "RssAnon", "RssFile")
    }


def make_episode(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return observations, actions and rewards of an episode whose actions can be learnt."""
    observations = generator.standard_normal((LENGTH, 17), np.float32)
    actions = np.tanh(observations[:, :6])
    return observations, actions, np.float32(1) - np.square(actions).mean(axis=1)


def write(folder: Path, n_episodes: int) -> None:
    """Write the store."""
    from sb3_dmamba.data import TrajectoriesWriter

    meter = Meter()
    meter.note("write: packages imported")
    spaces_ = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    generator = np.random.default_rng(0)
    with TrajectoriesWriter(folder, source="random", **spaces_) as writer:  # type: ignore[arg-type]
        for _ in range(n_episodes):
            writer.append(*make_episode(generator), terminated=False, truncated=True)
        writer.finish()
    meter.note(f"write: {n_episodes:,} episodes")


def train(folder: Path, n_updates: int, n_batches: int) -> None:
    """Fit the default network to the store, and draw more batches than that."""
    from sb3_dmamba import DecisionMamba, load_trajectories
    from sb3_dmamba.data import WindowSampler

    meter = Meter()
    meter.note("fit: packages imported")
    model = DecisionMamba(None, seed=0).fit(folder, 1)
    meter.note("fit: opened, statistics, first update")
    model.fit(None, n_updates)
    meter.note(f"fit: {n_updates:,} updates")
    data = load_trajectories(folder)
    sampler = WindowSampler(data, model.config.context_length, model.config.batch_size)
    for update in range(n_batches):
        sampler.sample(update)
    meter.note(f"fit: {n_batches:,} more batches drawn")
    model.fit(load_trajectories(folder, top_fraction=0.5, reward_mode="delayed"), 10)
    meter.note("fit: best half, delayed rewards, 10 updates")


def train_in_memory(n_updates: int) -> None:
    """Fit the default network to 20 episodes in memory."""
    from sb3_dmamba import DecisionMamba, Trajectories

    meter = Meter()
    generator = np.random.default_rng(0)
    episodes = [make_episode(generator) for _ in range(20)]
    observations, actions, rewards = ([part[i] for part in episodes] for i in range(3))
    data = Trajectories.from_episodes(
        observations,
        actions,
        rewards,
        [False] * 20,
        [True] * 20,
        observation_space=OBSERVATION_SPACE,
        action_space=ACTION_SPACE,
    )
    DecisionMamba(None, seed=0).fit(data, n_updates)
    meter.note(f"20 episodes in memory: {n_updates:,} updates")


def run(part: str, *arguments: object) -> list[Stage]:
    """Run a function of this module in a process of its own, and return what it noted."""
    command = [sys.executable, "-m", "benchmarks.suites.memory", part, *map(str, arguments)]
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    lines = finished.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"stage"')]


def measure(request: Request) -> Report:
    """Write, fit, and weigh.

    Raises:
        ConfigError: The system tells no process what memory it takes.
    """
    if not Path("/proc/self/status").exists():
        raise ConfigError("memory reads /proc/self/status, which this system does not have")
    n_bytes = (1 << 22) if request.quick else 2 << 30
    n_updates, n_batches = (3, 20) if request.quick else (300, 10_000)
    n_episodes = n_bytes // EPISODE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        stages = run("write", store, n_episodes)
        size = sum(path.stat().st_size for path in store.iterdir())
        fitted = run("train", store, n_updates, n_batches)
    stages += [*fitted, *run("train_in_memory", n_updates)]
    largest = max(stage["peak"] for stage in fitted)
    more = largest - stages[-1]["peak"]
    said = f"fitting took {largest:.0f} MiB of its own, {more:+.0f} against the data in memory"
    notes = [f"F{said[1:]}; the limit is {LIMIT:+.0f}."]
    failures = [] if more <= LIMIT else [f"{said}, not {LIMIT:+.0f}"]
    title = f"A store of {size / 2**30:.2f} GiB, {n_episodes * LENGTH:,} steps"
    table = Table("memory", title, _COLUMNS, stages, notes)
    return Report("memory", "Data larger than memory", _METHOD, [table], failures=failures)


if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    if part == "write":
        write(Path(arguments[0]), int(arguments[1]))
    elif part == "train":
        train(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    else:
        train_in_memory(int(arguments[0]))
