"""Columns of Arrow and Parquet files as NumPy arrays."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from sb3_dmamba.data.validation import CHUNK_BYTES
from sb3_dmamba.errors import DatasetError, MissingDependencyError
from sb3_dmamba.io import describe_missing_path

_IMAGE = {"bytes", "path"}  # fields of the feature Image of Hugging Face's datasets
_NO_IMAGE = (OSError, AttributeError, SyntaxError, TypeError, ValueError)  # what Pillow raises
_FORMATS = ("JPEG", "PNG")  # Pillow runs other programs for some


def import_pyarrow() -> Any:
    """Import pyarrow with what reads files.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pyarrow", "read Arrow and Parquet files", "hub") from error
    return pyarrow


def read_names(path: Path) -> list[str]:
    """Return the names of a file's columns; raises as :func:`read_batches`."""
    with _open(path) as (names, _):
        return names


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Yield columns of a Parquet file (.parquet), or an Arrow file or stream, a few rows at a time.

    Raises:
        DatasetError: The file is missing or damaged, or has no such column.
        MissingDependencyError: pyarrow is not installed.
    """
    with _open(path) as (names, read):
        for name in columns:
            if name not in names:
                problem = f"{path} has no column {name!r} (it has {', '.join(map(repr, names))})"
                raise DatasetError(problem, path=path, setting=name, choices=names)
        for batch in read(columns):
            batch.validate(full=True)  # offsets may point outside of a damaged file
            yield batch


def read_columns(paths: Sequence[Path], columns: Sequence[str]) -> dict[str, Any]:
    """Return whole columns of the same table's files, of at least one row; raises likewise."""
    pa = import_pyarrow()
    batches = [batch for path in paths for batch in read_batches(path, columns)]
    if not sum(batch.num_rows for batch in batches):
        raise DatasetError(
            "there are no rows: get the files again", path=paths[0], setting=columns[0]
        )
    try:
        table = pa.Table.from_batches(batches)
    except pa.ArrowInvalid as error:
        problem = f"the files do not fit together ({error}): get them again"
        raise DatasetError(problem, path=paths[0]) from error
    return {name: table[name].combine_chunks() for name in columns}


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[list[str], Callable[[Sequence[str]], Iterator[Any]]]]:
    pa = import_pyarrow()
    try:
        if path.suffix == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                about = file.metadata
                groups = range(about.num_row_groups)
                size = sum(about.row_group(group).total_byte_size for group in groups)
                n_rows = max(1, CHUNK_BYTES * about.num_rows // max(1, size))

                def read(columns: Sequence[str]) -> Iterator[Any]:
                    for group in groups:  # all at once, pyarrow keeps what it has read
                        yield from file.iter_batches(n_rows, [group], list(columns))

                yield file.schema_arrow.names, read
            return
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            yield reader.schema.names, lambda columns: (each.select(columns) for each in batches)
    except FileNotFoundError:
        raise DatasetError(describe_missing_path(path), path=path) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
        problem = f"{path} is damaged or no {kind} file ({error}): get it again"
        raise DatasetError(problem, path=path) from error


def to_numpy(array: Any, name: str) -> Any:
    """Convert an Arrow array of numbers, lists, structs or images.

    Returns:
        An array (rows, ...), of uint8 where there are images; of structs, a dict of them.

    Raises:
        DatasetError: Lists differ in length, or a value is null or none of these.
    """
    pa = import_pyarrow()
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind, types = array.type, pa.types
    if array.null_count:
        raise DatasetError(
            f"{name}: {array.null_count} values are null: fill them in", setting=name
        )
    if types.is_struct(kind):
        fields = [field.name for field in kind]
        if _IMAGE.issuperset(fields) and "bytes" in fields:
            return to_numpy(array.field("bytes"), name)
        return {key: to_numpy(array.field(key), f"{name}.{key}") for key in fields}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = _lengths(array)
        if len(different := np.flatnonzero(lengths != lengths[:1])):
            at = int(different[0])
            problem = f"{name}: list {at} has {lengths[at]} values, the ones before {lengths[0]}"
            raise DatasetError(problem, setting=name, value=int(lengths[at]), index=at)
        shape = len(array), int(lengths[0]) if len(lengths) else 0
        values = to_numpy(array.flatten(), name)
        return map_arrays(lambda part: part.reshape(*shape, *part.shape[1:]), values)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return decode_images([each.as_py() for each in array], name)
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        problem = f"{name}: it holds {kind}: give numbers, lists of them, or images"
        raise DatasetError(problem, setting=name, value=str(kind))
    return array.to_numpy(zero_copy_only=False)


def _lengths(array: Any) -> ndarray:
    if hasattr(array.type, "list_size"):
        return np.full(len(array), array.type.list_size)
    return np.diff(array.offsets.to_numpy())


def map_arrays(function: Callable[[ndarray], Any], values: Any) -> Any:
    """Call a function with an array, or with each in dicts of them."""
    if isinstance(values, Mapping):
        return {key: map_arrays(function, part) for key, part in values.items()}
    return function(values)


def arrange(values: Any, space: spaces.Space[Any]) -> Any:
    """Return the values of a column as a vector environment would, by the names of its structs.

    The parts of a Tuple are named by their number, and an array may be flat where a Box is not.
    Values that do not fit are left as they are.
    """
    if isinstance(space, spaces.Dict) and isinstance(values, Mapping):
        parts = {key: part for key, part in space.items() if key in values}
        return {key: arrange(values[key], part) for key, part in parts.items()}
    if isinstance(space, spaces.Tuple) and isinstance(values, Mapping):
        numbered = [(str(number), part) for number, part in enumerate(space)]
        return tuple(arrange(values[key], part) for key, part in numbered if key in values)
    shape = space.shape
    if isinstance(values, ndarray) and shape and values.shape[1:] == (math.prod(shape),):
        return values.reshape(len(values), *shape)
    return values


def decode_images(
    frames: Sequence[Any], name: str, shape: tuple[int, ...] | None = None
) -> UInt8[ndarray, "T *frame"]:
    """Decode JPEG and PNG files of one size; None is the first one's shape."""
    images: ndarray | None = None
    for index, frame in enumerate(frames):
        try:
            with Image.open(io.BytesIO(bytes(frame)), formats=_FORMATS) as opened:
                size = opened.height * opened.width * len(opened.getbands())
                expected = shape if images is None else images.shape[1:]
                if expected is not None and size != math.prod(expected):  # before it is decoded
                    raise ValueError(f"it has {size:,} values, expected {expected}")
                image = np.asarray(opened)
        except (Image.DecompressionBombError, *_NO_IMAGE) as error:
            problem = f"{name}: frame {index} is not an image ({error})"
            raise DatasetError(problem, setting=name) from error
        if images is None:
            images = np.empty((len(frames), *(image.shape if shape is None else shape)), np.uint8)
        if image.dtype != np.uint8 or image.size != images[index].size:
            found = f"{image.dtype}, shape {image.shape}"
            problem = f"{name}: frame {index} is {found}, expected uint8, {images.shape[1:]}"
            raise DatasetError(problem, setting=name, value=image.shape)
        images[index] = image.reshape(images.shape[1:])
    return np.empty((0, *(shape or ())), np.uint8) if images is None else images
