"""A store as a whole: from a dataset in memory, and back to one that is mapped."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from sb3_dmamba.data._validation import ARRAYS
from sb3_dmamba.data.store.format import read_store
from sb3_dmamba.data.store.writer import TrajectoriesWriter
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.transforms import assemble
from sb3_dmamba.errors import DatasetError

__all__ = ["load_store", "save_store"]


def save_store(
    trajectories: Trajectories, folder: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """See :meth:`Trajectories.save`."""
    fields = {
        field.name: getattr(trajectories, field.name)
        for field in dataclasses.fields(trajectories)
        if field.name not in ARRAYS
    }
    with TrajectoriesWriter(folder, overwrite=overwrite, **fields) as writer:
        writer.append_all(trajectories)
        writer.finish()


def load_store(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
    """See :meth:`Trajectories.open`."""
    path = Path(folder).expanduser()
    fields = read_store(path)
    if not verify:
        return assemble(Trajectories, fields)
    try:
        return Trajectories(**fields)
    except DatasetError as error:
        raise DatasetError(f"the store {path} holds what was never written: {error}") from error
