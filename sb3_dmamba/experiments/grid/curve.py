"""The curve of the training loss, the same however often a training was interrupted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sb3_dmamba.experiments.grid.folder import CellFolder, write_json

__all__ = ["LossCurve"]

_POINTS = 100


class LossCurve:
    """Mean losses over equal stretches of updates.

    The sum of a stretch stays on the device until the stretch ends or a checkpoint needs it.

    Args:
        folder: Where it is kept.
        update: The checkpoint from which training goes on.
        n_updates: Updates of the whole training.
    """

    def __init__(self, folder: CellFolder, update: int, n_updates: int) -> None:
        self._path = folder.losses
        self._every = max(1, n_updates // _POINTS)
        kept = folder.read_json(self._path, {"entries": [], "open": []})
        # The curve is written before the model, so it may be one checkpoint ahead of it.
        self.entries: list[list[float]] = [each for each in kept["entries"] if each[0] <= update]
        self._open = [each for each in kept["open"] if each[0] <= update]
        begun = [each for each in self._open if each[0] == update]
        self._sum: Any = begun[0][1] if begun else 0.0
        self._count: int = begun[0][2] if begun else 0

    def add(self, update: int, loss: Tensor) -> None:
        """Count the loss of an update."""
        self._sum = self._sum + loss.detach().double()
        self._count += 1
        if update % self._every == 0:
            self.entries.append([update, float(self._sum) / self._count])
            self._sum, self._count = 0.0, 0

    def write(self, update: int) -> None:
        """Keep the curve for a checkpoint that is about to be written.

        The stretch that has begun is kept for this checkpoint and for the one before, whichever
        of them a crash leaves.
        """
        self._open = [*self._open[-1:], [update, float(self._sum), self._count]]
        write_json(self._path, {"entries": self.entries, "open": self._open})
