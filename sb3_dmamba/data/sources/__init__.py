"""Sources of datasets: the registry, ``load_trajectories`` and ``convert_trajectories``."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.console import Bar, count_progress
from sb3_dmamba.d4rl import D4RL_NAME, list_names
from sb3_dmamba.data.joining import cut_into_pieces, write_pieces
from sb3_dmamba.data.store import check_place
from sb3_dmamba.data.trajectories import Trajectories, check_transform, transform
from sb3_dmamba.envs import parse_tmaze_name
from sb3_dmamba.errors import DatasetError
from sb3_dmamba.paths import describe_missing_path

if TYPE_CHECKING:
    from sb3_dmamba.console import Bar
    from sb3_dmamba.data.trajectories import Trajectories


GENERAL_OPTIONS = ("reward_mode", "top_fraction")
"""Options of every source, which ``load_trajectories`` takes itself."""

# Minari's own ids end in a version; with a namespace one that is missing is likely forgotten.
_MINARI_ID = re.compile(r"([-\w]+/)+[-\w]+|[-\w]+-v\d+")


class Opened(Protocol):
    """A dataset that was found and not read yet: as a whole, or in pieces."""

    def load(self) -> Trajectories:
        """Read all of it: into memory, or a temporary file if it is large."""

    def pieces(self, bar: Bar | None = None) -> Iterator[Trajectories]:
        """Read it in pieces of whole episodes that fit into little memory.

        Args:
            bar: Is told how many steps there are, where that is known before.
        """


@dataclass(frozen=True)
class Source:
    """A kind of dataset.

    Args:
        accepts: What it takes, for error messages.
        kind: Whether that is a path, the name of a dataset, or an object in memory.
        matches: Whether something is of this kind; must be quick and import nothing.
        loader: ``"module:function"``, of ``function(source, **options)``, which returns the
            episodes, or an :class:`Opened` dataset where they can be read in pieces.
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
        check_options(options, self.option_names(), self.accepts)
        return self.import_loader()(source, **options)


def find_source(source: Any) -> Source | None:
    """Return the kind of a dataset; None where it is of none."""
    return next((row for row in SOURCES if row.matches(source)), None)


def check_options(options: Mapping[str, Any], known: Sequence[str], kind: str) -> None:
    """Check that a kind of source takes all options.

    Raises:
        DatasetError: It does not take one; suggests the nearest, or lists those it takes.
    """
    known = [*known, *GENERAL_OPTIONS]
    for name in options:
        if name not in known:
            hint = did_you_mean(near_names(name, known)) or f"it takes {', '.join(known)}"
            raise DatasetError(
                f"no option of {kind} is called {name!r}: {hint}", setting=name, choices=known
            )


def _is_store_folder(source: object) -> bool:
    if not isinstance(source, (str, PathLike)):
        return False
    folder = Path(source).expanduser()
    # Without the header it is a damaged store, and said to be.
    return any((folder / file).is_file() for file in ("trajectories.json", "episode_offsets.npy"))


def _is_minari_object(source: object) -> bool:
    return any(
        base.__name__ == "MinariDataset" and base.__module__.partition(".")[0] == "minari"
        for base in type(source).__mro__
    )


def _is_d3rlpy_buffer(source: object) -> bool:
    return _has_base(source, "d3rlpy", "ReplayBufferBase")


def _is_sb3_replay_buffer(source: object) -> bool:
    return _has_base(source, "stable_baselines3", "ReplayBuffer")


def _is_sb3_rollout_buffer(source: object) -> bool:
    return _has_base(source, "stable_baselines3", "RolloutBuffer")


def _has_base(source: object, package: str, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == package
        for base in type(source).__mro__
    )


def _is_d4rl_name(source: object) -> bool:
    return isinstance(source, str) and D4RL_NAME.fullmatch(source) is not None


def _is_tmaze_name(source: object) -> bool:
    return isinstance(source, str) and parse_tmaze_name(source) is not None


def _has_suffix(*suffixes: str) -> Callable[[object], bool]:
    """Match the files whose names end in one of these, in either case."""

    def matches(source: object) -> bool:
        if not isinstance(source, (str, PathLike)):
            return False
        path = Path(source).expanduser()
        return path.suffix.lower() in suffixes and path.is_file()

    return matches


