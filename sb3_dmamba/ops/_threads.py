"""Running a kernel on several threads: torch's own where they can be borrowed, or else our own.

Ours are a few persistent Python threads beside the caller.
Kernels release the interpreter lock and share their work through an atomic counter, so a helper
that comes late, or never, costs nothing but its share: the caller works too, takes back the tickets
that nobody has picked up, and waits only for helpers that have begun. Hence no deadlock when calls
nest or come from several threads, and none after a fork. ``torch.set_num_threads`` sets the number
of either kind.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import Protocol

from sb3_dmamba.ops import _team

__all__ = ["Kernel", "run_kernel"]


class Kernel(Protocol):
    """A compiled function of (address of the argument block, address of scratch)."""

    address: int

    def __call__(self, block: int, scratch: int, /) -> None:
        """Run; the interpreter lock is released."""


class _Job:
    """One kernel call that helpers may join.

    Args:
        kernel: Compiled function of (argument block, scratch).
        block: Address of the argument block.
        tickets: Scratch addresses, one for each helper that may join.
        keep: Owners of the memory in use, alive as long as a helper may touch it (also when an
            interrupt takes the caller away).
    """

    __slots__ = ("block", "finished", "keep", "kernel", "tickets")

    def __init__(self, kernel: Kernel, block: int, tickets: list[int], keep: object) -> None:
        self.kernel = kernel
        self.block = block
        self.tickets = tickets
        self.keep = keep
        self.finished: SimpleQueue[None] = SimpleQueue()


class _Pool:
    def __init__(self) -> None:
        self.queue: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._n_helpers = 0

    def ensure(self, n_helpers: int) -> None:
        if self._n_helpers >= n_helpers:
            return
        with self._lock:
            while self._n_helpers < n_helpers:
                name = f"sb3_dmamba-{self._n_helpers}"
                helper = threading.Thread(target=_help, args=(self.queue,), name=name, daemon=True)
                try:
                    helper.start()
                except RuntimeError:  # no more threads here, or the interpreter is shutting down
                    return
                self._n_helpers += 1


def _help(queue: SimpleQueue[_Job]) -> None:
    while True:
        job = queue.get()
        try:
            scratch = job.tickets.pop()
        except IndexError:  # the caller has taken it back
            continue
        job.kernel(job.block, scratch)
        job.finished.put(None)
        del job


_pool = _Pool()


_is_forked = False


def _forget_threads() -> None:
    global _pool, _is_forked
    _pool = _Pool()
    _is_forked = True  # OpenMP's threads have not come along, and its runtime does not know it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run_kernel(kernel: Kernel, block: int, scratches: list[int], keep: object) -> None:
    """Run a kernel in this thread and, at most, one other for each further scratch address.

    Args:
        kernel: Compiled function of (argument block, scratch); its workers share the work.
        block: Address of the argument block.
        scratches: Address of each worker's own scratch; the first is the caller's.
        keep: Owners of the memory that the kernel uses.
    """
    if len(scratches) == 1:
        kernel(block, scratches[0])
        return
    team = None if _is_forked else _team.find_team()
    if team is not None:
        team(kernel.address, block, scratches)
        return
    pool = _pool
    n_helpers = len(scratches) - 1
    pool.ensure(n_helpers)
    job = _Job(kernel, block, scratches[1:], keep)
    for _ in range(n_helpers):
        pool.queue.put(job)
    kernel(block, scratches[0])
    begun = n_helpers
    while True:
        try:
            job.tickets.pop()
        except IndexError:
            break
        begun -= 1
    for _ in range(begun):
        job.finished.get()
