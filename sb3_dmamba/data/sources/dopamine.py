"""Checkpoint files of Dopamine's replay buffers, unpacked a piece at a time."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Num, UInt8
from numpy import ndarray
from typing_extensions import Self

from sb3_dmamba.data.store import read_npy_header
from sb3_dmamba.errors import DatasetError

MEMBERS = {"observation": "u1", "action": "iu", "reward": "fiu", "terminal": "bu"}
"""Members of a checkpoint, and the kinds of numbers each may hold."""

_NAME = re.compile(rf"\$store\$_({'|'.join(MEMBERS)})_ckpt\.(\d+)\.gz")
_PIECE_BYTES = 1 << 20
_MOST_PIXELS = 1 << 18  # of a frame; the emulator's have 210 * 160
_MAX_COMPRESSION = 1032  # of deflate


def error_in(path: Path, problem: str, **attributes: Any) -> DatasetError:
    """Return an error whose message and attributes name a file or folder."""
    return DatasetError(f"{path}: {problem}", path=path, **attributes)


def find_checkpoints(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints of which a folder has any member, ascending."""
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[2]) for match in matches if match})


class MemberReader:
    """Reads the rows of a gzipped ``.npy`` file of some kinds of numbers (``\"u1\"`` is bytes)."""

    def __init__(self, path: Path, kinds: str) -> None:
        self.path = path
        self.n_read = 0
        self._peeked: ndarray | None = None
        try:
            self._file = gzip.open(path, "rb")  # noqa: SIM115  # closed by __exit__
        except FileNotFoundError:
            problem = (
                f"there is no such file, and a checkpoint needs its {', '.join(MEMBERS)}: get the "
                "file, or leave that one out with checkpoints=[...]"
            )
            raise error_in(path, problem, setting="checkpoints") from None
        try:
            self.shape, self.dtype = self._read_header()
            self._check(kinds)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, rows: Num[ndarray, "n *row"]) -> None:
        """Fill an array with the next rows."""
        if len(rows) and self._peeked is not None:
            rows[0], self._peeked = self._peeked, None
            rows = rows[1:]
        if not rows.size:
            return
        view = memoryview(rows).cast("B")  # type: ignore[arg-type]  # NumPy's arrays are buffers
        while view:
            with self._explained():
                count = self._file.readinto(view[:_PIECE_BYTES])
            if not count:
                raise self._error(f"its header promises shape {self.shape} and it has less")
            view = view[count:]
        self.n_read += len(rows)

    def read_all(self) -> Num[ndarray, "..."]:
        """Return the whole array."""
        values = np.empty(self.shape, self.dtype)
        self.read_into(values.reshape(-1))
        self.finish()
        return values

    def peek(self) -> Num[ndarray, "*row"]:
        """Return the next row, which stays the next."""
        if self._peeked is None:
            row = np.empty((1, *self.shape[1:]), self.dtype)
            self.read_into(row)
            self._peeked = row[0]
        return self._peeked

    def skip(self, count: int) -> None:
        """Read rows and discard them."""
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        n_rows = min(count, max(1, _PIECE_BYTES // max(1, row_bytes)))
        scratch = np.empty((n_rows, *self.shape[1:]), self.dtype)
        while count:
            self.read_into(scratch[:count])
            count -= min(count, len(scratch))

    def finish(self) -> None:
        """Check that the file ends here, and its checksum."""
        with self._explained():
            more = self._file.read(1)
        if more:
            raise self._error(f"it goes on after the shape {self.shape} of its header")

    def _read_header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._explained():
            try:
                shape, fortran_order, dtype = read_npy_header(self._file)
            except ValueError as error:
                raise self._error(str(error)) from error
        if fortran_order and len(shape) > 1:
            raise self._error("its array is in Fortran order, which cannot be read row by row")
        return shape, dtype

    def _check(self, kinds: str) -> None:
        wanted = self.dtype == np.uint8 if kinds == "u1" else self.dtype.kind in kinds
        if not wanted:
            names = {"b": "bool", "u": "unsigned", "i": "integer", "f": "float"}
            expected = "uint8" if kinds == "u1" else " or ".join(names[kind] for kind in kinds)
            raise self._error(f"expected {expected}, got {self.dtype}")
        size = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        if size > _MAX_COMPRESSION * self.path.stat().st_size + _PIECE_BYTES:
            problem = f"its header promises {size:,} bytes, and no gzip of its size holds as many"
            raise self._error(problem)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._error(
                f"the gzip is cut or damaged after row {self.n_read:,} ({error})"
            ) from error

    def _error(self, what: str) -> DatasetError:
        return error_in(self.path, f"{what}; get that file again")


@dataclass(frozen=True, eq=False)
class Steps:
    """The small members of a checkpoint, in 3 bytes a row: the recipe holds fifty at once."""

    actions: UInt8[ndarray, "rows"]
    rewards: Num[ndarray, "rows"]  # clipped to ±1: int8 where all are whole, else float32
    terminal: Bool[ndarray, "rows"]  # True at the last step of an episode

    def are_blank(self, row: int) -> bool:
        """Whether action, reward and end of a row are zero."""
        return not (self.actions[row] or self.rewards[row] or self.terminal[row])


@dataclass(frozen=True)
class Checkpoint:
    """One numbered set of files; ``n_rows`` is the replay buffer's capacity."""

    folder: Path
    number: int
    n_rows: int
    frame_shape: tuple[int, ...]
    add_count: int | None  # rows written in all: those from add_count % n_rows on are the oldest

    @classmethod
    def open(cls, folder: Path, number: int) -> Checkpoint:
        """Read the headers of all members and check them against each other."""
        shapes: dict[str, tuple[int, ...]] = {}
        for member, kinds in MEMBERS.items():
            with MemberReader(_path(folder, member, number), kinds) as reader:
                shape = shapes[member] = reader.shape
                dimensions = 3 if member == "observation" else 1
                if len(shape) != dimensions or 0 in shape:
                    expected = "(rows, height, width)" if dimensions == 3 else "(rows,)"
                    problem = f"expected shape {expected}, got {shape}"
                    raise error_in(reader.path, problem, setting=member, value=shape)
                if dimensions == 3 and shape[1] * shape[2] > _MOST_PIXELS:
                    problem = f"frames have shape {shape[1:]}, and no game has so many pixels"
                    raise error_in(reader.path, problem, setting=member, value=shape)
        if len({shape[0] for shape in shapes.values()}) > 1:
            lengths = ", ".join(f"{member} {shape[0]:,}" for member, shape in shapes.items())
            problem = f"members of checkpoint {number} differ in rows ({lengths}): get them again"
            raise error_in(folder, problem)
        n_rows, *frame_shape = shapes["observation"]
        return cls(folder, number, n_rows, tuple(frame_shape), _read_add_count(folder, number))

    def open_frames(self) -> MemberReader:
        """Start reading the frames from the first row on."""
        return MemberReader(_path(self.folder, "observation", self.number), "u1")

    def path(self, member: str) -> Path:
        """Return the file of a member."""
        return _path(self.folder, member, self.number)

    def read_steps(self, n_actions: int) -> Steps:
        """Read the small members, whose actions are 0 to ``n_actions - 1``."""
        actions, rewards, terminal = map(self._read, ("action", "reward", "terminal"))
        is_action = (actions >= 0) & (actions < n_actions)
        self._check("action", actions, is_action, f"0 to {n_actions - 1}")
        self._check("reward", rewards, np.isfinite(rewards), "a finite number")
        self._check("terminal", terminal, terminal <= 1, "0 or 1")
        clipped = np.clip(rewards, -1, 1).astype(np.float32)
        whole = clipped.astype(np.int8)
        return Steps(
            actions.astype(np.uint8),  # no game has more than 18
            whole if (whole == clipped).all() else clipped,
            terminal.astype(np.bool_),
        )

    def _read(self, member: str) -> Num[ndarray, "rows"]:
        with MemberReader(self.path(member), MEMBERS[member]) as reader:
            return reader.read_all()

    def _check(self, member: str, values: ndarray, is_good: ndarray, expected: str) -> None:
        if not is_good.all():
            row = int(np.argmin(is_good))
            problem = f"row {row:,}: expected {expected}, got {values[row]}"
            path, value = self.path(member), values[row]
            raise error_in(path, problem, index=row, setting=member, value=value)


def _path(folder: Path, member: str, number: int) -> Path:
    return folder / f"$store$_{member}_ckpt.{number}.gz"


def _read_add_count(folder: Path, number: int) -> int | None:
    path = folder / f"add_count_ckpt.{number}.gz"
    if not path.exists():
        return None
    with MemberReader(path, "iu") as reader:
        if int(np.prod(reader.shape)) != 1:
            raise error_in(path, f"expected one number, got shape {reader.shape}")
        return int(reader.read_all().flat[0])
