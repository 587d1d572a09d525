"""Hugging Face datasets with a row an episode: objects, folders of ``save_to_disk``, Parquet."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_optional_integer, did_you_mean, near_names
from sb3_dmamba.data.joining import IN_MEMORY_BYTES, spill_pieces
from sb3_dmamba.data.sources.arrays import (
    FLAGS,
    check_keys,
    check_lengths,
    copy_rows,
    infer_action_space,
    infer_observation_space,
    list_flag_like,
    naming,
    placing,
    read_ends,
    step_shape,
)
from sb3_dmamba.data.sources.arrow import arrange, map_arrays, read_batches, read_names, to_numpy
from sb3_dmamba.data.sources.d4rl import find_environment
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.validation import CHUNK_BYTES, group_episodes, within
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import Bar, describe_missing_path
from sb3_dmamba.spaces import check_action_space, flat_space, observation_dtype

_SHARD = re.compile(r"(.+?)-\d+-of-\d+(-\w+)?")  # Parquet on the hub; begins with the split's name

T = TypeVar("T")


def open_rows(
    source: Any,
    *,
    split: str | None = None,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> Rows:
    """Take a dataset with a row an episode, as D4RL's locomotion sets have on the hub.

    A row that no flag ends was truncated; the last row was cut by collection, unless it has
    ``max_episode_steps``.

    Args:
        source: A ``datasets.Dataset`` or ``DatasetDict``, a folder that ``save_to_disk`` wrote, a
            Parquet file or a folder of some. A row has lists of one value a step: ``observations``
            (structs where ``observation_space`` is a Dict or Tuple; images are decoded),
            ``actions``, ``rewards``, and ``dones`` or the flags that a dict of flat arrays has.
            ``dones`` say that the episode terminated, unless another flag says it was truncated.
        split: Which split; None is the only one.
        observation_space: The environment's. None: an unbounded Box, or frames of bytes.
        action_space: The environment's. None: inferred from the actions, as for a dict of arrays.
        env_id: What ``gymnasium.make`` takes. None: found by D4RL's name and the shapes.
        env_kwargs: Its other arguments.
        max_episode_steps: The time limit.

    Raises:
        DatasetError: A column is missing or nearly right, the lists of a row do not fit together,
            a flag is set before the last step, or there is no row, or more than one split.
        MissingDependencyError: pyarrow is not installed.
        SpaceError: A space cannot be learnt.
    """
    limit = check_optional_integer("max_episode_steps", max_episode_steps, 1, error=DatasetError)
    is_path = isinstance(source, (str, os.PathLike))
    table = _open_path(Path(source).expanduser(), split) if is_path else _open(source, split)
    with table.naming():
        check_keys(table.columns, FLAGS)
        lengths, terminated, truncated = _read_ends(table, limit)
        if observation_space is None:
            observation_space = _infer_observation_space(table)
        if action_space is None:
            action_space = infer_action_space(
                step["actions"] for step in table.steps(lengths, "actions")
            )
        return Rows(
            table,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array(terminated),
            np.array(truncated),
            observation_space,
            check_action_space(action_space),
            env_id,
            env_kwargs,
        )


@dataclass(frozen=True)
class Table:
    """A table whose columns can be read a few rows at a time."""

    label: str
    path: Path | None  # None: it is an object
    named: Path  # what may be a name of D4RL's
    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[Any]]

    def naming(self) -> contextlib.AbstractContextManager[None]:
        """Add the path, if there is one, to a DatasetError raised inside."""
        return contextlib.nullcontext() if self.path is None else naming(self.path)

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Any]:
        """Yield a dict of arrays for each row, without optional columns that hold none."""
        batches = self.read([*columns, *optional])
        each = ((batch, index) for batch in batches for index in range(batch.num_rows))
        for number, (batch, index) in enumerate(each):
            row = {}
            for name in (*columns, *optional):
                array = batch.column(name).slice(index, 1)
                array = array.combine_chunks() if hasattr(array, "chunks") else array
                try:
                    row[name] = map_arrays(lambda part: part[0], to_numpy(array, name))
                except DatasetError as error:
                    if name in columns:
                        raise within(error, f"row {number}", episode=number) from error
            yield row

    def steps(self, lengths: Sequence[int], *columns: str) -> Iterator[dict[str, Any]]:
        """Yield the rewards of each row, which has a known length, and other columns of as many."""
        rows = self.rows(["rewards", *columns])
        for number, length in enumerate(lengths):
            row = next(rows, {"rewards": np.empty(0)})
            with _in_row(number):
                if len(row["rewards"]) != length:
                    problem = f"rewards: {len(row['rewards'])} values where {length} were read"
                    raise DatasetError(f"{problem} before: get the file again", setting="rewards")
                if isinstance(row.get("actions"), dict):
                    problem = "actions are structs: give a number or a list of numbers a step"
                    raise DatasetError(problem, setting="actions")
                arrays = {key: part for key, part in row.items() if isinstance(part, ndarray)}
                check_lengths({key: array.shape for key, array in arrays.items()})
            flat = {
                k: array.reshape(len(array), *step_shape(k, array)) for k, array in arrays.items()
            }
            yield row | flat


@dataclass(frozen=True)
class Rows:
    """A dataset whose flags and rewards were read and checked, and the rest not yet."""

    table: Table
    offsets: Int64[ndarray, "E+1"]
    terminated: Bool[ndarray, "E"]
    truncated: Bool[ndarray, "E"]
    observation_space: spaces.Space[Any]
    action_space: spaces.Box | spaces.Discrete
    env_id: str | None
    env_kwargs: Mapping[str, Any] | None

    def load(self) -> Trajectories:
        """Read all of it, into memory or a temporary file."""
        if self.offsets[-1] * self._bytes_per_step > IN_MEMORY_BYTES:
            return spill_pieces(self.pieces())
        return self._copy(self._iterate(), 0, len(self.terminated))

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory."""
        if bar is not None:
            bar.start(0, int(self.offsets[-1]))
        rows = self._iterate()
        for first, last in group_episodes(self.offsets, CHUNK_BYTES // self._bytes_per_step):
            with self.table.naming():
                piece = list(itertools.islice(rows, last - first))  # raises by rows of the whole
            yield self._copy(piece, first, last)

    @property
    def _bytes_per_step(self) -> int:
        flat = flat_space(self.observation_space)
        return max(1, np.dtype(observation_dtype(flat)).itemsize * math.prod(flat.shape))

    def _iterate(self) -> Iterator[tuple[Any, ndarray, ndarray]]:
        lengths = np.diff(self.offsets).tolist()
        for row in self.table.steps(lengths, "observations", "actions"):
            observations = arrange(row["observations"], self.observation_space)
            yield observations, arrange(row["actions"], self.action_space), row["rewards"]

    def _copy(self, rows: Iterable[Any], first: int, last: int) -> Trajectories:
        shapes = flat_space(self.observation_space).shape, self.action_space.shape or ()
        with self.table.naming(), placing(int(self.offsets[first]), first):
            return copy_rows(
                rows,
                np.diff(self.offsets[first : last + 1]).tolist(),
                self.terminated[first:last],
                self.truncated[first:last],
                space=self.observation_space,
                action_space=self.action_space,
                label=lambda index: f"row {first + index}",
                source=f"huggingface:{self.table.label}",
                **find_environment(self.table.named, *shapes, self.env_id, self.env_kwargs),
            )


def _read_ends(table: Table, limit: int | None) -> tuple[list[int], list[bool], list[bool]]:
    """Return each row's length, and whether its episode terminated and was truncated."""
    flags = [name for name in FLAGS if name in table.columns]
    others = list_flag_like(table.columns)
    lengths, terminated, truncated = list[int](), list[bool](), list[bool | None]()
    for number, row in enumerate(table.rows(["rewards", *flags], others)):
        if not np.ndim(row["rewards"]):
            problem = (
                "rewards have one number a row, and a row is an episode here: give arrays of steps "
                "as a dict, {'rewards': np.array(dataset['rewards']), ...}"
            )
            raise DatasetError(problem, setting="rewards")
        with _in_row(number):
            check_lengths({key: np.shape(row[key]) for key in ("rewards", *flags)})
            arrays = {key: row[key].reshape(len(row[key]), -1)[:, 0] for key in ("rewards", *flags)}
            ends = read_ends(arrays, {key: row[key] for key in others if key in row})
        lengths.append(len(row["rewards"]))
        terminated.append(ends[0])
        truncated.append(ends[1])
    if not lengths:
        raise DatasetError("there is no row: give at least one episode", setting="source")
    if truncated[-1] is None and lengths[-1] != limit:
        truncated[-1] = False
    pairs = zip(terminated, truncated, strict=True)
    return lengths, terminated, [not ended if flag is None else flag for ended, flag in pairs]


@contextlib.contextmanager
def _in_row(number: int) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        raise within(error, f"row {number}", episode=number) from error


def _infer_observation_space(table: Table) -> spaces.Space[Any]:
    first = next(table.rows(["observations"]))["observations"]
    if not isinstance(first, ndarray):
        problem = f"observations are structs of {', '.join(first)}: pass their observation_space"
        raise DatasetError(problem, setting="observation_space")
    return infer_observation_space(first)


def _open(source: Any, split: str | None) -> Table:
    """Return the table of a ``Dataset``, or of a split of a ``DatasetDict``."""
    if any(base.__name__.startswith("Iterable") for base in type(source).__mro__):
        problem = "the dataset is a stream: load it without streaming=True"
        raise DatasetError(problem, setting="source", value=type(source))
    is_dict = isinstance(source, Mapping)
    dataset = _choose(source if is_dict else {str(source.split or "train"): source}, split)
    n_rows = max(1, CHUNK_BYTES * dataset.data.num_rows // max(1, dataset.data.nbytes))

    def read(columns: Sequence[str]) -> Iterator[Any]:
        formatted = dataset.with_format("arrow", columns=list(columns))
        for first in range(0, len(dataset), n_rows):
            yield formatted[first : first + n_rows]

    names = [name for name in (dataset.info.dataset_name, dataset.info.config_name) if name]
    label = "/".join(names) or "dataset"
    return Table(label, None, Path(names[-1] if names else ""), dataset.column_names, read)


def _open_path(path: Path, split: str | None) -> Table:
    """Return the table of a folder that ``save_to_disk`` wrote, or of Parquet files."""
    folder, shards = path, dict[str, list[Path]]()
    if (path / "dataset_dict.json").is_file():
        names = _read_json(path / "dataset_dict.json", lambda found: list(found["splits"]))
        folder, split = _choose({name: path / name for name in names}, split), None
    if (folder / "dataset_info.json").is_file() or folder != path:
        file = folder / "state.json"
        names = _read_json(file, lambda found: [each["filename"] for each in found["_data_files"]])
        name = _read_json(file, lambda found: [found.get("_split") or "train"])[0]
        shards[name] = [folder / each for each in names]
    elif path.is_dir():
        for file in sorted((*path.glob("*.parquet"), *path.glob("data/*.parquet"))):
            match = _SHARD.fullmatch(file.stem)
            shards.setdefault(match[1] if match else "train", []).append(file)
    else:
        shards["train"] = [path]
    files = _choose(shards, split)
    if not files:
        raise DatasetError(f"{folder} has no data files: save the dataset again", path=folder)

    def read(columns: Sequence[str]) -> Iterator[Any]:
        return itertools.chain.from_iterable(read_batches(file, columns) for file in files)

    return Table(str(path), path, path, read_names(files[0]), read)


def _read_json(path: Path, find: Callable[[Any], list[Any]]) -> list[str]:
    """Return names that a JSON file of ``save_to_disk`` has."""
    try:
        names = find(json.loads(path.read_text(encoding="utf-8")))
        if all(isinstance(name, str) and Path(name).name == name for name in names):
            return names
        problem = "it names files elsewhere"
    except FileNotFoundError:
        problem = describe_missing_path(path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"it is malformed ({error!r})"
    raise DatasetError(f"{path}: {problem}: save the dataset again", path=path)


def _choose(splits: Mapping[str, T], split: str | None) -> T:
    """Return the split that is asked for, or the only one."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        hint = did_you_mean(near_names(str(split), splits)) or f"there are {', '.join(splits)}"
        problem = f"split={split!r}: {hint}; give one of them, split='train'"
        raise DatasetError(problem, setting="split", value=split, choices=list(splits))
    return splits[split]
