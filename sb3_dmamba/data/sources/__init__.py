"""Sources of datasets: the registry, ``load_trajectories`` and ``convert_trajectories``."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.d4rl import D4RL_NAME, list_names
from sb3_dmamba.data.joining import cut_into_pieces, write_pieces
from sb3_dmamba.data.store import check_place
from sb3_dmamba.data.trajectories import (
    Trajectories,
    check_action_bounds,
    check_transform,
    transform,
    with_spaces,
)
from sb3_dmamba.envs import parse_tmaze_name
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.io import Bar, count_progress, describe_missing_path
from sb3_dmamba.spaces import space_from_json

_SPACES = ("observation_space", "action_space")
GENERAL_OPTIONS = ("reward_mode", "top_fraction", *_SPACES)
"""Options of every source, which ``load_trajectories`` takes itself where the source does not."""

_COULD_BE_A_NAME = re.compile(r"[-\w]+(/[-\w]+)*")


def load_trajectories(
    source: Any, *, reward_mode: str = "dense", top_fraction: float | None = None, **options: Any
) -> Trajectories:
    """Load a dataset.

    Args:
        source: A Minari id, ``MinariDataset`` or folder; a D4RL name, HDF5 or .npz file or Decision
            Transformer pickle; a dataset of Hugging Face, its saved folder or Parquet file; a
            folder of the Atari DQN replay; a buffer of d3rlpy or Stable-Baselines3; a dict of flat
            arrays with D4RL's keys or Gymnasium's; a folder that ``Trajectories.save`` wrote; or
            ``Trajectories``, which come back as they are.
        reward_mode: ``"dense"``, or ``"delayed"``: :meth:`Trajectories.with_delayed_rewards`.
        top_fraction: Keep only this fraction of the episodes, those with the largest returns, as
            :meth:`Trajectories.take_top` does; None keeps all.
        options: ``observation_space`` and ``action_space``, which replace those that the source
            records or that are inferred from it, also in JSON's form,
            ``{"type": "Box", "low": [0], "high": [1]}``; and what the kind of source takes besides:
            the page on datasets lists them.

    Raises:
        DatasetError: The source is unknown, missing or malformed, or does not take an option.
        SpaceError: Its spaces cannot be learnt; where an action has no bounds, or too wide ones,
            ``choices`` has the Box that the data's actions lie in.
        ConfigError: ``reward_mode`` is unknown, or ``top_fraction`` not in (0, 1].
    """
    check_transform(reward_mode, top_fraction)  # before what may take long
    given = _read_spaces(options)
    options = {name: value for name, value in options.items() if name not in _SPACES}
    with _naming_memory(source):
        data = transform(_load(source, options, given), reward_mode, top_fraction)
    check_action_bounds(data)
    return data


@contextlib.contextmanager
def _naming_memory(source: Any) -> Iterator[None]:
    """Raise a DatasetError in place of a MemoryError."""
    try:
        yield
    except MemoryError as error:
        name = str(source) if isinstance(source, (str, PathLike)) else type(source).__name__
        problem = f"{name} takes more memory than there is ({error}): give fewer steps at a time"
        raise DatasetError(problem, path=source) from error


def _read_spaces(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spaces that are given among options, those in JSON's form as spaces."""
    found = {name: options.get(name) for name in _SPACES}
    return {
        name: space_from_json(space) if isinstance(space, dict) else space
        for name, space in found.items()
        if space is not None
    }


def _load(source: Any, options: dict[str, Any], given: dict[str, Any]) -> Trajectories:
    """Load a dataset; spaces that its source does not take replace its own afterwards."""
    if isinstance(source, Trajectories):
        _check_options(options, [], "Trajectories")
        return with_spaces(source, **given)
    row = find_source(source)
    if row is None:
        raise _unknown_source(source)
    names = row.option_names()
    opened = row.open(source, {**options, **{k: v for k, v in given.items() if k in names}})
    data = opened if isinstance(opened, Trajectories) else opened.load()
    return with_spaces(data, **{k: v for k, v in given.items() if k not in names})


