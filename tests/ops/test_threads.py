"""Threads: the same bits whatever their number, from several callers, and after a fork."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from sb3_dmamba.ops import _cpu
from tests.ops.cases import conv, conv_inputs, evaluate, scan, scan_inputs
from tests.scripts import run_python


def results(seed: int = 0) -> dict[str, Tensor]:
    scanned = evaluate(scan, scan_inputs(37, 40, 24, 4, 3, seed), "cpu", torch.float32)
    convolved = evaluate(conv, conv_inputs(37, 40, 24, 4, seed), "cpu", torch.float32)
    return {**scanned, **{f"conv {name}": value for name, value in convolved.items()}}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.usefixtures("two_threads")
def test_two_threads_equal_one() -> None:
    torch.set_num_threads(1)
    alone = results()
    torch.set_num_threads(2)
    for _ in range(6):
        assert_equal(alone, results())
    torch.set_num_threads(5)  # more than there are helpers so far
    assert_equal(alone, results())


@pytest.mark.usefixtures("two_threads")
def test_concurrent_callers() -> None:
    expected = [results(seed) for seed in range(4)]
    outcomes: list[list[dict[str, Tensor]]] = [[] for _ in expected]

    def call(seed: int) -> None:
        torch.set_num_threads(2)  # the setting is per thread
        outcomes[seed].extend(results(seed) for _ in range(4))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    for wanted, found in zip(expected, outcomes, strict=True):
        assert len(found) == 4
        for outcome in found:
            assert_equal(wanted, outcome)


@pytest.mark.usefixtures("two_threads")
def test_the_caller_works_alone_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "find_team", lambda: None)
    expected = results()
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    monkeypatch.setattr(_cpu, "_pool", closed)
    assert_equal(expected, results())
    assert _cpu._pool is not closed


FORK = """
import os, threading, time, torch
from sb3_dmamba.ops import _cpu
from tests.ops.cases import evaluate, scan, scan_inputs
_cpu.PARALLEL_THRESHOLD = 0
torch.set_num_threads(2)
tensors = scan_inputs(16, 20, 24, 4)
# A forward pass alone: autograd itself refuses to work after a fork that follows its use.
before = scan(tensors, "cpu")[0]
def compile_something():
    with _cpu._compile_lock:
        held.set()
        time.sleep(0.5)
held = threading.Event()
threading.Thread(target=compile_something).start()
held.wait()
child = os.fork()
if child == 0:
    can_compile = _cpu._compile_lock.acquire(timeout=5)
    os._exit(0 if can_compile and torch.equal(scan(tensors, "cpu")[0], before) else 1)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_works_after_a_fork() -> None:
    assert run_python("-c", FORK, timeout=60).strip() == "0"
