"""Minari datasets: an id, a ``MinariDataset`` or a folder."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import h5py
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from sb3_dmamba.checks import near_names
from sb3_dmamba.console import Bar, warn_caller
from sb3_dmamba.data.joining import IN_MEMORY_BYTES, spill_pieces
from sb3_dmamba.data.sources.download import OFFLINE_VARIABLE, is_offline
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import CHUNK_BYTES
from sb3_dmamba.envs.make import qualify_id
from sb3_dmamba.errors import DatasetError, SpaceError
from sb3_dmamba.paths import describe_missing_path, minari_folder
from sb3_dmamba.spaces import check_action_space, flat_space, flatten_observation, observation_dtype


def read_space(metadata: dict[str, Any], name: str, file: Path) -> spaces.Space[Any]:
    """Read a space, the parts of a Dict in the order in which they were recorded.

    Args:
        metadata: What the file holds.
        name: The entry of the space.
        file: The metadata's file, for error messages.

    Raises:
        DatasetError: The entry is missing, or no space that Minari knows.
    """
    from minari.serialization import deserialize_space

    if name not in metadata:
        raise DatasetError(
            f"{file} has no {name}, and finding it out would need the environment: write the "
            f"dataset again with Minari 0.5 or later"
        )
    try:
        space: spaces.Space[Any] = deserialize_space(metadata[name])
        return _in_recorded_order(space, json.loads(metadata[name]))
    except (AssertionError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            f"{file}: {name} is not a space that Minari knows ({error!r})"
        ) from error


def _in_recorded_order(space: spaces.Space[Any], recorded: Any) -> spaces.Space[Any]:
    """Undo the sorting of a Dict's keys, which the environment's own space need not have.

    Flattened observations would otherwise differ from the environment's in the order of their
    parts, which no check of shapes can see.
    """
    if isinstance(space, spaces.Dict):
        parts = recorded["subspaces"]
        return spaces.Dict([(key, _in_recorded_order(space[key], parts[key])) for key in parts])
    if isinstance(space, spaces.Tuple):
        pairs = zip(space, recorded["subspaces"], strict=True)
        return spaces.Tuple([_in_recorded_order(*pair) for pair in pairs])
    return space


def read_episodes(
    file: Path,
    episodes: Sequence[int],
    observation_space: spaces.Space[Any],
    flat: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    """Read episodes into flat arrays.

    Args:
        file: ``main_data.hdf5``; only read.
        episodes: Ids of the episodes to read, in this order.
        observation_space: The environment's.
        flat: Its flat view.
        action_space: The environment's.

    Returns:
        ``observations``, ``actions``, ``rewards``, ``terminated``, ``truncated`` and
        ``episode_offsets`` of :class:`~sb3_dmamba.data.Trajectories`.

    Raises:
        DatasetError: The file is missing, damaged or inconsistent; names the member.
    """
    try:
        with h5py.File(file, "r") as storage:
            return _read(storage, episodes, observation_space, flat, action_space)
    except FileNotFoundError:
        raise DatasetError(f"{file} does not exist: download the dataset again") from None
    except OSError as error:
        raise DatasetError(
            f"{file} is damaged or no HDF5 file ({error}): download the dataset again"
        ) from error


def _read(
    storage: h5py.File,
    episodes: Sequence[int],
    observation_space: spaces.Space[Any],
    flat: spaces.Box,
    action_space: spaces.Box | spaces.Discrete,
) -> dict[str, ndarray]:
    groups = [_member(storage, f"episode_{episode}", h5py.Group) for episode in episodes]
    lengths = [len(_member(group, "rewards", h5py.Dataset)) for group in groups]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n_steps = int(offsets[-1])
    is_box = isinstance(action_space, spaces.Box)
    arrays = {
        "observations": np.empty((n_steps, *flat.shape), dtype=observation_dtype(flat)),
        "actions": np.empty(
            (n_steps, *(action_space.shape or ())), dtype=np.float32 if is_box else np.int64
        ),
        "rewards": np.empty(n_steps, dtype=np.float32),
        "terminated": np.empty(len(groups), dtype=np.bool_),
        "truncated": np.empty(len(groups), dtype=np.bool_),
        "episode_offsets": offsets,
    }
    for index, group in enumerate(groups):
        steps = slice(offsets[index], offsets[index + 1])
        length = lengths[index]
        if not length:
            raise DatasetError(f"{storage.filename}, {group.name}: the episode has no steps")
        observations = _decode(
            _member(group, "observations"), observation_space, length, _where(group)
        )
        try:
            arrays["observations"][steps] = flatten_observation(
                observation_space, observations, batch=True
            )
        except SpaceError as error:
            raise DatasetError(f"{_where(group)}: {error}") from error
        arrays["actions"][steps] = _read_steps(group, "actions", length, action_space.shape or ())
        arrays["rewards"][steps] = _read_steps(group, "rewards", length, ())
        for name, key in (("terminated", "terminations"), ("truncated", "truncations")):
            arrays[name][index] = _read_flag(group, key, length)
    return arrays


def _decode(node: Any, space: spaces.Space[Any], length: int, where: str) -> Any:
    """Read a space's values as a vector environment would return them, without the last one."""
    if isinstance(space, spaces.Dict):
        return {
            key: _decode(_member(node, key), child, length, where)
            for key, child in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(
            _decode(_member(node, f"_index_{index}"), child, length, where)
            for index, child in enumerate(space.spaces)
        )
    if not isinstance(node, h5py.Dataset) or len(node) not in (length, length + 1):
        raise DatasetError(
            f"{where}: {node.name} does not hold one observation for each of the {length} steps "
            f"(and one after the last): leave out that episode"
        )
    if isinstance(space, spaces.Box) and node.ndim != 1 + len(space.shape):
        return _decode_jpeg(node[:length], space, where)
    return node[()][:length]


def _decode_jpeg(frames: ndarray, space: spaces.Box, where: str) -> UInt8[ndarray, "T *frame"]:
    """Decode frames that Minari stored as JPEG files."""
    images = np.empty((len(frames), *space.shape), dtype=np.uint8)
    for index, frame in enumerate(frames):
        try:
            image = np.asarray(Image.open(io.BytesIO(frame.tobytes())))
        except (OSError, AttributeError) as error:
            raise DatasetError(f"{where}: frame {index} is not an image ({error})") from error
        if image.shape != space.shape and image.size != images[index].size:
            raise DatasetError(
                f"{where}: frame {index} has shape {image.shape} where {space.shape} is needed"
            )
        images[index] = image.reshape(space.shape)
    return images


def _read_steps(group: h5py.Group, key: str, length: int, shape: tuple[int, ...]) -> ndarray:
    values: ndarray = _member(group, key, h5py.Dataset)[()]
    if values.shape != (length, *shape):
        raise DatasetError(
            f"{_where(group)}: {key} have shape {values.shape} where {(length, *shape)} is needed"
        )
    return values


def _read_flag(group: h5py.Group, key: str, length: int) -> bool:
    values = _read_steps(group, key, length, ()).astype(bool)
    early = np.flatnonzero(values[:-1])
    if len(early):
        raise DatasetError(
            f"{_where(group)}: {key}[{early[0]}] is set before the last step, {length - 1}: an "
            f"episode must end there; write the dataset again with that episode split"
        )
    return bool(values[-1])


def _member(
    group: Any, key: str, kind: type | tuple[type, ...] = (h5py.Group, h5py.Dataset)
) -> Any:
    node = group.get(key) if isinstance(group, h5py.Group) else None
    if not isinstance(node, kind):
        raise DatasetError(f"{_where(group)} has no {key!r}: download the dataset again")
    return node


def _where(node: Any) -> str:
    return f"{node.file.filename}, {node.name}"


_HOST = "huggingface.co"  # of Minari's default, hf://farama-minari
_INSTALL = 'pip install "minari[hf]" (or "minari[gcs]" where MINARI_REMOTE begins with gcp)'


def download_minari(dataset_id: str, root: Path) -> Path:
    """Download a dataset, and its namespace, from the server that ``MINARI_REMOTE`` names.

    Minari shows its own progress, on stderr. What it has half done when it fails goes away.

    Args:
        dataset_id: With its version.
        root: Minari's folder of datasets.

    Returns:
        The dataset's folder, which has ``data`` inside.

    Raises:
        DatasetError: It is not there or cannot be reached, downloads are switched off, or the
            package that reaches that server is not installed.
    """
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
        if isinstance(error, ImportError):
            reason = f"Minari's package for that is missing: {_INSTALL}"
        else:
            reason = _first_line(error)
        raise DatasetError(f"{dataset_id!r} could not be downloaded ({reason})") from error
    if not (folder / "data").is_dir():
        raise DatasetError(f"Minari downloaded {dataset_id!r} and {folder / 'data'} is not there")
    return folder


def _check_reachable(dataset_id: str) -> None:
    """Raise DatasetError where Minari's usual server has no address, which it would try for long.

    A proxy finds the address itself, and another server may need none.
    """
    if "MINARI_REMOTE" in os.environ or "HF_ENDPOINT" in os.environ or getproxies():
        return
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError as error:
        raise DatasetError(
            f"{dataset_id!r} could not be downloaded ({_HOST} cannot be reached: {error.strerror})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_METADATA_FILE = "metadata.json"
_MAIN_FILE = "main_data.hdf5"
_VERSION = re.compile(r"-v\d+$")
_OTHER_D4RL = re.compile(r"(antmaze|maze2d|pen|hammer|door|relocate|kitchen)-[a-z-]+-v\d")
_BUNDLED = Path(__file__).parents[1] / "bundled"  # laid out as Minari lays out its own folder


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
