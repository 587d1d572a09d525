"""Torch's own OpenMP threads, borrowed for a kernel.

Between two of its parallel loops torch's worker threads keep spinning for a while. Threads of our
own would compete with them for the cores; so where torch runs on an OpenMP runtime with GNU's entry
point (GNU's and LLVM's have it), a kernel is run by the very same team, which is awake already.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["find_team"]

Team = Callable[[int, int, list[int]], None]

# The block that a member of the team reads, in int64s; the scratch addresses follow.
KERNEL, ARGUMENTS, TICKETS_TAKEN, N_TICKETS, SCRATCHES = (8 * place for place in range(5))


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
    from sb3_dmamba.ops._cpu import compile_function

    member = compile_function("_team", "build_member", "void(int64)", 32)
    enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None

    def run(kernel: int, arguments: int, scratches: list[int]) -> None:
        block = array("q", (kernel, arguments, 0, len(scratches), *scratches))
        enter(member.address, block.buffer_info()[0], len(scratches), 0)

    return run
