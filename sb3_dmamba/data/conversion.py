"""From any source to a store on disk, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_dmamba.data._progress import Bar, count_progress
from sb3_dmamba.data.load import load_trajectories
from sb3_dmamba.data.sources import GENERAL_OPTIONS, Opened, find_source
from sb3_dmamba.data.store.gathering import cut_into_pieces, write_pieces
from sb3_dmamba.data.store.place import check_place
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["convert_trajectories"]


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
