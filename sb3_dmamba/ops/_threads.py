"""Run compiled kernels on several threads: OpenMP's team of torch, or a thread pool.

Kernels release the interpreter lock and share their work through an atomic counter, so a helper
that comes late, or never, costs nothing but its share. ``torch.set_num_threads`` sets the number.

Between two of its parallel loops torch's worker threads keep spinning for a while, and a pool's
would compete with them for the cores. Where torch runs on an OpenMP runtime with GNU's entry point
(GNU's and LLVM's have it), the same team, which is awake already, runs the kernel.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sb3_dmamba.ops import _cpu
from sb3_dmamba.ops._cpu import Kernel

__all__ = ["call_kernel", "find_team"]

# Work (products of sizes) below which a second thread is not worth its wake-up of some tens of
# microseconds: about 0.3 ms of a scan's forward pass. Acting stays below, training above.
PARALLEL_THRESHOLD = 1 << 21

Team = Callable[[int, int, list[int]], None]

# The block that a member of the team reads, in int64s; the scratch addresses follow.
KERNEL, ARGUMENTS, TICKETS_TAKEN, N_TICKETS, SCRATCHES = (8 * place for place in range(5))


def call_kernel(
    kernel: Kernel, arguments: tuple[int, ...], scratch_bytes: int, n_units: int, work: int
) -> None:
    """Run a kernel, on several threads where that pays.

    Args:
        kernel: What :func:`sb3_dmamba.ops._cpu.load_kernel` returned.
        arguments: The argument block, in the order that the kernel's module defines.
        scratch_bytes: Scratch of one worker.
        n_units: Independent units of work; more workers than that make no sense.
        work: Work in all, comparable with ``PARALLEL_THRESHOLD``.
    """
    block = array("q", arguments)
    n_workers = 1
    if work >= PARALLEL_THRESHOLD and n_units > 1:
        n_workers = min(torch.get_num_threads(), n_units)
    if n_workers == 1:
        kernel(block.buffer_info()[0], _cpu.own_scratch(scratch_bytes))
        return
    stride = -(-scratch_bytes // 64) * 64 + 4096 + 64  # workers share no page
    memory = _cpu.empty((stride * n_workers + 64) // 4, dtype=torch.float32)
    start = -(-memory.data_ptr() // 64) * 64
    scratches = [start + stride * worker for worker in range(n_workers)]
    team = None if _is_forked else find_team()
    if team is not None:
        team(kernel.address, block.buffer_info()[0], scratches)
    else:
        _run_in_pool(kernel, block.buffer_info()[0], scratches, (memory, block))


# --- The thread pool -----------------------------------------------------------------------------


def _make_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sb3_dmamba")


_pool = _make_pool()  # its threads start when they are needed
_is_forked = False


def _forget_threads() -> None:
    global _pool, _is_forked
    _pool = _make_pool()
    _is_forked = True  # OpenMP's threads have not come along, and its runtime does not know it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _run_in_pool(kernel: Kernel, block: int, scratches: list[int], keep: object) -> None:
    """Run a kernel in this thread and, at most, one other for each further scratch address.

    The caller works too, cancels the helpers that have not begun, and waits for the others alone:
    no deadlock when calls nest or come from several threads.

    Args:
        kernel: Compiled function of (argument block, scratch).
        block: Address of the argument block.
        scratches: Address of each worker's own scratch; the first is the caller's.
        keep: Owners of the memory in use, alive as long as a helper may touch it (also when an
            interrupt takes the caller away).
    """
    global _pool
    pool = _pool
    helpers: list[Future[None]] = []
    try:
        for scratch in scratches[1:]:
            helpers.append(  # noqa: PERF401  # those before a refusal count
                pool.submit(_help, kernel, block, scratch, keep)
            )
    except RuntimeError:  # no more threads here, or the interpreter is shutting down
        pool.shutdown(cancel_futures=True)  # one that was refused may be in the queue nevertheless
        _pool = _make_pool()
    kernel(block, scratches[0])
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _help(kernel: Kernel, block: int, scratch: int, keep: object) -> None:
    kernel(block, scratch)


# --- OpenMP's team -------------------------------------------------------------------------------


@functools.cache
def find_team() -> Team | None:
    """Return a function that runs a kernel on torch's OpenMP threads; None where there are none.

    Returns:
        A function of (the kernel's address, its argument block, one scratch address a thread).
    """
    try:
        symbols: Any = ctypes.CDLL(None)  # torch puts its OpenMP runtime among the global symbols
        enter = symbols.GOMP_parallel
        is_torchs = symbols.omp_get_max_threads() == torch.get_num_threads()
    except (AttributeError, OSError, TypeError):
        return None
    if not is_torchs:
        return None
    member = _cpu.compile_function("_threads", "build_member", "void(int64)", 32)
    enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None

    def run(kernel: int, arguments: int, scratches: list[int]) -> None:
        block = array("q", (kernel, arguments, 0, len(scratches), *scratches))
        enter(member.address, block.buffer_info()[0], len(scratches), 0)

    return run


def build_member(bits: int, digest: int) -> Callable[[int], None]:
    """Make the function that every thread of the team calls: take a ticket, run the kernel."""
    from sb3_dmamba.ops._simd import call_kernel_at, fetch_increment, load_int

    def member(block: int) -> None:
        _ = digest, bits  # a cached function is found again only while its sources are the same
        ticket = fetch_increment(block + TICKETS_TAKEN)
        if ticket < load_int(block + N_TICKETS):
            scratch = load_int(block + SCRATCHES + 8 * ticket)
            call_kernel_at(load_int(block + KERNEL), load_int(block + ARGUMENTS), scratch)

    return member
