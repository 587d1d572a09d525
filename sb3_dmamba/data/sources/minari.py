"""Minari datasets: an id, a ``MinariDataset``, or a folder anywhere."""

from __future__ import annotations

import difflib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from gymnasium import spaces

from sb3_dmamba.data.sources._minari_hdf5 import read_episodes
from sb3_dmamba.data.spaces import check_action_space, flat_space
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["load_minari_folder", "load_minari_id", "load_minari_object"]

_METADATA_FILE = "metadata.json"
_MAIN_FILE = "main_data.hdf5"
_D4RL_NAME = re.compile(r"(halfcheetah|hopper|walker2d|ant)-[a-z-]+-v[0-2]")
_BUNDLED = Path(__file__).parents[1] / "bundled"  # laid out as Minari lays out its own folder


def load_minari_id(source: str) -> Trajectories:
    """Load a dataset from Minari's folder (``MINARI_DATASETS_PATH``, or ~/.minari/datasets).

    The dataset that this package carries, ``"sb3_dmamba/hopper-v0"``, is found everywhere.

    Raises:
        DatasetError: It is not there (lists near names that are, and how to download it), or is
            malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    for place in (root, _BUNDLED):
        folder = place / source / "data"
        if folder.is_dir():
            return _load(folder)
    raise DatasetError(_not_found(source, root))


def load_minari_folder(source: str | os.PathLike[str]) -> Trajectories:
    """Load a dataset from its folder (which has ``data`` inside), or from that ``data`` folder.

    Nothing is written there, and it may lie anywhere.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    folder = Path(source).expanduser()
    return _load(folder / "data" if (folder / "data").is_dir() else folder)


def load_minari_object(source: Any) -> Trajectories:
    """Load the episodes that a ``minari.MinariDataset`` selects, in its order.

    Raises:
        DatasetError: It is malformed.
        SpaceError: Its spaces cannot be learnt.
    """
    return _load(Path(source.storage.data_path), [int(i) for i in source.episode_indices])


def _load(folder: Path, episodes: list[int] | None = None) -> Trajectories:
    metadata = _read_metadata(folder)
    observation_space = _read_space(metadata, "observation_space", folder)
    flat = flat_space(observation_space)
    action_space = check_action_space(_read_space(metadata, "action_space", folder))
    data_format = metadata.get("data_format", "hdf5")
    if data_format != "hdf5":
        raise DatasetError(
            f"the Minari dataset in {folder} is stored as {data_format!r}: "
            f"only 'hdf5', Minari's default, is read; write it again in that format"
        )
    episodes = list(range(metadata.get("total_episodes", 0))) if episodes is None else episodes
    if not episodes:
        raise DatasetError(f"the Minari dataset in {folder} has no episodes: it needs at least one")
    arrays = read_episodes(folder / _MAIN_FILE, episodes, observation_space, flat, action_space)
    env_id, env_kwargs = _read_environment(metadata, folder)
    return Trajectories(
        **arrays,
        observation_space=flat,
        action_space=action_space,
        env_id=env_id,
        env_kwargs=env_kwargs,
        source=f"minari:{metadata.get('dataset_id', folder.parent)}",
        frame_stack=1,  # arrays is a plain dict, which may hold no other field
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / _METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{folder} is no Minari dataset: it has no {_METADATA_FILE}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file} cannot be read ({error}): download the dataset again"
        ) from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{file} holds no JSON object: download the dataset again")
    return metadata


def _read_space(metadata: dict[str, Any], name: str, folder: Path) -> spaces.Space[Any]:
    from minari.serialization import deserialize_space

    if name not in metadata:
        raise DatasetError(
            f"{folder / _METADATA_FILE} has no {name}, and finding it out would need the "
            f"environment: write the dataset again with Minari 0.5 or later"
        )
    try:
        space: spaces.Space[Any] = deserialize_space(metadata[name])
    except (AssertionError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            f"{folder / _METADATA_FILE}: {name} is no space that Minari knows ({error!r})"
        ) from error
    return space


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
        warnings.warn(
            f"the dataset in {folder} was recorded from {env_id} through {', '.join(wrappers)}, "
            f"which its metadata cannot rebuild: pass the environment yourself to evaluate",
            UserWarning,
            stacklevel=5,  # whoever called load_trajectories
        )
        return None, {}
    if spec.get("max_episode_steps") is not None:
        kwargs["max_episode_steps"] = spec["max_episode_steps"]
    package = entry_point.partition(".")[0] if isinstance(entry_point, str) else "gymnasium"
    package = package.partition(":")[0]
    # gymnasium.make imports what stands before a colon: the package that registers the id.
    is_builtin = package == "gymnasium" or ":" in env_id
    return (env_id if is_builtin else f"{package}:{env_id}"), kwargs


def _not_found(dataset_id: str, root: Path) -> str:
    if _D4RL_NAME.fullmatch(dataset_id):
        return (
            f"{dataset_id!r} is D4RL's name of a dataset, which is no Minari dataset, and D4RL's "
            f"files are not read yet: pass the arrays of its HDF5 file, fit(dict of observations, "
            f"actions, rewards, terminals, timeouts)"
        )
    local = sorted(
        file.parent.parent.relative_to(root).as_posix()
        for file in root.glob(f"**/data/{_METADATA_FILE}")
    )
    close = difflib.get_close_matches(dataset_id, local, n=3, cutoff=0.5)
    if close:
        there = f"near names there: {', '.join(close)}"
    elif local:
        there = f"there are {', '.join(local[:10])}{', ...' if len(local) > 10 else ''}"
    else:
        there = "no dataset is there"
    return (
        f"{dataset_id!r} is no folder and no Minari dataset in {root} ({there}): download it with "
        f"'minari download {dataset_id}', or set MINARI_DATASETS_PATH to where it is"
    )
