"""D4RL's layouts: flat arrays in HDF5 and .npz, Decision Transformer pickles, and D4RL names."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.d4rl import D4RLName, cache_folder, find_robot, parse_name
from sb3_dmamba.data.joining import IN_MEMORY_BYTES, join_pieces, spill_pieces
from sb3_dmamba.data.sources.arrays import (
    DONES,
    FLAGS,
    KEYS,
    REQUIRED,
    check_keys,
    check_lengths,
    check_time_limit,
    copy_rows,
    cut_episodes,
    flags_needed,
    infer_action_space,
    infer_observation_space,
    list_flag_like,
    load_arrays,
    naming,
    placing,
    read_ends,
    read_flags,
    step_shape,
)
from sb3_dmamba.data.sources.download import OFFLINE_VARIABLE, download_file, is_offline
from sb3_dmamba.data.sources.hdf5 import check_numbers, find_node, list_keys
from sb3_dmamba.data.sources.npz import Archive, NpyArray
from sb3_dmamba.data.sources.pickles import load_plain_pickle, to_array
from sb3_dmamba.data.trajectories import Trajectories, replace
from sb3_dmamba.data.validation import CHUNK_BYTES, group_episodes, rows_per_chunk
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import Bar, describe_missing_path
from sb3_dmamba.spaces import check_action_space

MediumExpert = Literal["d4rl", "paper"]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_d4rl_name(
    source: str,
    *,
    medium_expert: MediumExpert = "d4rl",
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> D4RLDataset:
    """Find a Gym-MuJoCo dataset by D4RL's name, ``"hopper-medium-replay-v2"``.

    Args:
        source: The name.
        medium_expert: What medium-expert means: D4RL's own file (``"d4rl"``), or the expert's whole
            episodes followed by the medium ones', as the Decision Transformer has them
            (``"paper"``).
        folder: Where files are looked for and downloaded to: D4RL's, ``<name>.hdf5``, or the
            Decision Transformer's ``<name>.pkl``. None: ``D4RL_DATASET_DIR`` or ~/.d4rl/datasets.
        download: Whether a file that is not there is downloaded from D4RL's address.
        progress_bar: Show a bar, on stderr, while it is.
        observation_space: As :func:`open_d4rl_file` has it.
        action_space: As :func:`open_d4rl_file` has it.

    Raises:
        DatasetError: There is no such dataset, or it cannot be downloaded (says where to put it).

    Source: Fu et al. 2020 (arXiv:2004.07219); the concatenation, Ota 2024 (arXiv:2403.19925) in
    its official code.
    """
    name = parse_name(source)
    if medium_expert not in get_args(MediumExpert):
        choices = get_args(MediumExpert)
        problem = f"medium_expert={medium_expert!r}: give 'd4rl' or 'paper'"
        raise DatasetError(problem, setting="medium_expert", value=medium_expert, choices=choices)
    names = [name]
    if medium_expert == "paper":
        if name.quality != "medium-expert":
            problem = f"medium_expert='paper' is for medium-expert, and not for {name}"
            raise DatasetError(problem, setting="medium_expert", value=medium_expert)
        names = [D4RLName(name.robot, quality, name.version) for quality in ("expert", "medium")]
    files = {}
    for part in names:
        path = find_d4rl_file(
            str(part), folder=folder, download=download, progress_bar=progress_bar
        )
        files[part] = open_d4rl_file(
            path,
            observation_space=observation_space,
            action_space=action_space,
            max_episode_steps=part.settings.max_episode_steps,
        )
    return D4RLDataset(files)


@dataclass(frozen=True)
class D4RLDataset:
    """A dataset of D4RL's, or the whole episodes of several, joined."""

    files: Mapping[D4RLName, D4RLFile]

    def load(self) -> Trajectories:
        """Read all of it, into memory or a temporary file."""
        parts = [self._describe(name, file.load()) for name, file in self.files.items()]
        if len(parts) == 1:
            return parts[0]
        return join_pieces([part.drop_cut_episodes() for part in parts])

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory."""
        for name, file in self.files.items():
            for piece in file.pieces(bar):
                if len(self.files) == 1:
                    yield self._describe(name, piece)
                elif not piece.cut.all():
                    yield self._describe(name, piece.drop_cut_episodes())

    def _describe(self, name: D4RLName, data: Trajectories) -> Trajectories:
        """Set environment and source, if the shapes are those of the name's robot."""
        robot, path = name.settings, self.files[name].path
        shapes = (data.observations.shape[1:], data.actions.shape[1:])
        if shapes != ((robot.n_observations,), (robot.n_actions,)):
            problem = (
                f"{path} is not {name}: observations and actions have shapes {shapes[0]} and "
                f"{shapes[1]}, expected {robot.n_observations} and {robot.n_actions} numbers; "
                "delete it to download it again"
            )
            raise DatasetError(problem, path=path, value=shapes)
        source = "d4rl:" + "+".join(map(str, self.files))
        return replace(data, env_id=robot.env_id, env_kwargs=robot.env_kwargs, source=source)


