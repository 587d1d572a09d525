"""From whatever holds a dataset to :class:`Trajectories`."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.d4rl import list_names
from sb3_dmamba.data._paths import describe_missing_path
from sb3_dmamba.data.sources import SOURCES, check_options, find_source
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import check_transform, transform
from sb3_dmamba.errors import DatasetError

__all__ = ["load_trajectories"]

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
