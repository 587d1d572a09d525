"""D4RL's Gym-MuJoCo datasets: names, file names, address and environments."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.errors import DatasetError

ADDRESS = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
"""D4RL's public address. Source: d4rl/infos.py in github.com/Farama-Foundation/D4RL."""

D4RL_NAME = re.compile(r"(halfcheetah|hopper|walker2d|ant)-([a-z]+(?:-[a-z]+)*)-v([012])")

_QUALITIES = ("random", "medium", "expert", "medium-replay", "medium-expert")
_ANY_QUALITY = "|".join((*_QUALITIES, "full-replay", "mixed"))
_FILE_STEM = re.compile(rf"(halfcheetah|hopper|walker|walker2d|ant)-(?:{_ANY_QUALITY})(?:-v[012])?")


@dataclass(frozen=True)
class Robot:
    """One of D4RL's four simulated robots."""

    env_id: str  # nearest to D4RL's: version 4 keeps version 2's rewards, version 5 changes them
    n_observations: int
    n_actions: int  # each from -1 to 1
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int = 1000  # of D4RL's episodes


ROBOTS = {
    "halfcheetah": Robot("HalfCheetah-v4", 17, 6),
    "hopper": Robot("Hopper-v4", 11, 3),
    "walker2d": Robot("Walker2d-v4", 17, 6),
    # D4RL's observations have the 84 contact forces, which version 4 leaves out by default.
    "ant": Robot("Ant-v4", 111, 8, {"use_contact_forces": True}),
}


@dataclass(frozen=True)
class D4RLName:
    """The parts of a dataset's name, such as ``hopper-medium-replay-v2``."""

    robot: str
    quality: str
    version: int

    def __str__(self) -> str:
        return f"{self.robot}-{self.quality}-v{self.version}"

    @property
    def settings(self) -> Robot:
        """Its robot's environment, sizes and time limit."""
        return ROBOTS[self.robot]

    @property
    def url(self) -> str:
        """Address of the file."""
        folder = "gym_mujoco" + (f"_v{self.version}" if self.version else "")
        return f"{ADDRESS}/{folder}/{self.file_name}"

    @property
    def file_name(self) -> str:
        """The file's name at D4RL's address, and in the folder that D4RL downloads to."""
        if self.version:
            return f"{self.robot}_{self.quality.replace('-', '_')}-v{self.version}.hdf5"
        robot, quality = self.robot, self.quality.replace("-", "_")
        if self.quality == "medium-replay":  # called mixed then, and this robot just walker
            robot, quality = {"walker2d": "walker"}.get(robot, robot), "mixed"
        return f"{robot}_{quality}.hdf5"

    def file_names(self) -> tuple[str, ...]:
        """Usual file names: D4RL's, the dataset's, and the Decision Transformer's."""
        return tuple(dict.fromkeys((self.file_name, f"{self}.hdf5", f"{self}.pkl")))


def list_names() -> list[str]:
    """Return every Gym-MuJoCo name of D4RL."""
    return [
        f"{robot}-{quality}-v{version}"
        for robot in ROBOTS
        for version in (0, 1, 2)
        for quality in (*_QUALITIES, *(("full-replay",) if version else ()))
    ]


def parse_name(name: str) -> D4RLName:
    """Split a name into its parts."""
    match = D4RL_NAME.fullmatch(name)
    names = list_names()
    if match is None or name not in names:
        close = near_names(name, names, n=3) or ["hopper-medium-v2"]
        message = f"D4RL has no Gym-MuJoCo dataset called {name!r}: {did_you_mean(close)}"
        raise DatasetError(message, setting="dataset", value=name, choices=close)
    return D4RLName(match[1], match[2], int(match[3]))


def find_robot(path: Path, observation: tuple[int, ...], action: tuple[int, ...]) -> Robot | None:
    """Return the robot of a data file, by its name and shapes; None unless they agree."""
    match = _FILE_STEM.fullmatch(path.stem.lower().replace("_", "-"))
    if match is None:
        return None
    robot = ROBOTS["walker2d" if match[1] == "walker" else match[1]]
    fits = (observation, action) == ((robot.n_observations,), (robot.n_actions,))
    return robot if fits else None


def cache_folder() -> Path:
    """Return the folder that D4RL downloads to: ``D4RL_DATASET_DIR``, or ~/.d4rl/datasets."""
    given = os.environ.get("D4RL_DATASET_DIR")
    return Path(given).expanduser() if given else Path.home() / ".d4rl" / "datasets"
