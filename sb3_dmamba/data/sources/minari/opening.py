"""From an id, a folder or a ``MinariDataset`` to a dataset read whole or in pieces."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dmamba.checks import near_names
from sb3_dmamba.compatibility import qualify_id
from sb3_dmamba.data._checks import CHUNK_BYTES
from sb3_dmamba.data._paths import describe_missing_path
from sb3_dmamba.data._progress import Bar
from sb3_dmamba.data._warn import warn_caller
from sb3_dmamba.data.sources.minari.hdf5 import read_episodes
from sb3_dmamba.data.sources.minari.remote import download_minari
from sb3_dmamba.data.sources.minari.spaces import read_space
from sb3_dmamba.data.spaces import check_action_space, flat_space, observation_dtype
from sb3_dmamba.data.store.gathering import IN_MEMORY_BYTES, spill_pieces
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.folders import minari_folder

__all__ = [
    "Dataset",
    "find_minari_folder",
    "load_minari_object",
    "open_minari_folder",
    "open_minari_id",
]

_METADATA_FILE = "metadata.json"
_MAIN_FILE = "main_data.hdf5"
_VERSION = re.compile(r"-v\d+$")
_OTHER_D4RL = re.compile(r"(antmaze|maze2d|pen|hammer|door|relocate|kitchen)-[a-z-]+-v\d")
_BUNDLED = Path(__file__).parents[2] / "bundled"  # laid out as Minari lays out its own folder


def open_minari_id(source: str, *, download: bool = True) -> Dataset:
    """Find a dataset in Minari's folder (``MINARI_DATASETS_PATH``, or ~/.minari/datasets).

    One that is not there is downloaded by Minari, which shows its progress. The dataset that this
    package carries, ``"sb3_dmamba/hopper-v0"``, is found everywhere.

    Args:
        source: The id, namespaces included.
        download: Whether to download what is not there.

    Raises:
        DatasetError: It is not there and cannot be downloaded (lists near names that are there,
            and how to get it), or is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    return Dataset.open(find_minari_folder(source, download=download) / "data")


def find_minari_folder(dataset_id: str, *, download: bool = True) -> Path:
    """Return a dataset's folder, which has ``data`` inside; arguments as :func:`open_minari_id`.

    Raises:
        DatasetError: It is not there and cannot be downloaded.
    """
    root = minari_folder()
    for place in (root, _BUNDLED):
        if (place / dataset_id / "data").is_dir():
            return place / dataset_id
    if not download or not _VERSION.search(dataset_id):
        raise DatasetError(_not_found(dataset_id, root))
    try:
        return download_minari(dataset_id, root)
    except DatasetError as error:
        raise DatasetError(f"{_not_found(dataset_id, root)}; {error}") from error


def open_minari_folder(source: str | os.PathLike[str]) -> Dataset:
    """Find a dataset in its folder (which has ``data`` inside), or in that ``data`` folder.

    Nothing is written there, and it may lie anywhere.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    folder = Path(source).expanduser()
    return Dataset.open(folder / "data" if (folder / "data").is_dir() else folder)


def load_minari_object(source: Any) -> Trajectories:
    """Load the episodes that a ``minari.MinariDataset`` selects, in its order.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    dataset = Dataset.open(Path(source.storage.data_path))
    return dataset.load([int(index) for index in source.episode_indices])