def _is_minari_folder(source: object) -> bool:
    if not isinstance(source, (str, PathLike)):
        return False
    folder = Path(source).expanduser()
    files = ("data/metadata.json", "data/main_data.hdf5", "main_data.hdf5")
    return any((folder / file).is_file() for file in files)


def _is_dqn_replay_folder(source: object) -> bool:
    if not isinstance(source, (str, PathLike)):
        return False
    folder, logs = Path(source).expanduser(), "replay_logs"
    places = ("", f"{logs}/", f"*/{logs}/") if folder.is_dir() else ()
    return any(any(folder.glob(f"{place}$store$_*_ckpt.*.gz")) for place in places)


def _is_minari_id(source: object) -> bool:
    return isinstance(source, str) and _MINARI_ID.fullmatch(source) is not None


SOURCES = (
    Source(
        "a folder that Trajectories.save wrote (with trajectories.json inside)",
        "path",
        _is_store_folder,
        "sb3_dmamba.data.trajectories:load_store",
    ),
    Source(
        "a Minari dataset's folder (with data/main_data.hdf5 inside)",
        "path",
        _is_minari_folder,
        "sb3_dmamba.data.sources.minari:open_minari_folder",
    ),
    Source(
        "an Atari game's folder of the DQN replay (with <run>/replay_logs/$store$_*.gz inside)",
        "path",
        _is_dqn_replay_folder,
        "sb3_dmamba.data.sources.dqn_replay:load_dqn_replay",
    ),
    Source(
        "a D4RL name ('hopper-medium-replay-v2')",
        "name",
        _is_d4rl_name,
        "sb3_dmamba.data.sources.d4rl:open_d4rl_name",
    ),
    Source(
        "a T-maze's name, which records scripted agents in it ('tmaze-50')",
        "name",
        _is_tmaze_name,
        "sb3_dmamba.data.sources.tmaze:load_tmaze",
    ),
    Source(
        "a D4RL HDF5 file or a Decision Transformer pickle (.hdf5, .h5, .pkl)",
        "path",
        _has_suffix(".hdf5", ".h5", ".hdf", ".pkl", ".pickle"),
        "sb3_dmamba.data.sources.d4rl:open_d4rl_file",
    ),
    Source(
        "a Minari id ('mujoco/hopper/medium-v0')",
        "name",
        _is_minari_id,
        "sb3_dmamba.data.sources.minari:open_minari_id",
    ),
    Source(
        "a minari.MinariDataset",
        "object",
        _is_minari_object,
        "sb3_dmamba.data.sources.minari:load_minari_object",
    ),
    Source(
        "a d3rlpy ReplayBuffer or MDPDataset",
        "object",
        _is_d3rlpy_buffer,
        "sb3_dmamba.data.sources.d3rlpy:load_d3rlpy",
    ),
    Source(
        "a stable_baselines3 ReplayBuffer or DictReplayBuffer",
        "object",
        _is_sb3_replay_buffer,
        "sb3_dmamba.data.sources.sb3:load_replay_buffer",
    ),
    Source(
        "a stable_baselines3 RolloutBuffer or DictRolloutBuffer",
        "object",
        _is_sb3_rollout_buffer,
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

_COULD_BE_A_NAME = re.compile(r"[-\w]+(/[-\w]+)*")


def load_trajectories(
    source: Any,
    *,
    reward_mode: str = "dense",
    top_fraction: float | None = None,
    **options: Any,
) -> Trajectories:
    """Load a dataset.

    Args:
        source: A Minari id, a ``MinariDataset`` or a Minari folder; a D4RL name, HDF5 file or
            Decision Transformer pickle; a folder of the Atari DQN replay; a buffer of d3rlpy or
            Stable-Baselines3; a dict of flat arrays with D4RL's keys or Gymnasium's; a folder
            that ``Trajectories.save`` wrote; or ``Trajectories``, which come back as they are.
        reward_mode: ``"dense"``, the rewards as they are, or ``"delayed"``, as
            :meth:`Trajectories.with_delayed_rewards` has them.
        top_fraction: Keep only the episodes with the largest returns, this fraction of their
            number, as :meth:`Trajectories.take_top` does; None keeps all.
        options: What the kind of source takes besides, such as ``medium_expert`` of a D4RL name
            or ``env_id`` of a dict: the page on datasets lists them, and so does the error that
            an unknown one gets.

    Returns:
        The episodes.

    Raises:
        DatasetError: The source is of no known kind, missing or malformed, or does not take an
            option.
        SpaceError: Its spaces cannot be learnt.
        ConfigError: ``reward_mode`` is unknown, or ``top_fraction`` not in (0, 1].
    """
    check_transform(reward_mode, top_fraction)  # before what may take long
    return transform(_load(source, options), reward_mode, top_fraction)


def _load(source: Any, options: dict[str, Any]) -> Trajectories:
    if isinstance(source, Trajectories):
        check_options(options, [], "Trajectories")
        return source
    row = find_source(source)
    if row is None:
        is_text = isinstance(source, (str, PathLike))
        value = source if is_text else type(source)
        raise DatasetError(_explain(source), path=source, setting="source", value=value)
    opened = row.open(source, options)
    return opened if isinstance(opened, Trajectories) else opened.load()


def _explain(source: Any) -> str:
    """Say why a source is none, and what there is like it."""
    if not isinstance(source, (str, PathLike)):
        return (
            f"a {type(source).__module__}.{type(source).__qualname__} is not a known dataset. "
            f"Accepted: {_accepted('object')}; Trajectories; a path or a name"
        )
    path = Path(source).expanduser()
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        return f"the {kind} {str(source)!r} is not a known dataset. Accepted: {_accepted('path')}"
    missing = describe_missing_path(source)
    if isinstance(source, str) and _COULD_BE_A_NAME.fullmatch(source):
        hint = did_you_mean(near_names(source, [*list_names(), "tmaze-50"], n=2))
        hint = f"{hint} " if hint else ""
        return f"{missing}, and no dataset is called so; {hint}names are {_accepted('name')}"
    return missing


def _accepted(kind: str) -> str:
    return "; ".join(row.accepts for row in SOURCES if row.kind == kind)


def convert_trajectories(
    source: Any,
    folder: str | os.PathLike[str],
    /,
    *,
    overwrite: bool = False,
    progress_bar: bool = False,
    **options: Any,
) -> Trajectories:
    """Write a dataset to a store, whose size memory need not hold.

    Args:
        source: Whatever ``load_trajectories`` takes; by its place alone.
        folder: Where the store will be; by its place alone (a D4RL name's own ``folder`` is one
            of ``options``).
        overwrite: Whether a store that is there already is replaced; nothing else ever is.
        progress_bar: Whether to show the steps written, on stderr.
        options: As ``load_trajectories`` takes them, for every source and for this kind.

    Returns:
        The store, opened: its arrays are memory-mapped.

    Raises:
        DatasetError: The source is none or malformed, does not take an option, or there is
            something at ``folder``.
        SpaceError: Its spaces cannot be learnt.
        OSError: The disk is full.
    """
    for name in ("source", "store"):
        if name in options:
            raise DatasetError(
                f"{name}={options[name]!r} is not an option of a conversion: the first argument is "
                f"the source and the second the store's folder"
            )
    place = Path(folder).expanduser().absolute()
    check_place(place, overwrite)  # before what may take long
    row = None if isinstance(source, Trajectories) else find_source(source)
    is_changed = not set(GENERAL_OPTIONS).isdisjoint(options)
    if row is not None and not is_changed and "store" in row.option_names():
        given = {"store": place, "overwrite": overwrite, "progress_bar": progress_bar, **options}
        written = row.open(source, given)
        assert isinstance(written, Trajectories)  # what takes a store writes it
        return written
    with count_progress(place.name, "steps", progress_bar) as bar:
        if row is None or is_changed:
            data: Trajectories | Opened = load_trajectories(source, **options)
        else:
            data = row.open(source, options)
        return write_pieces(_cut(data, bar), place, overwrite=overwrite, bar=bar)


def _cut(data: Trajectories | Opened, bar: Bar) -> Iterator[Trajectories]:
    """Yield a dataset in pieces: as its source reads them, or else cut."""
    if not isinstance(data, Trajectories):
        return data.pieces(bar)
    bar.start(0, data.n_steps)
    return cut_into_pieces(data)
