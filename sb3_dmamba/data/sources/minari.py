"""Minari datasets, in HDF5, Arrow or Parquet: an id, a folder or a ``MinariDataset``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import h5py
import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.checks import near_names
from sb3_dmamba.data.joining import IN_MEMORY_BYTES, spill_pieces
from sb3_dmamba.data.sources.arrays import copy_rows, naming
from sb3_dmamba.data.sources.arrow import arrange, decode_images, read_columns, to_numpy
from sb3_dmamba.data.sources.download import OFFLINE_VARIABLE, is_offline
from sb3_dmamba.data.sources.hdf5 import find_node
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import CHUNK_BYTES, within
from sb3_dmamba.envs.make import HARMLESS_WRAPPERS, qualify_id
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import Bar, describe_missing_path, minari_folder, warn_caller
from sb3_dmamba.spaces import check_action_space, flat_space, observation_dtype

_METADATA = "metadata.json"
_FORMATS = ("hdf5", "arrow", "parquet")
_VERSION = re.compile(r"-v\d+$")
_OTHER_D4RL = re.compile(r"(antmaze|maze2d|pen|hammer|door|relocate|kitchen)-[a-z-]+-v\d")
_BUNDLED = Path(__file__).parents[1] / "bundled"  # laid out as Minari lays out its own folder
_HOST = "huggingface.co"  # of Minari's default, hf://farama-minari
_INSTALL = 'pip install "minari[hf]" (or "minari[gcs]" where MINARI_REMOTE begins with gcp)'


def open_minari_id(
    source: str,
    *,
    download: bool = True,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Dataset:
    """Find a dataset in Minari's folder (``MINARI_DATASETS_PATH``, or ~/.minari/datasets).

    One that is not there is downloaded by Minari, which shows its progress. The dataset that this
    package carries, ``"sb3_dmamba/halfcheetah-v0"``, is found everywhere.

    Args:
        source: The id, namespaces included.
        download: Whether to download what is not there.
        observation_space: The environment's; None is the one that the dataset records.
        action_space: Likewise.

    Raises:
        DatasetError: It is not there and cannot be downloaded (lists near names that are there,
            and how to get it), or is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    folder = find_minari_folder(source, download=download)
    return Dataset.open(folder / "data", observation_space, action_space)


