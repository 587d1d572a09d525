"""Ctrl-C during training: an update that has begun is finished before the interrupt is raised."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "UpdateInterrupted"]

_ONE_PRESS_SECONDS = 1.0  # a launcher may pass on the signal that the terminal has sent already


class UpdateInterrupted(KeyboardInterrupt):
    """A second Ctrl-C ended an update half-way: the weights are those of no number of updates."""


class Interrupts:
    """Holds SIGINT back where ``KeyboardInterrupt`` would leave a model half-way through an update.

    Pressed again more than a second later, Ctrl-C goes through: what is held may hang.

    Attributes:
        is_pending: Whether an interrupt has come and is held back.
    """

    def __init__(self) -> None:
        self.is_pending = False
        self._first_at = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run a block to its end before an interrupt that comes meanwhile is raised.

        Nothing is held outside of the main thread, and where SIGINT is ignored or handled by
        somebody else; a block within another one leaves it to that one. An exception of the
        block's own takes the interrupt's place.

        Raises:
            KeyboardInterrupt: At the block's end, if an interrupt has come.
            UpdateInterrupted: In the block's middle, at the second one.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            was_pending, self.is_pending = self.is_pending, False
        if was_pending:
            raise KeyboardInterrupt

    def _receive(self, signal_number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.is_pending:
            self.is_pending, self._first_at = True, now
        elif now - self._first_at >= _ONE_PRESS_SECONDS:
            raise UpdateInterrupted
