"""Windows that follow each other, for training that carries a state from one to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.windows import WindowSampler

__all__ = ["ConsecutiveSampler"]

_PHASE_STREAM, _ORDER_STREAM = 0, 1  # independent random numbers from one seed


@dataclass
class _Pass:
    """One row's way through all episodes.

    Args:
        number: How many came before it in this row.
        episodes: The order of the episodes.
        ends: Windows until each of them is over.
    """

    number: int
    episodes: Int32[ndarray, "E"]
    ends: Int64[ndarray, "E"]


class ConsecutiveSampler(WindowSampler):
    """Gives each row of the batch whole episodes, a window an update, in order.

    A row goes through all episodes in a random order, then again in another; the rows' orders are
    independent, and their starts spread evenly at random over all windows, so a batch is as mixed
    as one drawn at random, and in one pass of a row every step counts exactly once. Where a window
    begins is in ``WindowBatch.first_steps``: a row goes on from the batch before unless its window
    is an episode's first (or the run's: a row may begin in the middle).

    The batch of an update is a pure function of the seed and the update's number, as
    :class:`WindowSampler`'s is.

    Args:
        trajectories: The episodes.
        context_length: Steps in a window, K; an episode's last window is padded.
        batch_size: Rows, B.
        seed: A non-negative integer.
        rows: Which rows to give, as for :class:`WindowSampler`.

    Raises:
        ConfigError: A number is out of its range.
    """

    is_consecutive = True

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        rows: slice = slice(None),
    ) -> None:
        super().__init__(trajectories, context_length, batch_size, seed, rows=rows)
        self._n_windows = -(-trajectories.lengths // self.context_length)  # per episode, rounded up
        self.n_windows = int(self._n_windows.sum())
        """Windows in all episodes, and updates in which a row goes through them."""
        generator = np.random.default_rng((self.seed, _PHASE_STREAM))
        self._phases = generator.integers(self.n_windows, size=self.batch_size)
        self._passes: dict[int, _Pass] = {}

    def draw_first_steps(self, update: int) -> Int64[ndarray, "B"]:
        """Return where each row's next window begins, as flat indices of steps.

        Raises:
            ConfigError: ``update`` is not a non-negative integer.
        """
        update = check_integer("update", update, 0)
        places = [int(phase) + update for phase in self._phases]
        rows = range(self.batch_size)[self.rows]
        return np.array([self._find(row, places[row]) for row in rows], dtype=np.int64)

    def _find(self, row: int, place: int) -> int:
        """Return the first step of the window at a place in a row's endless sequence."""
        number, window = divmod(place, self.n_windows)
        current = self._passes.get(row)
        if current is None or current.number != number:
            current = self._passes[row] = self._make_pass(row, number)
        rank = int(np.searchsorted(current.ends, window, side="right"))
        episode = int(current.episodes[rank])
        left = int(current.ends[rank]) - window  # windows of the episode, this one included
        within = int(self._n_windows[episode]) - left
        return int(self.trajectories.episode_offsets[episode]) + within * self.context_length

    def _make_pass(self, row: int, number: int) -> _Pass:
        generator = np.random.default_rng((self.seed, _ORDER_STREAM, row, number))
        episodes = generator.permutation(len(self.trajectories)).astype(np.int32)
        return _Pass(number, episodes, np.cumsum(self._n_windows[episodes]))
