"""Where other libraries keep their datasets."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["minari_folder"]


def minari_folder() -> Path:
    """Return the folder that Minari downloads to and lists; it need not be there yet.

    ``MINARI_DATASETS_PATH`` where it is set, taken as it is (Minari expands no ``~``), else
    ~/.minari/datasets.

    Source: minari 0.5, ``storage/datasets_root_dir.py``.
    """
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