def open_minari_folder(
    source: str | os.PathLike[str],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Dataset:
    """Find a dataset in its folder (which has ``data`` inside), or in that ``data`` folder.

    Nothing is written there, and it may lie anywhere. Spaces as :func:`open_minari_id` has them.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    folder = Path(source).expanduser()
    folder = folder / "data" if (folder / "data").is_dir() else folder
    return Dataset.open(folder, observation_space, action_space)


def load_minari_object(
    source: Any,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Trajectories:
    """Load the episodes that a ``minari.MinariDataset`` selects, in its order.

    Spaces as :func:`open_minari_id` has them.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    dataset = Dataset.open(Path(source.storage.data_path), observation_space, action_space)
    return dataset.load([int(index) for index in source.episode_indices])


@dataclass(frozen=True)
class Dataset:
    """A dataset whose metadata was read and checked, and whose episodes were not yet read."""

    folder: Path
    data_format: str  # hdf5, arrow or parquet
    observation_space: spaces.Space[Any]
    action_space: spaces.Box | spaces.Discrete
    n_episodes: int
    bytes_per_episode: int
    n_steps: int
    env_id: str | None
    env_kwargs: dict[str, Any]
    source: str

    @classmethod
    def open(
        cls,
        folder: Path,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> Dataset:
        """Read the metadata in a ``data`` folder; a space that is given replaces its own."""
        with naming(folder / _METADATA):
            metadata = _read_metadata(folder)
            recorded = _read_space(metadata, "observation_space")
            observation_space = recorded if observation_space is None else observation_space
            flat = flat_space(observation_space)
            recorded = _read_space(metadata, "action_space")
            taken = check_action_space(recorded if action_space is None else action_space)
            data_format = metadata.get("data_format", "hdf5")
            if data_format not in _FORMATS:
                problem = f"the dataset is stored as {data_format!r}, and {_FORMATS} are read"
                where = {"setting": "data_format", "value": data_format, "choices": _FORMATS}
                raise DatasetError(problem, **where)
            n_episodes = _read_count(metadata, "total_episodes")
            n_episodes = _count_episodes(folder) if n_episodes is None else n_episodes
            n_steps = _read_count(metadata, "total_steps") or n_episodes
            env_id, env_kwargs = _read_environment(metadata, folder)
        row = np.dtype(observation_dtype(flat)).itemsize * math.prod(flat.shape)
        return cls(
            folder,
            data_format,
            observation_space,
            taken,
            n_episodes,
            max(1, row * n_steps // max(n_episodes, 1)),
            n_steps,
            env_id,
            env_kwargs,
            f"minari:{metadata.get('dataset_id', folder.parent)}",
        )

    def load(self, episodes: Sequence[int] | None = None) -> Trajectories:
        """Read episodes, by default all: into memory, or a temporary file if they are large."""
        episodes = range(self.n_episodes) if episodes is None else episodes
        if len(episodes) * self.bytes_per_episode > IN_MEMORY_BYTES:
            return spill_pieces(self._cut(episodes))
        return self._read(episodes)

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read all episodes in pieces that fit into little memory; raises as :meth:`load`."""
        if bar is not None:
            bar.start(0, self.n_steps)
        return self._cut(range(self.n_episodes))

    def _cut(self, episodes: Sequence[int]) -> Iterator[Trajectories]:
        count = max(1, CHUNK_BYTES // self.bytes_per_episode)
        for first in range(0, max(len(episodes), 1), count):
            yield self._read(episodes[first : first + count])

    def _read(self, episodes: Sequence[int]) -> Trajectories:
        if not len(episodes):
            problem = f"the Minari dataset in {self.folder} has no episodes: it needs at least one"
            raise DatasetError(problem, path=self.folder)
        with self._open() as find:
            parts = [find(number) for number in episodes]
            return copy_rows(
                (each.steps(self.observation_space, self.action_space) for each in parts),
                [each.length for each in parts],
                [_read_end(each, "terminations") for each in parts],
                [_read_end(each, "truncations") for each in parts],
                space=self.observation_space,
                action_space=self.action_space,
                label=lambda index: parts[index].name,
                env_id=self.env_id,
                env_kwargs=self.env_kwargs,
                source=self.source,
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[Callable[[int], _HDF5Episode | _ArrowEpisode]]:
        """Give a function that finds an episode by its number."""
        if self.data_format != "hdf5":
            with naming(self.folder):
                yield lambda number: _ArrowEpisode(self.folder, number, self.data_format)
            return
        path = self.folder / "main_data.hdf5"
        try:
            with naming(path), h5py.File(path, "r") as file:
                yield lambda number: _HDF5Episode(file, number)
        except FileNotFoundError:
            raise DatasetError(describe_missing_path(path), path=path) from None
        except OSError as error:
            problem = f"{path} is damaged or no HDF5 file ({error}): download the dataset again"
            raise DatasetError(problem, path=path) from error


class _HDF5Episode:
    """An episode in an open HDF5 file; each array is read when it is asked for."""

    def __init__(self, file: h5py.File, number: int) -> None:
        self._group = _find(file, f"episode_{number}", h5py.Group)
        self.name = str(self._group.name)
        self.length = _check_length(self.name, len(_find(self._group, "rewards", h5py.Dataset)))

    def read(self, key: str) -> ndarray:
        values: ndarray = _find(self._group, key, h5py.Dataset)[()]
        return values

    def steps(self, space: spaces.Space[Any], _: object) -> tuple[Any, ndarray, ndarray]:
        observations = _decode(_find(self._group, "observations"), space, self.length)
        return observations, self.read("actions"), self.read("rewards")


class _ArrowEpisode:
    """An episode in a folder of Arrow or Parquet files; observations and actions on demand.

    Its last row holds the observation after the last step, and nothing else.
    """

    def __init__(self, folder: Path, number: int, data_format: str) -> None:
        self.name = f"episode {number}"
        self._folder, self._pattern = folder / str(number), f"*.{data_format}"
        self._arrays = self._read("rewards", "terminations", "truncations")
        self.length = _check_length(self.name, len(self._arrays["rewards"]))

    def read(self, key: str) -> ndarray:
        values: ndarray = self._arrays[key]
        return values

    def steps(
        self, space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> tuple[Any, Any, ndarray]:
        found = self._read("observations", "actions")
        actions = arrange(found["actions"], action_space)
        return arrange(found["observations"], space), actions, self.read("rewards")

    def _read(self, *columns: str) -> dict[str, Any]:
        files = sorted(self._folder.glob(self._pattern))
        if not files:
            problem = f"{self.name}: there is no {self._folder / self._pattern}: download it again"
            raise DatasetError(problem, path=self._folder)
        try:
            arrays = read_columns(files, columns)
            return {
                key: to_numpy(each.slice(0, len(each) - 1), key) for key, each in arrays.items()
            }
        except DatasetError as error:
            raise within(error, self.name) from error


def _find(group: Any, key: str, kind: type | tuple[type, ...] = (h5py.Group, h5py.Dataset)) -> Any:
    node = find_node(group, key) if isinstance(group, h5py.Group) else None
    if not isinstance(node, kind):
        raise DatasetError(f"{group.name} has no {key!r}: download the dataset again", setting=key)
    return node


def _check_length(name: str, length: int) -> int:
    if length < 1:
        raise DatasetError(f"{name}: the episode has no steps", setting="rewards")
    return length


def _decode(node: Any, space: spaces.Space[Any], length: int) -> Any:
    """Read a space's values as a vector environment would return them, without the last one."""
    if isinstance(space, spaces.Dict):
        return {key: _decode(_find(node, key), part, length) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        nodes = (_find(node, f"_index_{index}") for index in range(len(space)))
        return tuple(_decode(*each, length) for each in zip(nodes, space, strict=True))
    if not isinstance(node, h5py.Dataset) or len(node) not in (length, length + 1):
        problem = f"{node.name} needs one observation for each of {length} steps and one after"
        raise DatasetError(problem, setting="observations")
    if isinstance(space, spaces.Box) and node.ndim != 1 + len(space.shape):
        return decode_images(node[:length], node.name, space.shape)
    return node[()][:length]


def _read_end(episode: _HDF5Episode | _ArrowEpisode, key: str) -> bool:
    """Return whether the flag of the last step is set; no other may be."""
    values, length = episode.read(key), episode.length
    if values.shape != (length,):
        problem = f"{episode.name}: {key} have shape {values.shape}, expected {(length,)}"
        raise DatasetError(problem, setting=key, value=values.shape)
    early = np.flatnonzero(values[:-1])
    if len(early):
        problem = f"{episode.name}: {key}[{early[0]}] is set before the last step, {length - 1}"
        raise DatasetError(problem, index=int(early[0]), setting=key)
    return bool(values[-1])


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / _METADATA
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = f"{folder} is not a Minari dataset: it has no {_METADATA}"
        raise DatasetError(problem, path=folder) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"it cannot be read ({error}): download the dataset again") from error
    if not isinstance(metadata, dict):
        raise DatasetError("it holds no JSON object: download the dataset again")
    return metadata


def _read_space(metadata: dict[str, Any], name: str) -> spaces.Space[Any]:
    from minari.serialization import deserialize_space

    if name not in metadata:
        problem = f"there is no {name}: write the dataset again with Minari 0.5 or later"
        raise DatasetError(problem, setting=name)
    try:
        space: spaces.Space[Any] = deserialize_space(metadata[name])
        return _restore_order(space, json.loads(metadata[name]))
    except (
        *(AssertionError, LookupError, TypeError, ValueError, AttributeError),
        *(RuntimeError, OverflowError, MemoryError),
    ) as error:
        problem = f"{name} is not a space that Minari knows ({error!r})"
        raise DatasetError(problem, setting=name, value=metadata[name]) from error


def _restore_order(space: spaces.Space[Any], recorded: Any) -> spaces.Space[Any]:
    """Undo the sorting of a Dict's keys: flattened parts must be in the environment's order."""
    if isinstance(space, spaces.Dict):
        parts = recorded["subspaces"]
        return spaces.Dict([(key, _restore_order(space[key], parts[key])) for key in parts])
    if isinstance(space, spaces.Tuple):
        pairs = zip(space, recorded["subspaces"], strict=True)
        return spaces.Tuple([_restore_order(*pair) for pair in pairs])
    return space


def _read_count(metadata: dict[str, Any], key: str) -> int | None:
    """Return a count, which may be written as 21.0; None where it is null."""
    count = metadata.get(key, 0)
    if count is None:
        return None
    is_number = isinstance(count, (int, float)) and not isinstance(count, bool)
    if not is_number or count % 1 != 0 or not 0 <= count < 2**63:
        raise DatasetError(f"{key} is {count!r}: it is a count", setting=key, value=count)
    return int(count)


def _count_episodes(folder: Path) -> int:
    """Count the episodes that there are, by their groups in HDF5, else by their folders."""
    if not (folder / "main_data.hdf5").exists():
        return sum(1 for _ in folder.glob(f"*/{_METADATA}"))
    try:
        with h5py.File(folder / "main_data.hdf5", "r") as file:
            return sum(name.startswith("episode_") for name in file)
    except OSError:
        return 0  # an error when it is read


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
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"env_spec is malformed ({error!r})", setting="env_spec") from error
    wrappers = [name for name in wrappers if name not in HARMLESS_WRAPPERS]
    if wrappers:
        named = metadata.get("dataset_id")
        warn_caller(
            f"the dataset in {folder} was recorded from {env_id} through {', '.join(wrappers)}, "
            f"which may change what is seen or paid: pass env=minari.load_dataset({named!r})"
            f".recover_environment to evaluate"
        )
        return None, {}
    if spec.get("max_episode_steps") is not None:
        kwargs["max_episode_steps"] = spec["max_episode_steps"]
    return qualify_id(env_id, entry_point), kwargs


def find_minari_folder(dataset_id: str, *, download: bool = True) -> Path:
    """Return a dataset's folder, which has ``data`` inside; arguments as :func:`open_minari_id`."""
    root = minari_folder()
    for place in (root, _BUNDLED):
        if (place / dataset_id / "data").is_dir():
            return place / dataset_id
    reason = ""
    if download and _VERSION.search(dataset_id):
        try:
            return _download(dataset_id, root)
        except DatasetError as error:
            reason = f"; {error}"
    local = sorted(
        file.parent.parent.relative_to(root).as_posix()
        for file in root.glob(f"**/data/{_METADATA}")
    )
    close = near_names(dataset_id, local, n=3, cutoff=0.5)
    there = f"near names there: {', '.join(close)}" if close else "no dataset is there"
    if local and not close:
        there = f"there are {', '.join(local[:10])}{', ...' if len(local) > 10 else ''}"
    advice = (
        f": give the right path, download it with 'minari download {dataset_id}', or set "
        f"MINARI_DATASETS_PATH to where it is"
    )
    if not _VERSION.search(dataset_id):
        advice = "; names of Minari's end in a version, as 'mujoco/hopper/medium-v0'"
    if _OTHER_D4RL.fullmatch(dataset_id):
        advice += "; if you mean D4RL's dataset of that name, pass its HDF5 file"
    problem = (
        f"{describe_missing_path(dataset_id)}, and no Minari dataset in {root} "
        f"({there}){advice}{reason}"
    )
    raise DatasetError(problem, value=dataset_id, choices=close or local)


def _download(dataset_id: str, root: Path) -> Path:
    """Download a dataset as Minari does, with its progress on stderr; a failed one is removed."""
    if is_offline():
        raise DatasetError(f"{dataset_id!r} is not downloaded: {OFFLINE_VARIABLE} is set")
    _check_reachable(dataset_id)
    import minari

    folder = root / dataset_id
    existed = folder.exists()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            minari.download_dataset(dataset_id)
    except BaseException as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        first_line = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        if isinstance(error, ImportError):
            reason = f"Minari's package for that is missing: {_INSTALL}"
        raise DatasetError(f"{dataset_id!r} could not be downloaded ({reason})") from error
    if not (folder / "data").is_dir():
        raise DatasetError(f"Minari downloaded {dataset_id!r} and {folder / 'data'} is not there")
    return folder


def _check_reachable(dataset_id: str) -> None:
    """Raise DatasetError where Minari's usual server has no address: it would retry for long."""
    if "MINARI_REMOTE" in os.environ or "HF_ENDPOINT" in os.environ or getproxies():
        return
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError as error:
        raise DatasetError(
            f"{dataset_id!r} could not be downloaded ({_HOST} cannot be reached: {error.strerror})"
        ) from error
