"""Where a store may be put, and putting it there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from sb3_dmamba.data.store.format import HEADER_NAME
from sb3_dmamba.errors import DatasetError

__all__ = ["check_place", "move_into_place"]


def check_place(folder: Path, overwrite: bool) -> None:
    """Check that a store may be put there.

    Raises:
        DatasetError: There is something else, or a store that may not be replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file: give a folder's name for the store")
    contents = {path.name for path in folder.iterdir()}
    if contents and HEADER_NAME not in contents:
        raise DatasetError(f"{folder} holds something else than a store: name another")
    if contents and not overwrite:
        raise DatasetError(
            f"{folder} holds a store already: name another folder, or pass overwrite=True "
            f"(--overwrite)"
        )


def move_into_place(temporary: Path, folder: Path) -> None:
    """Rename a finished store; one that is there already goes away once the new one is whole."""
    # mkdtemp's folders are private; a store has the permissions any new folder has.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not folder.exists():
        temporary.replace(folder)
        return
    old = Path(tempfile.mkdtemp(suffix=".old", prefix=".", dir=folder.parent))
    folder.replace(old / "store")
    try:
        temporary.replace(folder)
    except OSError:
        (old / "store").replace(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
