"""D4RL datasets: flat HDF5 files, Decision Transformer pickles and D4RL names."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.console import Bar
from sb3_dmamba.d4rl import D4RLName, cache_folder, find_robot, parse_name
from sb3_dmamba.data.joining import IN_MEMORY_BYTES, join_pieces, spill_pieces
from sb3_dmamba.data.sources.arrays import flatten_observations, infer_action_space
from sb3_dmamba.data.sources.download import OFFLINE_VARIABLE, download_file, is_offline
from sb3_dmamba.data.sources.pickles import read_pickle
from sb3_dmamba.data.trajectories import Trajectories, replace
from sb3_dmamba.data.validation import CHUNK_BYTES, rows_per_chunk
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.spaces import check_action_space

_TERMINATED = ("terminals", "terminations", "terminated")
_TRUNCATED = ("timeouts", "truncations", "truncated")
_MOST_COMPRESSED = 1100  # deflate's limit is 1032 to 1; more was never written


@contextlib.contextmanager
def open_flat_file(path: Path) -> Iterator[FlatFile]:
    """Open a file of flat arrays; what it announces is checked, its large arrays are not read.

    Raises:
        DatasetError: It is missing, damaged or no HDF5, or a member is missing, of a wrong dtype
            or length, or lies outside of the file. Names the member.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except OSError as error:
        raise DatasetError(
            f"{path} is damaged or no HDF5 file ({error}): delete it and get it again"
        ) from error
    with file:
        yield FlatFile(file, path)


class FlatFile:
    """An open file: the arrays with a number a step are read, the others are read on demand.

    Args:
        file: The open file.
        path: Its path, for messages.

    Attributes:
        rewards: (N,) float32.
        terminated: Per step, (N,).
        truncated: Per step, (N,); None where the file does not say (as D4RL's oldest).
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path
        self._file = file
        self._check_kind()
        rewards = self._member("rewards")
        n_steps = rewards.size
        if not n_steps or rewards.shape not in ((n_steps,), (n_steps, 1)):
            raise self._error("rewards", f"the shape is {rewards.shape}: there is one a step")
        self.n_steps = int(n_steps)
        self._arrays = {"rewards": rewards}
        for key in ("observations", "actions"):
            self._arrays[key] = self._member(key, self.n_steps)
        self.rewards: Float32[ndarray, "N"] = self.read("rewards").reshape(-1).astype(np.float32)
        terminated = self._flags(_TERMINATED)
        self.truncated: Bool[ndarray, "N"] | None = self._flags(_TRUNCATED)
        if terminated is None and self.truncated is None:
            raise DatasetError(
                f"{path} has neither 'terminals' nor 'timeouts' (it has {self._keys()}): where "
                f"episodes end is unknown"
            )
        none = np.zeros(self.n_steps, dtype=bool)
        self.terminated: Bool[ndarray, "N"] = none if terminated is None else terminated

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one step's observation or action; () is a number."""
        shape: tuple[int, ...] = self._arrays[key].shape[1:]
        is_index = self._arrays[key].dtype.kind in "iu" and shape == (1,)
        return () if is_index and key == "actions" else shape

    def dtype(self, key: str) -> np.dtype[Any]:
        """Return what :meth:`read` returns: floats become float32, all else stays."""
        dtype: np.dtype[Any] = self._arrays[key].dtype
        return np.dtype(np.float32) if dtype.kind == "f" else dtype

    def read(self, key: str, start: int = 0, stop: int | None = None) -> ndarray:
        """Read steps of an array, a piece at a time.

        Raises:
            DatasetError: The file is damaged there; names the member and the steps.
        """
        source = self._arrays[key]
        stop = self.n_steps if stop is None else stop
        values = np.empty((stop - start, *source.shape[1:]), dtype=self.dtype(key))
        step = rows_per_chunk(source)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            try:
                source.read_direct(values, np.s_[first:last], np.s_[first - start : last - start])
            except (OSError, RuntimeError, ValueError) as error:
                raise self._error(
                    key, f"steps {first} to {last - 1} are damaged ({error}): get the file again"
                ) from error
        return values.reshape(stop - start, *self.shape(key)) if key != "rewards" else values

    def iterate(self, key: str) -> Iterator[ndarray]:
        """Yield all steps of an array, in pieces that fit into little memory."""
        step = rows_per_chunk(self._arrays[key])
        for first in range(0, self.n_steps, step):
            yield self.read(key, first, min(first + step, self.n_steps))

    def _flags(self, names: tuple[str, ...]) -> Bool[ndarray, "N"] | None:
        given = [name for name in names if name in self._file]
        if not given:
            return None
        if len(given) > 1:
            raise DatasetError(f"{self.path} has {' and '.join(given)}: keep one of them")
        name = given[0]
        self._arrays[name] = self._member(name, self.n_steps)
        if self._arrays[name].size != self.n_steps:
            raise self._error(name, f"the shape is {self._arrays[name].shape}: there is one a step")
        flags = self.read(name).reshape(-1)
        if not np.isin(flags, (0, 1)).all():
            index = int(np.flatnonzero(~np.isin(flags, (0, 1)))[0])
            raise self._error(name, f"step {index} has {flags[index]}: only 0 and 1 are flags")
        return flags.astype(bool)

    def _member(self, key: str, n_steps: int | None = None) -> h5py.Dataset:
        """Return a member whose contents lie in this file and can be numbers."""
        link = self._file.get(key, getlink=True)
        node = None if isinstance(link, h5py.ExternalLink) else self._open(key)
        if isinstance(link, h5py.ExternalLink) or (
            isinstance(node, h5py.Dataset)
            and (node.external or node.is_virtual or node.file.filename != self._file.filename)
        ):
            raise self._error(key, "its contents lie in another file, which is not followed")
        if node is None:
            raise DatasetError(f"{self.path} has no {key!r}: it has {self._keys()}")
        if not isinstance(node, h5py.Dataset):
            raise self._error(key, "it is a group: one array is needed")
        if node.dtype.kind not in "biuf" or not node.ndim:
            raise self._error(key, f"it holds {node.dtype}, shape {node.shape}: give numbers")
        if n_steps is not None and len(node) != n_steps:
            raise self._error(key, f"it has {len(node)} steps, and there are {n_steps} rewards")
        if node.nbytes > _MOST_COMPRESSED * node.id.get_storage_size() + 2**20:
            raise self._error(
                key, f"{node.nbytes:,} bytes are announced and next to none stored: get it again"
            )
        return node

    def _open(self, key: str) -> Any:
        try:
            return self._file.get(key)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise self._error(key, f"it is damaged ({error}): get the file again") from error

    def _check_kind(self) -> None:
        """Recognise files of other kinds that have the same ending."""
        if "episode_0" in self._file:
            raise DatasetError(
                f"{self.path} is a file of Minari's: pass the folder it lies in, "
                f"{str(self.path.resolve().parent)!r}"
            )
        if "observations_0" in self._file:
            raise DatasetError(
                f"{self.path} is a file of d3rlpy's: load it with d3rlpy.dataset.ReplayBuffer.load "
                f"and pass what that returns"
            )

    def _keys(self) -> str:
        return ", ".join(map(repr, list(self._file)[:20])) or "nothing"

    def _error(self, key: str, problem: str) -> DatasetError:
        return DatasetError(f"{self.path}, {key}: {problem}")


