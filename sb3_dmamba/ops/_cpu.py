"""Compiled kernels of the ``cpu`` backend: loading, arguments, scratch memory and threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import tempfile
import threading
import zlib
from array import array
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from filelock import FileLock
from torch import Tensor

from sb3_dmamba.ops._shared import wants_gradient

# Sequences are summed into this many partial gradients of the parameters at most. It bounds the
# threads of the backward passes, and fixes the order of summation whatever their number.
MAX_GROUPS = 32
_compile_lock = threading.RLock()

# glibc returns freed memory to the system when more is free than twice the largest block that it
# has mapped and freed (up to 32 MiB), and the next update waits for each page to be zeroed and
# mapped again. A large block, never touched, lets it keep what updates use over and over.
torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


class Kernel(Protocol):
    """A compiled function; the interpreter lock is released while it runs."""

    address: int

    def __call__(self, block: int, scratch: int, /) -> None:
        """Run, given the addresses of the argument block and of scratch memory."""


@functools.cache
def load_kernel(module_name: str, builder: str, kind: int) -> Kernel:
    """Compile what a module's builder makes for vectors of a kind, or load it from cache."""
    with _compile_lock:  # a thread that waited here finds the other's kernel
        return _load_kernel(module_name, builder, kind)


@functools.cache
def _load_kernel(module_name: str, builder: str, kind: int) -> Kernel:
    compiled = compile_function(module_name, builder, "void(int64, int64)", kind)
    call: Any = compiled.ctypes
    call.owner = compiled  # the machine code lives as long as this object
    call.address = compiled.address
    return cast("Kernel", call)


def compile_function(module_name: str, builder: str, signature: str, kind: int) -> Any:
    """Compile a function to machine code with C's calling convention, or load it from the cache.

    One process of a user compiles at a time: the others wait, and find the result in the cache.
    """
    with _compile_lock, contextlib.ExitStack() as held:
        from numba import cfunc

        with contextlib.suppress(OSError, NotImplementedError):  # no lock here: each compiles
            user = os.getuid() if hasattr(os, "getuid") else 0
            held.enter_context(FileLock(Path(tempfile.gettempdir(), f"sb3_dmamba-{user}.lock")))
        module = importlib.import_module(f"sb3_dmamba.ops.{module_name}")
        function = getattr(module, builder)(kind, _source_digest())
        try:
            return cfunc(signature, cache=True)(function)
        except (RuntimeError, OSError):  # no folder to cache in: compile for this process alone
            return cfunc(signature)(function)


_ahead = threading.Thread()


def compile_ahead() -> None:
    """Start to compile the kernels of an update in float32, or load them, in a thread.

    Once a process. At exit the kernel that is being compiled is finished: a thread cannot be
    stopped inside LLVM.
    """
    global _ahead
    if _ahead.ident is None:
        _ahead = threading.Thread(target=_compile_all, name="sb3_dmamba kernels")
        _ahead.start()


def is_compiling() -> bool:
    """Return whether kernels are being compiled ahead, or loaded."""
    return _ahead.is_alive()


_OF_AN_UPDATE = (
    *(("causal_conv1d.cpu", ""), ("selective_scan._kernels", "")),
    *(("residual.cpu", "norm_"), ("residual.cpu", "add_")),
)  # modules of kernels, and what comes before the direction in their names


def _compile_all() -> None:
    kind, _, _ = choose_vectors(torch.float32)
    with contextlib.suppress(Exception):  # the call that needs the kernel will raise it
        for direction in ("forward", "backward"):
            for module, name in _OF_AN_UPDATE:
                if threading.main_thread().is_alive():
                    load_kernel(module, f"build_{name}{direction}", kind)


def _source_digest() -> int:
    # Numba looks at the time stamp of a kernel's own file, and not at what the file imports.
    others = ("triton", "cuda")  # sources of the other compiled backends
    sources = sorted(
        path
        for path in Path(__file__).parent.rglob("*.py")
        if not path.stem.lstrip("_").startswith(others)
    )
    return zlib.crc32(b"".join(path.read_bytes() for path in sources))


