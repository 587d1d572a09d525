"""Datasets on disk that memory need not hold: written episode by episode, mapped when opened."""

from sb3_dmamba.data.store.whole import load_store, save_store
from sb3_dmamba.data.store.writer import TrajectoriesWriter

__all__ = ["TrajectoriesWriter", "load_store", "save_store"]