@dataclass(frozen=True)
class Dataset:
    """A dataset that was found: its metadata, checked; its episodes, to be read."""

    folder: Path
    observation_space: spaces.Space[Any]
    flat: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    n_episodes: int
    n_steps: int
    env_id: str | None
    env_kwargs: dict[str, Any]
    source: str

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Read the metadata in a ``data`` folder.

        Raises:
            DatasetError: It is malformed.
            SpaceError: A space cannot be learnt.
        """
        metadata = _read_metadata(folder)
        observation_space = read_space(metadata, "observation_space", folder / _METADATA_FILE)
        flat = flat_space(observation_space)
        action_space = check_action_space(
            read_space(metadata, "action_space", folder / _METADATA_FILE)
        )
        data_format = metadata.get("data_format", "hdf5")
        if data_format != "hdf5":
            raise DatasetError(
                f"the Minari dataset in {folder} is stored as {data_format!r}: "
                f"only 'hdf5', Minari's default, is read; write it again in that format"
            )
        n_episodes = _read_count(metadata, "total_episodes", folder)
        n_steps = _read_count(metadata, "total_steps", folder) or n_episodes
        env_id, env_kwargs = _read_environment(metadata, folder)
        source = f"minari:{metadata.get('dataset_id', folder.parent)}"
        return cls(
            folder,
            observation_space,
            flat,
            action_space,
            n_episodes,
            n_steps,
            env_id,
            env_kwargs,
            source,
        )

    def load(self, episodes: Sequence[int] | None = None) -> Trajectories:
        """Read episodes, by default all: into memory, or a temporary file if they are large.

        Raises:
            DatasetError: The file is malformed; names the member.
        """
        episodes = range(self.n_episodes) if episodes is None else episodes
        if len(episodes) * self._bytes_per_episode > IN_MEMORY_BYTES:
            return spill_pieces(self._cut(episodes))
        return self._read(episodes)

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read all episodes in pieces that fit into little memory; raises as :meth:`load`.

        Args:
            bar: Is told how many steps there are.
        """
        if bar is not None:
            bar.start(0, self.n_steps)
        return self._cut(range(self.n_episodes))

    def _cut(self, episodes: Sequence[int]) -> Iterator[Trajectories]:
        count = max(1, CHUNK_BYTES // self._bytes_per_episode)
        for first in range(0, max(len(episodes), 1), count):
            yield self._read(episodes[first : first + count])

    @property
    def _bytes_per_episode(self) -> int:
        row = np.dtype(observation_dtype(self.flat)).itemsize * math.prod(self.flat.shape)
        return max(1, row * self.n_steps // max(self.n_episodes, 1))

    def _read(self, episodes: Sequence[int]) -> Trajectories:
        if not len(episodes):
            raise DatasetError(
                f"the Minari dataset in {self.folder} has no episodes: it needs at least one"
            )
        arrays = read_episodes(
            self.folder / _MAIN_FILE, episodes, self.observation_space, self.flat, self.action_space
        )
        return Trajectories(
            **arrays,
            observation_space=self.flat,
            action_space=self.action_space,
            env_id=self.env_id,
            env_kwargs=self.env_kwargs,
            source=self.source,
            frame_stack=1,  # arrays is a plain dict, which may hold no other field
        )


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / _METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} is not a Minari dataset: it has no {_METADATA_FILE}"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file} cannot be read ({error}): download the dataset again"
        ) from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{file} holds no JSON object: download the dataset again")
    return metadata


def _read_count(metadata: dict[str, Any], key: str, folder: Path) -> int:
    count = metadata.get(key, 0)
    if type(count) is not int or count < 0:
        raise DatasetError(f"{folder / _METADATA_FILE}: {key} is {count!r}: it is a count")
    return count


def _read_environment(metadata: dict[str, Any], folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what ``gymnasium.make`` takes, from the recorded spec and without the package."""
    serialized = metadata.get("env_spec")
    if serialized is None:
        return None, {}
    try:
        spec = json.loads(serialized)
        env_id, entry_point = spec["id"], spec.get("entry_point")
        wrappers = [wrapper["name"] for wrapper in spec.get("additional_wrappers") or ()]
        kwargs = dict(spec.get("kwargs") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{folder / _METADATA_FILE}: env_spec is malformed ({error!r})"
        ) from error
    if wrappers:
        warn_caller(
            f"the dataset in {folder} was recorded from {env_id} through {', '.join(wrappers)}, "
            f"which its metadata cannot rebuild: pass the environment yourself to evaluate"
        )
        return None, {}
    if spec.get("max_episode_steps") is not None:
        kwargs["max_episode_steps"] = spec["max_episode_steps"]
    return qualify_id(env_id, entry_point), kwargs


def _not_found(dataset_id: str, root: Path) -> str:
    local = sorted(
        file.parent.parent.relative_to(root).as_posix()
        for file in root.glob(f"**/data/{_METADATA_FILE}")
    )
    close = near_names(dataset_id, local, n=3, cutoff=0.5)
    if close:
        there = f"near names there: {', '.join(close)}"
    elif local:
        there = f"there are {', '.join(local[:10])}{', ...' if len(local) > 10 else ''}"
    else:
        there = "no dataset is there"
    hint = ""
    if _OTHER_D4RL.fullmatch(dataset_id):
        hint = "; if you mean D4RL's dataset of that name, pass its HDF5 file"
    missing = f"{describe_missing_path(dataset_id)}, and no Minari dataset in {root} ({there})"
    if not _VERSION.search(dataset_id):
        return f"{missing}; names of Minari's end in a version, as 'mujoco/hopper/medium-v0'{hint}"
    return (
        f"{missing}: give the right path, download it with 'minari download {dataset_id}', or set "
        f"MINARI_DATASETS_PATH to where it is{hint}"
    )
