"""Minari datasets: an id, a ``MinariDataset``, or a folder anywhere."""

from sb3_dmamba.data.sources.minari.opening import (
    find_minari_folder,
    load_minari_object,
    open_minari_folder,
    open_minari_id,
)

__all__ = ["find_minari_folder", "load_minari_object", "open_minari_folder", "open_minari_id"]