def convert_trajectories(
    source: Any,
    folder: str | os.PathLike[str],
    /,
    *,
    overwrite: bool = False,
    progress_bar: bool = False,
    **options: Any,
) -> Trajectories:
    """Write a dataset, which may be larger than memory, to a store, and open that.

    Args:
        source: Whatever ``load_trajectories`` takes; positional only.
        folder: Where the store will be; positional only.
        overwrite: Whether a store that is there already is replaced; nothing else ever is.
        progress_bar: Whether to show the steps written, on stderr.
        options: As ``load_trajectories`` takes them, for every source and for this kind.

    Raises:
        DatasetError: As ``load_trajectories``, or there is something at ``folder``.
        SpaceError: Its spaces cannot be learnt.
        OSError: The disk is full.
    """
    for name in ("source", "store"):
        if name in options:
            problem = (
                f"{name}= is not an option of a conversion: pass source and folder by position"
            )
            raise DatasetError(problem, setting=name, value=options[name])
    options |= _read_spaces(options)
    place = Path(folder).expanduser().absolute()
    check_place(place, overwrite)  # before what may take long
    row = None if isinstance(source, Trajectories) else find_source(source)
    names = [] if row is None else row.option_names()
    is_changed = not set(GENERAL_OPTIONS).difference(names).isdisjoint(options)
    if row is not None and not is_changed and "store" in names:
        given = {"store": place, "overwrite": overwrite, "progress_bar": progress_bar, **options}
        with _naming_memory(source):
            written = row.open(source, given)
        assert isinstance(written, Trajectories)  # what takes a store writes it
        return written
    with count_progress(place.name, "steps", progress_bar) as bar, _naming_memory(source):
        if row is None or is_changed:
            data: Trajectories | Opened = load_trajectories(source, **options)
        else:
            data = row.open(source, options)
        if isinstance(data, Trajectories):
            bar.start(0, data.n_steps)
            pieces = cut_into_pieces(data)
        else:
            pieces = data.pieces(bar)
        return write_pieces(pieces, place, overwrite=overwrite, bar=bar)


class Opened(Protocol):
    """A dataset that was found and not read yet: as a whole, or in pieces."""

    def load(self) -> Trajectories:
        """Read all of it: into memory, or a temporary file if it is large."""

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes; ``bar`` is told their steps if those are known."""


@dataclass(frozen=True)
class Source:
    """A kind of dataset.

    Args:
        accepts: What it takes, for error messages.
        kind: Whether that is a path, the name of a dataset, or an object in memory.
        matches: Whether something is of this kind; must be quick and import nothing.
        loader: ``"module:function"``, of ``function(source, **options)``, which returns episodes,
            or an :class:`Opened` dataset.
    """

    accepts: str
    kind: Literal["path", "name", "object"]
    matches: Callable[[object], bool]
    loader: str

    def import_loader(self) -> Callable[..., Trajectories | Opened]:
        """Import the function that loads."""
        module, function = self.loader.split(":")
        loader: Callable[..., Trajectories | Opened] = getattr(import_module(module), function)
        return loader

    def option_names(self) -> list[str]:
        """Return the options that the function takes."""
        parameters = inspect.signature(self.import_loader()).parameters.values()
        return [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]

    def open(self, source: Any, options: Mapping[str, Any]) -> Trajectories | Opened:
        """Load a dataset, or find it where it can be read in pieces.

        Raises:
            DatasetError: There is no such option, or the dataset is malformed.
        """
        _check_options(options, self.option_names(), self.accepts)
        return self.import_loader()(source, **options)


def find_source(source: Any) -> Source | None:
    """Return the first kind of source that a dataset matches; None where there is none."""
    return next((row for row in SOURCES if row.matches(source)), None)


def _check_options(options: Mapping[str, Any], known: Sequence[str], kind: str) -> None:
    """Raise DatasetError for an option that a kind of source does not take."""
    known = list(dict.fromkeys([*known, *GENERAL_OPTIONS]))
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(near_names(name, known)) or f"it takes {', '.join(known)}"
            problem = f"no option of {kind} is called {name!r}: {hint}"
            raise DatasetError(problem, setting=name, value=value, choices=known)


def _unknown_source(source: Any) -> DatasetError:
    """Return the error for something of no known kind, with what is accepted instead."""
    accepted = {
        kind: "; ".join(row.accepts for row in SOURCES if row.kind == kind)
        for kind in ("object", "path", "name")
    }
    if not isinstance(source, (str, PathLike)):
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        problem = (
            f"a {kind} is not a known dataset. Accepted: {accepted['object']}; Trajectories; a "
            "path or a name"
        )
        return DatasetError(problem, setting="source", value=type(source))
    path, near = Path(source).expanduser(), list[str]()
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        message = f"the {kind} {str(source)!r} is not a known dataset. Accepted: {accepted['path']}"
    else:
        message = describe_missing_path(source)
        if isinstance(source, str) and _COULD_BE_A_NAME.fullmatch(source):
            near = near_names(source, [*list_names(), "tmaze-50"], n=2)
            hint = f"{did_you_mean(near)} " if near else ""
            message += f", and no dataset is called so; {hint}names are {accepted['name']}"
    return DatasetError(message, path=source, setting="source", value=source, choices=near)


def _is_path(test: Callable[[Path], bool]) -> Callable[[object], bool]:
    """Match the texts and paths that pass a test."""
    return lambda source: isinstance(source, (str, PathLike)) and test(Path(source).expanduser())


def _has_suffix(*suffixes: str) -> Callable[[object], bool]:
    """Match the files whose names end in one of these, in either case."""
    return _is_path(lambda path: path.suffix.lower() in suffixes and path.is_file())


def _contains(*files: str) -> Callable[[object], bool]:
    """Match the folders that have one of some files."""
    return _is_path(lambda folder: any((folder / file).is_file() for file in files))


def _is_dqn_replay_folder(folder: Path) -> bool:
    places = ("", "replay_logs/", "*/replay_logs/") if folder.is_dir() else ()
    return any(any(folder.glob(f"{place}$store$_*_ckpt.*.gz")) for place in places)


def _has_rows(path: Path) -> bool:
    """Whether this is a table of Hugging Face's datasets."""
    if not path.is_dir():
        return path.suffix.lower() == ".parquet" and path.is_file()
    files = ("dataset_dict.json", "dataset_info.json")
    patterns = ("*.parquet", "data/*.parquet")
    return any((path / name).is_file() for name in files) or any(
        any(path.glob(pattern)) for pattern in patterns
    )