@dataclass(frozen=True)
class Given:
    """What the user says of a file."""

    observation_space: spaces.Space[Any] | None
    action_space: spaces.Space[Any] | None
    env_id: str | None
    env_kwargs: Mapping[str, Any] | None

    def environment(
        self, path: Path, observation: tuple[int, ...], action: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return ``env_id`` and ``env_kwargs``: those given, else what the file's name says."""
        robot = find_robot(path, observation, action)
        if self.env_id is None and robot is not None:
            return {"env_id": robot.env_id, "env_kwargs": self.env_kwargs or robot.env_kwargs}
        return {"env_id": self.env_id, "env_kwargs": self.env_kwargs or {}}


class Layout:
    """Where the episodes of an open file lie, and which spaces hold what it has."""

    def __init__(self, file: FlatFile, given: Given, max_episode_steps: int | None) -> None:
        self.file = file
        truncated = file.truncated
        if truncated is None:
            truncated = _cut_by_length(file.terminated, max_episode_steps)
        last = np.flatnonzero(file.terminated | truncated)
        if not len(last) or last[-1] != file.n_steps - 1:
            last = np.append(last, file.n_steps - 1)
        self.offsets: Int64[ndarray, "E+1"] = np.concatenate([[0], last + 1])
        self.terminated: Bool[ndarray, "E"] = file.terminated[last]
        self.truncated: Bool[ndarray, "E"] = truncated[last]
        self.n_episodes = len(last)
        self.observation_space = given.observation_space
        action_space = given.action_space
        if action_space is None:
            try:
                action_space = infer_action_space(file.iterate("actions"))
            except DatasetError as error:
                raise DatasetError(f"{file.path}: {error}") from error
        self.action_space = check_action_space(action_space)
        self.environment = given.environment(
            file.path, file.shape("observations"), file.shape("actions")
        )

    @property
    def n_bytes(self) -> int:
        """How much memory the whole dataset takes."""
        return self.file.n_steps * self._bytes_per_step

    @property
    def _bytes_per_step(self) -> int:
        keys = ("observations", "actions")
        return max(
            1, sum(math.prod(self.file.shape(k)) * self.file.dtype(k).itemsize for k in keys)
        )

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield first and last episode (exclusive) of pieces that fit into little memory."""
        steps = max(1, CHUNK_BYTES // self._bytes_per_step)
        first = 0
        while first < self.n_episodes:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + steps, side="right")) - 1
            last = max(last, first + 1)
            yield first, last
            first = last

    def read(self, first: int, last: int) -> Trajectories:
        """Read episodes ``first`` to ``last``, exclusive.

        Raises:
            DatasetError: The file is damaged there, or its values are not usable.
        """
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        try:
            observations, flat = flatten_observations(
                self.file.read("observations", start, stop), self.observation_space
            )
            return Trajectories(
                observations=observations,
                actions=self.file.read("actions", start, stop),
                rewards=self.file.rewards[start:stop],
                terminated=self.terminated[first:last],
                truncated=self.truncated[first:last],
                episode_offsets=self.offsets[first : last + 1] - start,
                observation_space=flat,
                action_space=self.action_space,
                **self.environment,
                source=f"d4rl:{self.file.path}",
            )
        except DatasetError as error:
            if str(error).startswith(str(self.file.path)):
                raise
            where = f", from step {start} (episode {first}) on" if first else ""
            raise DatasetError(f"{self.file.path}{where}: {error}") from error


def _cut_by_length(terminated: Bool[ndarray, "N"], limit: int | None) -> Bool[ndarray, "N"]:
    """Set a flag at each step that is the ``limit``-th of its episode, if it did not terminate."""
    truncated: Bool[ndarray, "N"] = np.zeros(len(terminated), dtype=bool)
    if limit is None:
        return truncated
    limit = check_integer("max_episode_steps", limit, 1, error=DatasetError)
    starts = np.concatenate([[0], np.flatnonzero(terminated) + 1])
    steps = np.arange(len(terminated))
    within = steps - starts[np.searchsorted(starts, steps, side="right") - 1]
    truncated[within % limit == limit - 1] = True
    truncated &= ~terminated
    return truncated


MediumExpert = Literal["d4rl", "paper"]
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_d4rl_name(
    source: str,
    *,
    medium_expert: MediumExpert = "d4rl",
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
) -> D4RLParts:
    """Find a Gym-MuJoCo dataset by D4RL's name, ``"hopper-medium-replay-v2"``.

    Args:
        source: The name.
        medium_expert: What a name with medium-expert means: D4RL's own file (``"d4rl"``), or what
            the paper and the Decision Transformer trained on, the expert's whole episodes followed
            by the medium ones' (``"paper"``; the episode that collection cut at the end of each
            is left out, as in their pickles).
        folder: Where files are looked for, and downloaded to: as D4RL names them, as
            ``<name>.hdf5``, or as the Decision Transformer's ``<name>.pkl``. None: D4RL's own
            folder, ``D4RL_DATASET_DIR`` or ~/.d4rl/datasets.
        download: Whether a file that is not there is downloaded from D4RL's address.
        progress_bar: Show a bar, on stderr, while it is.

    Raises:
        DatasetError: There is no such dataset, or it cannot be downloaded (says where to put the
            file).

    Source: Fu et al. 2020 (arXiv:2004.07219); the concatenation, Ota 2024 (arXiv:2403.19925) in
    its official code.
    """
    name = parse_name(source)
    _check_medium_expert(name, medium_expert)
    names = [name]
    if medium_expert == "paper":
        names = [D4RLName(name.robot, quality, name.version) for quality in ("expert", "medium")]
    where = {"folder": folder, "download": download, "progress_bar": progress_bar}
    files = {
        part: open_d4rl_file(
            find_d4rl_file(str(part), **where),  # type: ignore[arg-type]  # its own arguments
            max_episode_steps=part.settings.max_episode_steps,
        )
        for part in names
    }
    return D4RLParts(files)


@dataclass(frozen=True)
class D4RLParts:
    """One dataset of D4RL's, or the whole episodes of several, joined.

    Args:
        files: By their names.
    """

    files: Mapping[D4RLName, D4RLFile]

    def load(self) -> Trajectories:
        """Read all of it, into memory or a temporary file.

        Raises:
            DatasetError: A file is malformed, or not what its name says.
        """
        parts = [self._check(name, file.path, file.load()) for name, file in self.files.items()]
        if len(parts) == 1:
            return parts[0]
        return join_pieces([part.drop_cut_episodes() for part in parts])

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory; raises as :meth:`load`.

        Args:
            bar: Is told how many steps each file has.
        """
        for name, file in self.files.items():
            for piece in file.pieces(bar):
                is_part = len(self.files) > 1
                if is_part and piece.cut.all():
                    continue
                whole = piece.drop_cut_episodes() if is_part else piece
                yield self._check(name, file.path, whole)

    def _check(self, name: D4RLName, path: Path, data: Trajectories) -> Trajectories:
        """Say which dataset it is, if it can be."""
        robot = name.settings
        shapes = (data.observations.shape[1:], data.actions.shape[1:])
        if shapes != ((robot.n_observations,), (robot.n_actions,)):
            raise DatasetError(
                f"{path} is not {name}: its observations and actions have shapes {shapes[0]} and "
                f"{shapes[1]}, where {name.robot} has {robot.n_observations} and "
                f"{robot.n_actions} numbers; delete it to download it again"
            )
        source = "d4rl:" + "+".join(map(str, self.files))
        return replace(data, env_id=robot.env_id, env_kwargs=robot.env_kwargs, source=source)


