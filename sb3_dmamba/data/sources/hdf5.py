"""Arrays of HDF5 files, whose sizes are checked before the HDF5 library believes them."""

from __future__ import annotations

import math
import zlib
from typing import Any

import h5py

from sb3_dmamba.errors import DatasetError

_MAX_COMPRESSION = 1100  # deflate reaches 1032 to 1
_SLACK_BYTES = 1 << 20
_LARGEST_CHUNK = 1 << 28  # bytes; the library holds a whole chunk in memory
_OUTSIDE = "its contents lie in another file, which is not followed"
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, zlib.error)


def find_node(group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """Return a group or an array of the same file; None where there is none.

    Raises:
        DatasetError: It is damaged, lies in another file, or takes more memory than an array of
            its size in the file can.
    """
    try:
        if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
            raise _error(key, _OUTSIDE)
        node = group.get(key)
        problem = _find_problem(node, group) if isinstance(node, h5py.Dataset) else ""
    except _DAMAGE as error:
        if isinstance(error, DatasetError):
            raise
        raise _error(key, f"it is damaged ({error}): get the file again") from error
    if problem:
        raise _error(key, problem)
    return node


def list_keys(group: h5py.Group) -> list[str]:
    """Return the names in a group.

    Raises:
        DatasetError: It is damaged.
    """
    try:
        return list(group)
    except _DAMAGE as error:
        raise DatasetError(f"{group.name} is damaged ({error}): get the file again") from error


def check_numbers(node: Any, key: str) -> Any:
    """Return an array of a file if it is one of numbers."""
    if node.dtype.kind not in "biuf" or not node.shape:
        raise _error(key, f"it holds {node.dtype}, shape {node.shape}: give numbers")
    return node


def describe_excess(announced: int, stored: int) -> str:
    """Say so where an array is said to have more bytes than what is stored can hold; else ''."""
    if announced <= _MAX_COMPRESSION * stored + _SLACK_BYTES:
        return ""
    return f"{announced:,} bytes are announced, {stored:,} stored"


def _find_problem(node: h5py.Dataset, group: h5py.Group) -> str:
    if node.external or node.is_virtual or node.file.filename != group.file.filename:
        return _OUTSIDE
    stored = node.id.get_storage_size()
    if problem := describe_excess(node.nbytes, stored):
        return f"{problem}: get it again"
    if node.chunks is None:
        return ""
    size = math.prod(node.chunks) * node.dtype.itemsize
    if size > _LARGEST_CHUNK:
        return f"its chunks have {size:,} bytes: write it with smaller ones"
    settings = node.id.get_create_plist()
    filters = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
    if filters.count(h5py.h5z.FILTER_DEFLATE) > 1:
        return "it is compressed twice: write it anew"
    if h5py.h5z.FILTER_DEFLATE in filters and _MAX_COMPRESSION * stored > _LARGEST_CHUNK:
        return _find_bomb(node, size, 1 << filters.index(h5py.h5z.FILTER_DEFLATE))
    return ""


def _find_bomb(node: h5py.Dataset, size: int, skipped: int) -> str:
    """Return what is wrong with a chunk that would inflate beyond its size.

    HDF5 2.0 inflates all that a chunk holds before it looks at the size.
    """
    suspects: list[Any] = []
    node.id.chunk_iter(
        lambda chunk: (
            suspects.append(chunk) if _MAX_COMPRESSION * chunk.size > _LARGEST_CHUNK else None
        )
    )
    for chunk in suspects:
        if not chunk.filter_mask & skipped:
            raw = node.id.read_direct_chunk(chunk.chunk_offset)[1]
            if len(zlib.decompressobj().decompress(raw, size + 1)) > size:
                return f"the chunk at {chunk.chunk_offset} inflates beyond its size: get it again"
    return ""


def _error(key: str, problem: str) -> DatasetError:
    return DatasetError(f"{key}: {problem}", setting=key)