def _is_name(test: Callable[[str], object]) -> Callable[[object], bool]:
    """Match the texts for which a test finds something."""
    return lambda source: isinstance(source, str) and test(source) is not None


def _has_base(package: str, *names: str) -> Callable[[object], bool]:
    """Match the instances of classes without importing their package."""
    return lambda source: any(
        base.__name__ in names and base.__module__.partition(".")[0] == package
        for base in type(source).__mro__
    )


SOURCES = (
    Source(
        "a folder that Trajectories.save wrote (with trajectories.json inside)",
        "path",
        # without its header a store is damaged, and its loader raises an error
        _contains("trajectories.json", "episode_offsets.npy"),
        "sb3_dmamba.data.trajectories:load_store",
    ),
    Source(
        "a Minari dataset's folder (with data/metadata.json inside)",
        "path",
        _contains("data/metadata.json", "data/main_data.hdf5", "main_data.hdf5", "0/metadata.json"),
        "sb3_dmamba.data.sources.minari:open_minari_folder",
    ),
    Source(
        "an Atari game's folder of the DQN replay (with <run>/replay_logs/$store$_*.gz inside)",
        "path",
        _is_path(_is_dqn_replay_folder),
        "sb3_dmamba.data.sources.dqn_replay:load_dqn_replay",
    ),
    Source(
        "a D4RL name ('hopper-medium-replay-v2')",
        "name",
        _is_name(D4RL_NAME.fullmatch),
        "sb3_dmamba.data.sources.d4rl:open_d4rl_name",
    ),
    Source(
        "a T-maze's name, which records scripted agents in it ('tmaze-50')",
        "name",
        _is_name(parse_tmaze_name),
        "sb3_dmamba.data.sources.tmaze:load_tmaze",
    ),
    Source(
        "a D4RL HDF5 file or a Decision Transformer pickle (.hdf5, .h5, .pkl)",
        "path",
        _has_suffix(".hdf5", ".h5", ".hdf", ".pkl", ".pickle"),
        "sb3_dmamba.data.sources.d4rl:open_d4rl_file",
    ),
    Source(
        "a folder that datasets.save_to_disk wrote, a Parquet file of episodes or a folder of some",
        "path",
        _is_path(_has_rows),
        "sb3_dmamba.data.sources.huggingface:open_rows",
    ),
    Source(
        "a NumPy file of flat arrays (.npz)",
        "path",
        _has_suffix(".npz"),
        "sb3_dmamba.data.sources.d4rl:open_d4rl_file",
    ),
    Source(
        "a Minari id ('mujoco/hopper/medium-v0')",
        "name",
        # an id ends in a version; with a namespace one that is missing was likely forgotten
        _is_name(re.compile(r"([-\w]+/)+[-\w]+|[-\w]+-v\d+").fullmatch),
        "sb3_dmamba.data.sources.minari:open_minari_id",
    ),
    Source(
        "a minari.MinariDataset",
        "object",
        _has_base("minari", "MinariDataset"),
        "sb3_dmamba.data.sources.minari:load_minari_object",
    ),
    Source(
        "a Dataset or DatasetDict of Hugging Face's datasets",
        "object",
        _has_base("datasets", "Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict"),
        "sb3_dmamba.data.sources.huggingface:open_rows",
    ),
    Source(
        "a d3rlpy ReplayBuffer or MDPDataset",
        "object",
        _has_base("d3rlpy", "ReplayBufferBase"),
        "sb3_dmamba.data.sources.d3rlpy:load_d3rlpy",
    ),
    Source(
        "a stable_baselines3 ReplayBuffer or DictReplayBuffer",
        "object",
        _has_base("stable_baselines3", "ReplayBuffer"),
        "sb3_dmamba.data.sources.sb3:load_replay_buffer",
    ),
    Source(
        "a stable_baselines3 RolloutBuffer or DictRolloutBuffer",
        "object",
        _has_base("stable_baselines3", "RolloutBuffer"),
        "sb3_dmamba.data.sources.sb3:load_rollout_buffer",
    ),
    Source(
        "a dict of flat arrays (observations, actions, rewards, terminals, timeouts)",
        "object",
        lambda source: isinstance(source, Mapping),
        "sb3_dmamba.data.sources.arrays:load_arrays",
    ),
)
"""Every kind of source, in the order in which they are tried."""
