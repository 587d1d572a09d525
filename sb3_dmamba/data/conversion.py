"""From any source to a store on disk, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from sb3_dmamba.data._progress import Bar, count_progress
from sb3_dmamba.data.load import _check_options, _option_names, load_trajectories
from sb3_dmamba.data.sources import SOURCES, Source
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
                f"{name}={options[name]!r} is no option of a conversion: the first argument is "
                f"the source and the second the store's folder"
            )
    place = Path(folder).expanduser().absolute()
    check_place(place, overwrite)  # before what may take long
    changes = {"reward_mode", "top_fraction"} & set(options)
    row = None if changes else _find_row(source)
    loader = None if row is None else row.import_loader()
    if row is not None and loader is not None and "store" in _option_names(loader):
        given = {"store": place, "overwrite": overwrite, "progress_bar": progress_bar, **options}
        _check_options(given, _option_names(loader), row.accepts)
        written: Trajectories = loader(source, **given)
        return written
    with count_progress(place.name, "steps", progress_bar) as bar:
        pieces = _stream(row, source, options, bar)
        return write_pieces(pieces, place, overwrite=overwrite, bar=bar)


def _find_row(source: Any) -> Source | None:
    if isinstance(source, Trajectories):
        return None
    return next((row for row in SOURCES if row.matches(source)), None)


def _stream(
    row: Source | None, source: Any, options: dict[str, Any], bar: Bar
) -> Iterator[Trajectories]:
    """Yield the dataset in pieces: as its source streams them, or else loaded and cut."""
    iterate = None if row is None else _find_iterator(row)
    if row is not None and iterate is not None:
        _check_options(options, _option_names(row.import_loader()), row.accepts)
        yield from iterate(source, bar=bar, **options)
        return
    data = load_trajectories(source, **options)
    bar.start(0, data.n_steps)
    yield from cut_into_pieces(data)


def _find_iterator(row: Source) -> Callable[..., Iterator[Trajectories]] | None:
    """Return ``iterate_x`` beside a loader ``load_x``, which takes the same and a bar besides."""
    module, function = row.loader.split(":")
    name = function.replace("load_", "iterate_", 1)
    iterate: Callable[..., Iterator[Trajectories]] | None
    iterate = getattr(import_module(module), name, None)
    return iterate
