"""Where datasets lie, what is there, and whether more can be put there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sb3_dmamba.d4rl import cache_folder
from sb3_dmamba.data import load_trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.folders import minari_folder
from sb3_dmamba.tasks import get_task

__all__ = ["BUNDLED_TASK", "Place", "find_places", "why_no_bundled_dataset"]

BUNDLED_TASK = "hopper-bundled"
_GIB = 1024**3


@dataclass(frozen=True)
class Place:
    """A folder of datasets.

    Args:
        what: What lies there.
        path: The folder, which need not be there yet.
        setting: The environment variable that names another.
        n_datasets: How many there are.
        is_writable: Whether a dataset could be put there.
        free_gib: Room on its disk.
    """

    what: str
    path: str
    setting: str
    n_datasets: int
    is_writable: bool
    free_gib: float


def find_places() -> list[Place]:
    """Look at the folders that datasets are downloaded to."""
    return [
        _look_at("Minari", minari_folder(), "MINARI_DATASETS_PATH", "**/data/main_data.hdf5"),
        _look_at("D4RL", cache_folder(), "D4RL_DATASET_DIR", "*.hdf5"),
    ]


def why_no_bundled_dataset() -> str | None:
    """Say why the dataset inside the package cannot be read; None where it can."""
    try:
        load_trajectories(get_task(BUNDLED_TASK).dataset)
    except (DecisionMambaError, OSError) as error:
        return f"the dataset inside the package cannot be read ({error}): install it again"
    return None


def _look_at(what: str, path: Path, setting: str, pattern: str) -> Place:
    there = path
    while not there.exists():
        there = there.parent
    return Place(
        what=what,
        path=str(path),
        setting=setting,
        n_datasets=sum(1 for _ in path.glob(pattern)),
        is_writable=os.access(there, os.W_OK),
        free_gib=round(shutil.disk_usage(there).free / _GIB, 1),
    )
