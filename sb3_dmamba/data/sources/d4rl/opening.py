"""From a file or one of D4RL's names to a dataset that can be read whole or in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gymnasium import spaces

from sb3_dmamba.d4rl import D4RLName, cache_folder, parse_name
from sb3_dmamba.data._progress import Bar
from sb3_dmamba.data.download import OFFLINE_VARIABLE, download_file, is_offline
from sb3_dmamba.data.sources.d4rl.hdf5 import open_flat_file
from sb3_dmamba.data.sources.d4rl.layout import Given, Layout
from sb3_dmamba.data.sources.d4rl.pickles import read_pickle
from sb3_dmamba.data.store.gathering import IN_MEMORY_BYTES, join_pieces, spill_pieces
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import replace
from sb3_dmamba.errors import DatasetError

__all__ = ["D4RLFile", "D4RLParts", "find_d4rl_file", "open_d4rl_file", "open_d4rl_name"]

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