def find_d4rl_file(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
) -> Path:
    """Return the file of a name, downloaded if need be; arguments as :func:`open_d4rl_name`.

    Raises:
        DatasetError: There is no such name, or no such file and it cannot be downloaded.
    """
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
            f"it at {target}, or set D4RL_DATASET_DIR to the folder that has it"
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
) -> D4RLFile:
    """Take an HDF5 file of flat arrays with D4RL's keys, or a Decision Transformer pickle.

    Args:
        source: The file. HDF5: ``observations`` (N, ...), ``actions`` (N, ...), ``rewards`` (N,),
            ``terminals`` (N,) and ``timeouts`` (N,); what else is there is left alone. A pickle: a
            list of one dict an episode, with the same keys, or one dict of flat arrays; nothing
            in it is run.
        observation_space: The environment's. None: an unbounded Box, or frames of bytes.
        action_space: The environment's. None: as a dict of flat arrays has it.
        env_id: What ``gymnasium.make`` takes. None: the environment nearest to D4RL's, if the
            file's name and shapes are those of D4RL's Gym-MuJoCo sets.
        env_kwargs: Its other arguments.
        max_episode_steps: Where an HDF5 file has no ``timeouts`` (D4RL's oldest), the steps after
            which an episode that did not terminate ended. None: such files hold one episode
            between two terminals.
    """
    given = Given(observation_space, action_space, env_id, env_kwargs)
    return D4RLFile(Path(source).expanduser(), given, max_episode_steps)