def choose_vectors(dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the ``kind`` of vectors (see ``_simd``), a float's bytes, and the lanes of a vector.

    512 bits everywhere: on AVX2 the scan and the convolution took 1.2 to 1.5 times as long with
    256, because what a loop does besides its arithmetic is done twice as often.
    """
    bits = 64 if dtype is torch.float64 else 32
    lanes = 512 // bits
    return 100 * bits + lanes, bits // 8, lanes


def prepare(tensors: list[Tensor | None], n_sequences: int, dtype: torch.dtype) -> bool:
    """Bring tensors, in the list, into the dtype and layout of kernels; whether to keep gradients.

    The first ``n_sequences`` (B, L, ...) need a contiguous last dimension alone, the others,
    parameters and states, are made contiguous.
    """
    for place, x in enumerate(tensors):
        if x is None:
            continue
        if x.dtype is not dtype:
            x = tensors[place] = x.to(dtype)
        if not x.is_contiguous() and (place >= n_sequences or x.stride(-1) != 1):
            tensors[place] = x.contiguous()
    return wants_gradient(tensors)


def rows(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous, itself where it is so already."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_arguments(size: int, *tensors: Tensor | None) -> list[int]:
    """Return address and strides along B and L, in bytes, of (B, L, ...) tensors; 0 for None."""
    arguments: list[int] = []
    for x in tensors:
        if x is None:
            arguments += (0, 0, 0)
        else:
            batch_stride, time_stride, _ = x.stride()
            arguments += (x.data_ptr(), batch_stride * size, time_stride * size)
    return arguments


def addresses(*tensors: Tensor | None) -> list[int]:
    """Return the addresses of contiguous tensors, 0 for None."""
    return [0 if x is None else x.data_ptr() for x in tensors]


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory that a kernel fills completely (tests poison it)."""
    return torch.empty(shape, dtype=dtype)


def cut_batch(batch: int) -> tuple[int, int]:
    """Return the sequences of a group, and how many groups there are."""
    size = -(-batch // MAX_GROUPS)
    return size, -(-batch // max(size, 1))


def sum_groups(partials: Tensor, channels: int) -> Tensor:
    """Sum partial gradients (group, block, part, lane) to (channels, part), in order of the groups.

    NumPy's sum stays in this thread: waking torch's pool would take longer than the sum.
    """
    total = torch.from_numpy(partials.numpy().sum(axis=0)).transpose(1, 2)  # (block, lane, part)
    return total.reshape(-1, total.shape[2])[:channels]


class _Scratch(threading.local):
    memory: Tensor | None = None
    size = 0
    start = 0


_scratch = _Scratch()


def own_scratch(size: int) -> int:
    """Return the address of this thread's own scratch, kept from call to call for speed."""
    if _scratch.size < size:
        _scratch.memory = empty((size + 64) // 4 + 1, dtype=torch.float32)
        _scratch.start = -(-_scratch.memory.data_ptr() // 64) * 64
        _scratch.size = size
    return _scratch.start


# Work (products of sizes) below which a second thread gains less than its wake-up costs, some tens
# of microseconds: about 0.3 ms of a scan's forward pass. Acting stays below, training above.
PARALLEL_THRESHOLD = 1 << 21

Team = Callable[[int, int, list[int]], None]

# The block that a member of the team reads, in int64s; the scratch addresses follow.
KERNEL, ARGUMENTS, TICKETS_TAKEN, N_TICKETS, SCRATCHES = (8 * place for place in range(5))


def call_kernel(
    kernel: Kernel, arguments: tuple[int, ...], scratch_bytes: int, n_units: int, work: int
) -> None:
    """Run a kernel, on several threads where that pays."""
    block = array("q", arguments)
    n_workers = 1
    if work >= PARALLEL_THRESHOLD and n_units > 1:
        n_workers = min(torch.get_num_threads(), n_units)
    if n_workers == 1:
        kernel(block.buffer_info()[0], own_scratch(scratch_bytes))
        return
    stride = -(-scratch_bytes // 64) * 64 + 4096 + 64  # workers share no page
    memory = empty((stride * n_workers + 64) // 4, dtype=torch.float32)
    start = -(-memory.data_ptr() // 64) * 64
    scratches = [start + stride * worker for worker in range(n_workers)]
    team = None if _is_forked else find_team()
    if team is not None:
        team(kernel.address, block.buffer_info()[0], scratches)
    else:
        _run_in_pool(kernel, block.buffer_info()[0], scratches, (memory, block))


def _make_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sb3_dmamba")


_pool = _make_pool()  # its threads start when they are needed
_is_forked = False


def _forget_threads() -> None:
    global _pool, _is_forked
    _pool = _make_pool()
    _is_forked = True  # OpenMP's threads have not come along, and its runtime does not know it
    _compile_lock.release()


if hasattr(os, "register_at_fork"):  # a fork waits for the kernel that a thread compiles
    os.register_at_fork(
        before=_compile_lock.acquire,
        after_in_parent=_compile_lock.release,
        after_in_child=_forget_threads,
    )


def _run_in_pool(kernel: Kernel, block: int, scratches: list[int], keep: object) -> None:
    """Run a kernel in this thread and, at most, one other for each further scratch address.

    The caller works too, cancels the helpers that have not begun, and waits for the others alone:
    no deadlock when calls nest or come from several threads. ``keep`` owns the memory in use, alive
    as long as a helper may touch it (also when an interrupt takes the caller away).
    """
    global _pool
    pool = _pool
    helpers: list[Future[None]] = []
    try:
        for scratch in scratches[1:]:  # those before a refusal count
            helpers.append(pool.submit(_help, kernel, block, scratch, keep))  # noqa: PERF401
    except RuntimeError:  # no more threads here, or the interpreter is shutting down
        pool.shutdown(cancel_futures=True)  # one that was refused may be in the queue nevertheless
        _pool = _make_pool()
    kernel(block, scratches[0])
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _help(kernel: Kernel, block: int, scratch: int, keep: object) -> None:
    kernel(block, scratch)


@functools.cache
def find_team() -> Team | None:
    """Return a function that runs a kernel on torch's OpenMP threads; None where there are none.

    It takes the kernel's address, that of its argument block, and one of scratch for each thread.
    """
    try:
        symbols: Any = ctypes.CDLL(None)  # torch puts its OpenMP runtime among the global symbols
        enter = symbols.GOMP_parallel
        is_torchs = symbols.omp_get_max_threads() == torch.get_num_threads()
    except (AttributeError, OSError, TypeError):
        return None
    if not is_torchs:
        return None
    member = compile_function("_cpu", "build_member", "void(int64)", 0)
    enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None

    def run(kernel: int, arguments: int, scratches: list[int]) -> None:
        block = array("q", (kernel, arguments, 0, len(scratches), *scratches))
        enter(member.address, block.buffer_info()[0], len(scratches), 0)

    return run


def build_member(kind: int, digest: int) -> Callable[[int], None]:
    """Make the function that every thread of the team calls: take a ticket, run the kernel."""
    from sb3_dmamba.ops._simd import call_kernel_at, fetch_increment, load_int

    def member(block: int) -> None:
        _ = digest, kind  # a cached function is found again only while its sources are the same
        ticket = fetch_increment(block + TICKETS_TAKEN)
        if ticket < load_int(block + N_TICKETS):
            scratch = load_int(block + SCRATCHES + 8 * ticket)
            call_kernel_at(load_int(block + KERNEL), load_int(block + ARGUMENTS), scratch)

    return member