def find_d4rl_file(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
) -> Path:
    """Return the file of a name, downloaded if need be; arguments as :func:`open_d4rl_name`."""
    wanted = parse_name(name)
    place = cache_folder() if folder is None else Path(folder).expanduser()
    for file_name in wanted.file_names():
        if (place / file_name).is_file():
            return place / file_name
    target = place / wanted.file_name
    if not download or is_offline():
        why = "download=False" if not download else f"{OFFLINE_VARIABLE} is set"
        raise DatasetError(
            f"{name!r} is not in {place} and is not downloaded ({why}): get {wanted.url} and put "
            f"it at {target}, or set D4RL_DATASET_DIR to the folder that has it",
            path=target,
            setting="download" if not download else OFFLINE_VARIABLE,
        )
    return download_file(wanted.url, target, signature=_HDF5_SIGNATURE, progress_bar=progress_bar)


def open_d4rl_file(
    source: str | os.PathLike[str],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    no_time_limit: bool = False,
) -> D4RLFile:
    """Take an HDF5 or .npz file of flat arrays with D4RL's keys, or a Decision Transformer pickle.

    Args:
        source: The file. HDF5 and .npz: ``observations`` and ``actions`` (N, ...), ``rewards``,
            ``terminals`` and ``timeouts`` (N,). A pickle: a list of one dict an episode with the
            same keys, or one dict of flat arrays; no code in it is run.
        observation_space: The environment's. None: an unbounded Box, or frames of bytes.
        action_space: The environment's. None: inferred from the actions, as for a dict of arrays.
        env_id: What ``gymnasium.make`` takes. None: found by the file's name and shapes.
        env_kwargs: Its other arguments.
        max_episode_steps: Where flat arrays have no ``timeouts`` (D4RL's oldest), the steps after
            which an episode that did not terminate was truncated, as for a dict of arrays.
        no_time_limit: Where ``dones`` or ``episode_starts`` is their only flag, True says that
            every end is a termination.

    Raises:
        DatasetError: ``max_episode_steps`` is not a positive integer.
    """
    path = Path(source).expanduser()
    limit = check_time_limit(max_episode_steps, no_time_limit)
    return D4RLFile(path, observation_space, action_space, env_id, env_kwargs, limit)


@dataclass(frozen=True)
class D4RLFile:
    """A file and the options it is read with; see :func:`open_d4rl_file`."""

    path: Path
    observation_space: spaces.Space[Any] | None = None
    action_space: spaces.Space[Any] | None = None
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] | None = None
    max_episode_steps: int | None = None

    def load(self) -> Trajectories:
        """Read all of it, into memory or a temporary file."""
        if self._is_pickle:
            return self._read_pickle()
        with self._open() as file:
            if file.n_bytes > IN_MEMORY_BYTES:
                return spill_pieces(file.pieces())
            return file.read(0, len(file.ends))

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory."""
        if self._is_pickle:  # which can only be read whole
            yield self._read_pickle()
            return
        with self._open() as file:
            if bar is not None:
                bar.start(0, file.n_steps)
            yield from file.pieces()

    def environment(self, observation: tuple[int, ...], action: tuple[int, ...]) -> dict[str, Any]:
        """Return ``env_id`` and ``env_kwargs``: those given, else those of the file's name."""
        return find_environment(self.path, observation, action, self.env_id, self.env_kwargs)

    @contextlib.contextmanager
    def _open(self) -> Iterator[_FlatFile]:
        is_archive = self.path.suffix.lower() == ".npz"
        file: h5py.File | Archive
        try:
            file = Archive(self.path) if is_archive else h5py.File(self.path, "r")
        except FileNotFoundError:
            raise DatasetError(describe_missing_path(self.path), path=self.path) from None
        except (OSError, ValueError) as error:
            kind = ".npz" if is_archive else "HDF5"
            problem = f"{self.path} is damaged or no {kind} file ({error}): get it again"
            raise DatasetError(problem, path=self.path) from error
        with file, naming(self.path):
            yield _FlatFile(file, self)

    @property
    def _is_pickle(self) -> bool:
        return self.path.suffix.lower() in (".pkl", ".pickle")

    @property
    def name(self) -> str:
        """Name of the dataset in summaries and reports."""
        return f"{'npz' if self.path.suffix.lower() == '.npz' else 'd4rl'}:{self.path}"

    def _read_pickle(self) -> Trajectories:
        contents = load_plain_pickle(self.path)
        given: dict[str, Any] = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
        }
        try:
            with naming(self.path):
                if isinstance(contents, dict):
                    keys = [key for key in (*KEYS, *DONES) if key in contents]
                    flat = {key: _to_array(contents, key) for key in keys}
                    contents = {**contents, **flat, **_read_flag_like(contents)}
                    limit = self.max_episode_steps
                    time_limit: dict[str, Any] = {
                        "max_episode_steps": limit or None,
                        "no_time_limit": limit == 0,
                    }
                    data = load_arrays(contents, **given, **time_limit, name=self.name)
                else:
                    data = _join_episodes(contents, **given, name=self.name)
        except MemoryError as error:
            problem = f"{self.path}: its episodes do not fit into memory together"
            raise DatasetError(problem, path=self.path) from error
        shapes = data.observations.shape[1:], data.actions.shape[1:]
        return replace(data, **self.environment(*shapes))


