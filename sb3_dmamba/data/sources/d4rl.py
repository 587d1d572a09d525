"""D4RL: flat HDF5 files, the Decision Transformer's pickles, and D4RL's names of either."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from gymnasium import spaces

from sb3_dmamba.d4rl import D4RLName, cache_folder, parse_name
from sb3_dmamba.data._progress import Bar
from sb3_dmamba.data.download import OFFLINE_VARIABLE, download_file, is_offline
from sb3_dmamba.data.sources._d4rl_hdf5 import open_flat_file
from sb3_dmamba.data.sources._d4rl_layout import Given, Layout
from sb3_dmamba.data.store.gathering import IN_MEMORY_BYTES, join_pieces, spill_pieces
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import replace
from sb3_dmamba.errors import DatasetError

__all__ = [
    "MediumExpert",
    "find_d4rl_file",
    "iterate_d4rl_file",
    "iterate_d4rl_name",
    "load_d4rl_file",
    "load_d4rl_name",
]

MediumExpert = Literal["d4rl", "paper"]
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def load_d4rl_name(
    source: str,
    *,
    medium_expert: MediumExpert = "d4rl",
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
) -> Trajectories:
    """Load a Gym-MuJoCo dataset by D4RL's name, ``"hopper-medium-replay-v2"``.

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
        DatasetError: There is no such dataset, it cannot be downloaded (says where to put the
            file), or its file is malformed.

    Source: Fu et al. 2020 (arXiv:2004.07219); the concatenation, Ota 2024 (arXiv:2403.19925) in
    its official code.
    """
    options: dict[str, Any] = {"folder": folder, "download": download, "progress_bar": progress_bar}
    name = parse_name(source)
    _check_medium_expert(name, medium_expert)
    if medium_expert == "d4rl":
        path = find_d4rl_file(source, **options)
        robot = name.settings
        data = load_d4rl_file(path, max_episode_steps=robot.max_episode_steps)
        return _name(data, name, path)
    parts = [load_d4rl_name(str(part), **options) for part in _parts(name)]
    whole = [part.drop_cut_episodes() for part in parts]
    return join_pieces(whole, lambda _: _describe_parts(name))


def iterate_d4rl_name(
    source: str,
    *,
    medium_expert: MediumExpert = "d4rl",
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
    bar: Bar | None = None,
) -> Iterator[Trajectories]:
    """Load as :func:`load_d4rl_name`, in pieces of whole episodes that fit into little memory."""
    options: dict[str, Any] = {"folder": folder, "download": download, "progress_bar": progress_bar}
    name = parse_name(source)
    _check_medium_expert(name, medium_expert)
    for part in (name,) if medium_expert == "d4rl" else _parts(name):
        path = find_d4rl_file(str(part), **options)
        limit = part.settings.max_episode_steps
        for piece in iterate_d4rl_file(path, max_episode_steps=limit, bar=bar):
            whole = piece if medium_expert == "d4rl" else _whole_episodes(piece)
            if whole is not None:
                named = _name(whole, part, path)
                is_whole = medium_expert == "d4rl"
                yield named if is_whole else replace(named, source=_describe_parts(name))


def find_d4rl_file(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress_bar: bool = True,
) -> Path:
    """Return the file of a name, downloaded if need be; arguments as :func:`load_d4rl_name`.

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


def load_d4rl_file(
    source: str | os.PathLike[str],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> Trajectories:
    """Load an HDF5 file of flat arrays with D4RL's keys, or a Decision Transformer pickle.

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

    Raises:
        DatasetError: The file is damaged, malformed or hostile; names the member.
        SpaceError: A space cannot be learnt.
    """
    path = Path(source).expanduser()
    given = Given(observation_space, action_space, env_id, env_kwargs)
    if _is_pickle(path):
        from sb3_dmamba.data.sources._d4rl_pickle import read_pickle

        data = read_pickle(path, observation_space, action_space)
        shapes = data.observations.shape[1:], data.actions.shape[1:]
        return replace(data, **given.environment(path, *shapes))
    with open_flat_file(path) as file:
        layout = Layout(file, given, max_episode_steps)
        if layout.n_bytes > IN_MEMORY_BYTES:
            return spill_pieces(layout.read(*piece) for piece in layout.pieces())
        return layout.read(0, layout.n_episodes)


def iterate_d4rl_file(
    source: str | os.PathLike[str],
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    bar: Bar | None = None,
) -> Iterator[Trajectories]:
    """Load as :func:`load_d4rl_file`, in pieces of whole episodes that fit into little memory."""
    path = Path(source).expanduser()
    given = Given(observation_space, action_space, env_id, env_kwargs)
    if _is_pickle(path):  # read whole by its nature
        yield load_d4rl_file(path, **vars(given), max_episode_steps=max_episode_steps)
        return
    with open_flat_file(path) as file:
        layout = Layout(file, given, max_episode_steps)
        if bar is not None:
            bar.start(0, file.n_steps)
        for first, last in layout.pieces():
            yield layout.read(first, last)


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in (".pkl", ".pickle")


def _name(data: Trajectories, name: D4RLName, path: Path) -> Trajectories:
    """Say which dataset it is, if it can be."""
    robot = name.settings
    shapes = (data.observations.shape[1:], data.actions.shape[1:])
    if shapes != ((robot.n_observations,), (robot.n_actions,)):
        raise DatasetError(
            f"{path} is not {name}: its observations and actions have shapes {shapes[0]} and "
            f"{shapes[1]}, where {name.robot} has {robot.n_observations} and {robot.n_actions} "
            f"numbers; delete it to download it again"
        )
    return replace(data, env_id=robot.env_id, env_kwargs=robot.env_kwargs, source=f"d4rl:{name}")


def _check_medium_expert(name: D4RLName, medium_expert: str) -> None:
    if medium_expert not in get_args(MediumExpert):
        raise DatasetError(f"medium_expert={medium_expert!r}: give 'd4rl' or 'paper'")
    if medium_expert == "paper" and name.quality != "medium-expert":
        raise DatasetError(
            f"medium_expert='paper' says what {name.robot}-medium-expert-v{name.version} means, "
            f"and {name} is asked for: leave it out"
        )


def _parts(name: D4RLName) -> tuple[D4RLName, ...]:
    return tuple(D4RLName(name.robot, quality, name.version) for quality in ("expert", "medium"))


def _describe_parts(name: D4RLName) -> str:
    return "d4rl:" + "+".join(map(str, _parts(name)))


def _whole_episodes(data: Trajectories) -> Trajectories | None:
    return None if data.cut.all() else data.drop_cut_episodes()