@dataclass(frozen=True)
class D4RLFile:
    """A file, and what the user says of it; see :func:`open_d4rl_file`.

    Args:
        path: The file.
        given: Spaces and environment.
        max_episode_steps: Where its episodes end, if it does not say.
    """

    path: Path
    given: Given
    max_episode_steps: int | None = None

    def load(self) -> Trajectories:
        """Read all of it, into memory or a temporary file.

        Raises:
            DatasetError: The file is damaged, malformed or hostile; names the member.
            SpaceError: A space cannot be learnt.
        """
        if self._is_pickle:
            return self._read_pickle()
        with open_flat_file(self.path) as file:
            layout = Layout(file, self.given, self.max_episode_steps)
            if layout.n_bytes > IN_MEMORY_BYTES:
                return spill_pieces(layout.read(*piece) for piece in layout.pieces())
            return layout.read(0, layout.n_episodes)

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory; raises as :meth:`load`.

        Args:
            bar: Is told how many steps there are.
        """
        if self._is_pickle:  # read whole by its nature
            yield self._read_pickle()
            return
        with open_flat_file(self.path) as file:
            layout = Layout(file, self.given, self.max_episode_steps)
            if bar is not None:
                bar.start(0, file.n_steps)
            for first, last in layout.pieces():
                yield layout.read(first, last)

    @property
    def _is_pickle(self) -> bool:
        return self.path.suffix.lower() in (".pkl", ".pickle")

    def _read_pickle(self) -> Trajectories:
        data = read_pickle(self.path, self.given.observation_space, self.given.action_space)
        shapes = data.observations.shape[1:], data.actions.shape[1:]
        return replace(data, **self.given.environment(self.path, *shapes))


def _check_medium_expert(name: D4RLName, medium_expert: str) -> None:
    if medium_expert not in get_args(MediumExpert):
        raise DatasetError(f"medium_expert={medium_expert!r}: give 'd4rl' or 'paper'")
    if medium_expert == "paper" and name.quality != "medium-expert":
        raise DatasetError(
            f"medium_expert='paper' says what {name.robot}-medium-expert-v{name.version} means, "
            f"and {name} is asked for: leave it out"
        )
