"""From the rows of replay buffers to episodes, in the memory of the longest one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from sb3_dmamba.data.sources.dqn_replay.files import Checkpoint, MemberReader, Steps
from sb3_dmamba.errors import DatasetError

__all__ = ["RecordedEpisode", "Stretch", "iterate_episodes", "plan_all", "plan_visit"]

_PADDING_ROWS = 3  # all-zero rows that Dopamine writes before an episode: its frame stack less one
_LONGEST_EPISODE = 108_000  # steps: the emulator ends a game after as many frames


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """An episode, or as much of it as there is.

    Args:
        observations: Single frames, (T, height, width).
        actions: (T,).
        rewards: (T,), clipped.
        terminated: Whether its end is there.
    """

    observations: UInt8[ndarray, "T height width"]
    actions: Int64[ndarray, "T"]
    rewards: Float32[ndarray, "T"]
    terminated: bool = False


@dataclass(frozen=True)
class Stretch:
    """Rows of one checkpoint that follow each other in time.

    Args:
        checkpoint: Where they are.
        start: First row.
        stop: The row behind the last.
        continues: Whether the first row comes right after the last one of the stretch before.
        begins_history: Whether the first row is the first that the buffer was ever given.
    """

    checkpoint: Checkpoint
    start: int
    stop: int
    continues: bool
    begins_history: bool


def plan_all(checkpoints: Sequence[Checkpoint]) -> list[Stretch]:
    """Put the rows of checkpoints into the order in which they were recorded, each row once.

    A checkpoint whose counter is not a multiple of its rows was written when its last rows were
    still those of the pass before: these come first. Rows that the checkpoint before had already
    are left out.

    Args:
        checkpoints: Ascending.

    Raises:
        DatasetError: A counter goes back.
    """
    stretches: list[Stretch] = []
    previous: Checkpoint | None = None
    for checkpoint in checkpoints:
        stretches += _plan_one(checkpoint, previous)
        previous = checkpoint
    return stretches


def _plan_one(checkpoint: Checkpoint, previous: Checkpoint | None) -> list[Stretch]:
    n_rows, end = checkpoint.n_rows, checkpoint.add_count
    if end is None:  # then as if every checkpoint held the rows after those of the one before
        continues = previous is not None and previous.number + 1 == checkpoint.number
        return [Stretch(checkpoint, 0, n_rows, continues, checkpoint.number == 0)]
    first = max(0, end - n_rows)
    begin = first
    continues = False
    seen = None if previous is None else previous.add_count
    if previous is not None and seen is not None:
        if end < seen:
            raise DatasetError(
                f"{checkpoint.folder}: the counter (add_count) of checkpoint {checkpoint.number} "
                f"is {end:,}, less than the {seen:,} of checkpoint {previous.number}: they are of "
                f"two recordings; read each alone, with checkpoints="
            )
        if first <= seen:
            begin, continues = seen, True
    if begin == end:
        return []
    start, stop = begin % n_rows, (end - 1) % n_rows + 1
    if start < stop:
        return [Stretch(checkpoint, start, stop, continues, begin == 0)]
    return [
        Stretch(checkpoint, start, n_rows, continues, begin == 0),
        Stretch(checkpoint, 0, stop, True, False),
    ]


def plan_visit(checkpoint: Checkpoint) -> list[Stretch]:
    """Put the rows of one checkpoint into the order of its file, for who reads only the first."""
    n_rows = checkpoint.n_rows
    count = (
        (checkpoint.number + 1) * n_rows if checkpoint.add_count is None else checkpoint.add_count
    )
    newest = count % n_rows or n_rows
    stretches = [Stretch(checkpoint, 0, newest, False, count <= n_rows)]
    if newest < n_rows and count > n_rows:
        stretches.append(Stretch(checkpoint, newest, n_rows, False, False))
    return stretches


class _Part:
    """An episode that has begun and not ended.

    Args:
        kept: Whether its steps are wanted; those that are not are only counted.
        frame_shape: Shape of one frame.
    """

    def __init__(self, kept: bool, frame_shape: tuple[int, ...]) -> None:
        self.kept = kept
        self.n_steps = 0
        self.observations = np.empty((0, *frame_shape), np.uint8)
        self.actions = np.empty(0, np.int64)
        self.rewards = np.empty(0, np.float32)

    def extend(self, frames: MemberReader, steps: Steps, rows: slice) -> None:
        """Add rows of a checkpoint, the next ones of ``frames``."""
        count = rows.stop - rows.start
        self.n_steps += count
        if not self.kept:
            frames.skip(count)
            return
        known = len(self.observations)
        observations = np.empty((known + count, *self.observations.shape[1:]), np.uint8)
        observations[:known] = self.observations
        frames.read_into(observations[known:])
        self.observations = observations
        actions, rewards = steps.actions[rows], steps.rewards[rows]
        self.actions = np.concatenate([self.actions, actions], dtype=np.int64)
        self.rewards = np.concatenate([self.rewards, rewards], dtype=np.float32)

    def finish(self, terminated: bool) -> Iterator[RecordedEpisode]:
        """Yield the episode, if it is wanted."""
        if self.kept:
            yield RecordedEpisode(self.observations, self.actions, self.rewards, terminated)


def iterate_episodes(
    stretches: Iterable[Stretch],
    n_actions: int,
    *,
    keep_headless: bool = False,
    report: Callable[[int], object] = lambda _: None,
) -> Iterator[RecordedEpisode]:
    """Read episodes one after the other.

    The all-zero rows before an episode are left out. An episode that goes on in the next stretch
    is joined; one whose end is not there comes with ``terminated`` False.

    Args:
        stretches: What to read.
        n_actions: How many actions the game has.
        keep_headless: Whether to keep an episode whose beginning is not there.
        report: Called with the number of rows that were read since the last call.

    Raises:
        DatasetError: A file is damaged, or holds no ends of episodes. Names it.
    """
    part: _Part | None = None
    padding = 0  # all-zero rows since the last end
    for stretch in stretches:
        checkpoint = stretch.checkpoint
        if not stretch.continues:
            if part is not None:
                yield from part.finish(terminated=False)
            part, padding = None, 0
        begins = stretch.continues or stretch.begins_history  # so a first row starts an episode
        steps = checkpoint.read_steps(n_actions)
        with checkpoint.open_frames() as frames:
            frames.skip(stretch.start)
            for start, stop, is_end in _cut(steps, stretch):
                first = start
                if part is None:
                    first += _skip_padding(frames, steps, start, stop, _PADDING_ROWS - padding)
                    padding += first - start
                    if first < stop:
                        kept = keep_headless or begins or padding > 0
                        part = _Part(kept, checkpoint.frame_shape)
                if part is not None:
                    _check_length(part.n_steps + stop - first, checkpoint)
                    part.extend(frames, steps, slice(first, stop))
                    if is_end:
                        yield from part.finish(terminated=True)
                        part, padding, begins = None, 0, True
                report(stop - start)
            if stretch.stop == checkpoint.n_rows:
                frames.finish()
    if part is not None:
        yield from part.finish(terminated=False)


def _cut(steps: Steps, stretch: Stretch) -> Iterator[tuple[int, int, bool]]:
    """Yield first row, row behind the last, and whether the last one is an episode's end."""
    start = stretch.start
    for last in np.flatnonzero(steps.terminal[stretch.start : stretch.stop]) + stretch.start:
        yield start, int(last) + 1, True
        start = int(last) + 1
    if start < stretch.stop:
        yield start, stretch.stop, False


def _skip_padding(frames: MemberReader, steps: Steps, start: int, stop: int, limit: int) -> int:
    """Leave out all-zero rows, at most ``limit``; a black screen later on is the game's own."""
    count = 0
    while count < min(limit, stop - start) and steps.are_blank(start + count):
        if frames.peek().any():
            break
        frames.skip(1)
        count += 1
    return count


def _check_length(n_steps: int, checkpoint: Checkpoint) -> None:
    if n_steps > _LONGEST_EPISODE:
        raise DatasetError(
            f"{checkpoint.path('terminal')}: no episode ends in {n_steps:,} rows, and no game of "
            f"Atari is longer than {_LONGEST_EPISODE:,} steps; get that file again"
        )