def find_environment(
    path: Path,
    observation: tuple[int, ...],
    action: tuple[int, ...],
    env_id: str | None,
    env_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return ``env_id`` and ``env_kwargs``: those given, else those of a file's name and shapes."""
    robot = find_robot(path, observation, action)
    if env_id is None and robot is not None:
        return {"env_id": robot.env_id, "env_kwargs": env_kwargs or robot.env_kwargs}
    return {"env_id": env_id, "env_kwargs": env_kwargs or {}}


class _FlatFile:
    """An open file of flat arrays: the flags are read, the other arrays on demand."""

    def __init__(self, file: h5py.File | Archive, options: D4RLFile) -> None:
        self._file, self._options = file, options
        keys = list(file) if isinstance(file, Archive) else list_keys(file)
        self._check_kind(keys)
        check_keys(keys, flags_needed(options.max_episode_steps))
        self._arrays = {key: self._find(key) for key in (*KEYS, *DONES) if key in keys}
        check_lengths({key: array.shape for key, array in self._arrays.items()})
        self.n_steps = len(self._arrays["rewards"])
        flags = {key: self._read(key, 0, self.n_steps) for key in FLAGS if key in self._arrays}
        names = list_flag_like([*keys, *self._names_of_infos()])
        found = {key: self._find(key) for key in names if self._is_a_step(key)}
        self._arrays |= found
        others = {key: self._read(key, 0, self.n_steps) for key in found}
        self._terminated, self._truncated = read_flags(
            flags, self.n_steps, options.max_episode_steps, others
        )
        self.offsets, self.ends = cut_episodes(self._terminated, self._truncated)
        self._shapes = {key: step_shape(key, self._arrays[key]) for key in REQUIRED}
        self._action_space = options.action_space
        if self._action_space is None:
            step = rows_per_chunk(self._arrays["actions"])
            self._action_space = infer_action_space(
                self._read("actions", first, min(first + step, self.n_steps))
                for first in range(0, self.n_steps, step)
            )

    @property
    def n_bytes(self) -> int:
        """Memory that observations and actions take."""
        keys = ("observations", "actions")
        row = sum(
            math.prod(self._shapes[key]) * _memory_type(self._arrays[key]).itemsize for key in keys
        )
        return self.n_steps * max(1, row)

    def pieces(self) -> Iterator[Trajectories]:
        """Read whole episodes at a time, of about ``CHUNK_BYTES``."""
        steps = max(1, CHUNK_BYTES * self.n_steps // self.n_bytes)
        return (self.read(*group) for group in group_episodes(self.offsets, steps))

    def read(self, first: int, last: int) -> Trajectories:
        """Read episodes ``first`` to ``last``, exclusive."""
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        arrays = {key: self._read(key, start, stop) for key in REQUIRED}
        arrays["terminals"] = self._terminated[start:stop]
        arrays["timeouts"] = self._truncated[start:stop]
        shapes = self._shapes["observations"], self._shapes["actions"]
        with placing(start, first):
            return load_arrays(
                arrays,
                observation_space=self._options.observation_space,
                action_space=self._action_space,
                **self._options.environment(*shapes),
                name=self._options.name,
            )

    def _read(self, key: str, start: int, stop: int) -> ndarray:
        """Read steps of an array, a piece at a time; floats become float32."""
        source = self._arrays[key]
        values = np.empty((stop - start, *source.shape[1:]), dtype=_memory_type(source))
        step = rows_per_chunk(source)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            try:
                source.read_direct(values, np.s_[first:last], np.s_[first - start : last - start])
            except (OSError, RuntimeError, ValueError) as error:
                problem = f"{key}: steps {first} to {last - 1} are damaged ({error})"
                raise DatasetError(problem, index=first, setting=key) from error
        return values.reshape(stop - start, *step_shape(key, source))

    def _names_of_infos(self) -> list[str]:
        if isinstance(self._file, Archive):
            return []
        for key in ("infos", "info"):
            with contextlib.suppress(OSError, RuntimeError, KeyError, TypeError, ValueError):
                is_here = isinstance(self._file.get(key, getlink=True), h5py.HardLink)
                node = self._file.get(key) if is_here else None
                if isinstance(node, h5py.Group):
                    return [f"{key}/{name}" for name in node]
        return []

    def _is_a_step(self, key: str) -> bool:
        """Whether a number in this file has the length of the rewards, and can be read."""
        try:
            node = self._find(key)
        except DatasetError:
            return False
        return bool(node.shape[0] == math.prod(node.shape) == self.n_steps)

    def _find(self, key: str) -> h5py.Dataset | NpyArray:
        """Return an array whose contents lie in this file and are numbers."""
        if isinstance(self._file, Archive):
            try:
                return check_numbers(self._file[key], key)
            except ValueError as error:
                problem = f"{key}: {error}: get the file again"
                raise DatasetError(problem, setting=key) from error
        node = find_node(self._file, key)
        if not isinstance(node, h5py.Dataset):
            raise DatasetError(f"{key}: it is not an array", setting=key)
        return check_numbers(node, key)

    def _check_kind(self, keys: Sequence[str]) -> None:
        """Recognise HDF5 files of other kinds."""
        if isinstance(self._file, Archive):
            return
        if "episode_0" in keys:
            folder = str(self._options.path.resolve().parent)
            raise DatasetError(f"this is a file of Minari's: pass its folder, {folder!r}")
        if "observations_0" in keys:
            raise DatasetError(
                "this is a file of d3rlpy's: load it with d3rlpy, and pass what that returns"
            )


def _memory_type(array: h5py.Dataset | NpyArray) -> np.dtype[Any]:
    dtype: np.dtype[Any] = array.dtype
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


def _join_episodes(
    contents: Any,
    *,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    name: str,
) -> Trajectories:
    """Join a list of one dict an episode.

    An episode needs ``terminals``, ``timeouts`` or both. The Decision Transformer's files have no
    ``timeouts``, and only episodes that ended: there, one that did not terminate ran out of time.

    Source: gym/data/download_d4rl_datasets.py in github.com/kzl/decision-transformer.
    """
    if not isinstance(contents, (list, tuple)) or not contents:
        found = "no episode" if contents in ([], ()) else type(contents).__name__
        raise DatasetError(
            f"it holds {found}: a list of one dict an episode is needed, or a dict of flat arrays"
        )
    episodes: list[dict[str, ndarray]] = []
    for number, episode in enumerate(contents):
        try:
            episodes.append(_read_episode(episode))
        except DatasetError as error:
            error.args, error.episode = (f"episode {number}: {error}",), number
            raise
    if action_space is None:
        action_space = infer_action_space(each["actions"] for each in episodes)
    if observation_space is None:
        observation_space = infer_observation_space(episodes[0]["observations"])
    return copy_rows(
        ((each["observations"], each["actions"], each["rewards"]) for each in episodes),
        [len(each["rewards"]) for each in episodes],
        [bool(each["terminated"]) for each in episodes],
        [bool(each["truncated"]) for each in episodes],
        space=observation_space,
        action_space=check_action_space(action_space),
        source=name,
    )


def _read_episode(episode: Any) -> dict[str, ndarray]:
    if not isinstance(episode, Mapping):
        raise DatasetError(f"expected a dict of arrays, got {type(episode).__name__}")
    check_keys(episode, FLAGS)
    arrays = {key: _to_array(episode, key) for key in (*KEYS, *DONES) if key in episode}
    check_lengths({key: array.shape for key, array in arrays.items()})
    for key, array in arrays.items():
        arrays[key] = array.reshape(len(array), *step_shape(key, array))
    terminated, truncated = read_ends(arrays, _read_flag_like(episode))
    arrays["terminated"] = np.array(terminated)
    arrays["truncated"] = np.array(not terminated if truncated is None else truncated)
    return arrays


def _read_flag_like(source: Mapping[Any, Any]) -> dict[str, ndarray]:
    """Return the arrays of a pickled dict whose names look like flags that are not read."""
    found = {}
    for key in list_flag_like(source):
        with contextlib.suppress(DatasetError):
            found[key] = to_array(source[key])
    return found


def _to_array(source: Mapping[Any, Any], key: str) -> ndarray:
    try:
        return to_array(source[key])
    except DatasetError as error:
        raise DatasetError(f"{key}: {error}", setting=key) from error
