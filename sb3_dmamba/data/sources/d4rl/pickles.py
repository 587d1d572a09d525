"""The Decision Transformer's pickles: a list of one dict of arrays for each episode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data.sources.arrays import (
    check_ends,
    check_keys,
    flatten_observations,
    infer_action_space,
    load_arrays,
)
from sb3_dmamba.data.sources.d4rl.plain_pickle import load_plain_pickle, to_array
from sb3_dmamba.data.spaces import check_action_space
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["read_pickle"]

_TERMINATED = ("terminals", "terminations", "terminated", "dones")
_TRUNCATED = ("timeouts", "truncations", "truncated")


def read_pickle(
    path: Path,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
) -> Trajectories:
    """Read a list of episodes, or a dict of flat arrays; nothing in the file is run.

    An episode needs ``terminals``, ``timeouts`` or both. The Decision Transformer's files have no
    ``timeouts``, and only episodes that ended: there, one that did not terminate ran out of time.

    Args:
        path: The file.
        observation_space: The environment's, if it is known.
        action_space: The environment's, if it is known.

    Raises:
        DatasetError: The file is damaged, hostile or malformed; names episode and member.
        SpaceError: A space cannot be learnt.

    Source: gym/data/download_d4rl_datasets.py in github.com/kzl/decision-transformer.
    """
    contents = load_plain_pickle(path)
    try:
        if isinstance(contents, dict):
            check_keys(contents)
            known = ("observations", "actions", "rewards", *_TERMINATED[:-1], *_TRUNCATED)
            flat = {key: _array(contents, key, "") for key in known if key in contents}
            check_ends(contents)
            return load_arrays(
                flat,
                observation_space=observation_space,
                action_space=action_space,
                name=f"d4rl:{path}",
            )
        return _join(_read_episodes(contents), observation_space, action_space, path)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DatasetError(f"{path}: its episodes do not fit into memory together") from error


def _read_episodes(contents: Any) -> list[dict[str, ndarray]]:
    if not isinstance(contents, (list, tuple)) or not contents:
        raise DatasetError(
            f"it holds {'no episode' if contents in ([], ()) else type(contents).__name__}: a "
            f"list of one dict an episode is needed, or a dict of flat arrays"
        )
    return [_read_episode(episode, f"episode {i}") for i, episode in enumerate(contents)]


def _read_episode(episode: Any, where: str) -> dict[str, ndarray]:
    if not isinstance(episode, Mapping):
        raise DatasetError(f"{where} is a {type(episode).__name__}: a dict of arrays is needed")
    arrays = {key: _array(episode, key, where) for key in ("observations", "actions", "rewards")}
    n_steps = arrays["rewards"].size
    if arrays["rewards"].shape not in ((n_steps,), (n_steps, 1)) or not n_steps:
        raise DatasetError(
            f"{where}, rewards: the shape is {arrays['rewards'].shape}: there is one a step"
        )
    arrays["rewards"] = arrays["rewards"].reshape(-1)
    if arrays["actions"].dtype.kind in "iu" and arrays["actions"].shape[1:] == (1,):
        arrays["actions"] = arrays["actions"].reshape(-1)
    for key in ("observations", "actions"):
        if arrays[key].shape[:1] != (n_steps,):
            raise DatasetError(
                f"{where}, {key}: the shape is {arrays[key].shape}, and there are {n_steps} rewards"
            )
    terminated = _flag(episode, _TERMINATED, n_steps, where)
    truncated = _flag(episode, _TRUNCATED, n_steps, where)
    if terminated is None and truncated is None:
        raise DatasetError(
            f"{where} has neither 'terminals' nor 'timeouts' (nor Gymnasium's 'terminations', "
            f"'truncations'), one of which is needed: it has {_keys(episode)}"
        )
    arrays["terminated"] = np.array(bool(terminated))
    arrays["truncated"] = np.array(not terminated if truncated is None else truncated)
    return arrays


def _flag(
    episode: Mapping[Any, Any], names: tuple[str, ...], n_steps: int, where: str
) -> bool | None:
    """Return whether an episode ended so, which its last step says; None where none does."""
    name = next((name for name in names if name in episode), None)
    if name is None:
        return None
    flags = _array(episode, name, where)
    if flags.shape not in ((n_steps,), (n_steps, 1)) or not np.isin(flags, (0, 1)).all():
        raise DatasetError(f"{where}, {name}: one flag, 0 or 1, is needed for {n_steps} steps")
    early = np.flatnonzero(flags.reshape(-1)[:-1])
    if len(early):
        raise DatasetError(
            f"{where}, {name}: step {early[0]} is flagged and is not the last, {n_steps - 1}: an "
            f"episode must end there"
        )
    return bool(flags.reshape(-1)[-1])


def _join(
    episodes: list[dict[str, ndarray]],
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    path: Path,
) -> Trajectories:
    arrays: dict[str, Any] = {
        key: _concatenate(episodes, key) for key in ("observations", "actions", "rewards")
    }
    lengths = [len(episode["rewards"]) for episode in episodes]
    if action_space is None:
        action_space = infer_action_space([arrays["actions"]])
    arrays["observations"], flat = flatten_observations(arrays["observations"], observation_space)
    return Trajectories(
        **arrays,
        terminated=np.array([episode["terminated"] for episode in episodes]),
        truncated=np.array([episode["truncated"] for episode in episodes]),
        episode_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        observation_space=flat,
        action_space=check_action_space(action_space),
        source=f"d4rl:{path}",
    )


def _concatenate(episodes: list[dict[str, ndarray]], key: str) -> ndarray:
    first = episodes[0][key]
    for index, episode in enumerate(episodes):
        if episode[key].shape[1:] != first.shape[1:]:
            raise DatasetError(
                f"episode {index}, {key}: a step has shape {episode[key].shape[1:]}, and "
                f"{first.shape[1:]} in episode 0"
            )
    return np.concatenate([episode[key] for episode in episodes])


def _array(source: Mapping[Any, Any], key: str, where: str) -> ndarray:
    if key not in source:
        raise DatasetError(f"{where or 'the dict'} has no {key!r}: it has {_keys(source)}")
    try:
        return to_array(source[key])
    except DatasetError as error:
        raise DatasetError(f"{where}{', ' if where else ''}{key}: {error}") from error


def _keys(source: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(source)[:20])) or "nothing"
