"""Names of backends, what "auto" means, and what importing costs."""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import dispatch, resolve_backend
from tests.scripts import run_python


def test_auto_is_the_fastest_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._resolve.cache_clear()
    with caplog.at_level(logging.INFO, "sb3_dmamba"):
        assert [resolve_backend("auto", "cpu") for _ in range(3)] == ["cpu"] * 3
    assert [record.name for record in caplog.records] == ["sb3_dmamba"]
    assert "'cpu'" in caplog.text


def test_a_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"move them to the CPU"):
        resolve_backend("cpu", "meta")
    dispatch._resolve.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendError, match=r"Numba cannot be imported.*pip install"):
        resolve_backend("cpu", "cpu")
    assert resolve_backend("auto", "cpu") == "reference"
    dispatch._resolve.cache_clear()


def test_unknown_names_list_the_known() -> None:
    known = "'auto', 'triton', 'cuda', 'cpu', 'reference'"
    with pytest.raises(BackendError, match=rf"'gpu'.*{known}"):
        resolve_backend("gpu")


def test_import_is_light() -> None:
    code = """
import sys, sb3_dmamba.ops as ops
compilers = ("numba", "llvmlite")
print([m for m in compilers if m in sys.modules])
assert ops.resolve_backend("auto") == "cpu"
optional = ("triton", "mamba_ssm", "causal_conv1d")
print([m for m in optional if m in sys.modules])
"""
    assert run_python("-W", "error", "-c", code).split() == ["[]", "[]"]


AHEAD = """
from sb3_dmamba.ops import _cpu, dispatch
dispatch.compile_ahead("reference", "cpu")
dispatch.compile_ahead("auto", "meta")
assert not _cpu.is_compiling()
dispatch.compile_ahead("auto", "cpu")
dispatch.compile_ahead("auto", "cpu")
assert _cpu.is_compiling()
_cpu._ahead.join()
ways = ("forward", "backward")
kernels = [(module, f"build_{name}{way}") for module, name in _cpu._OF_AN_UPDATE for way in ways]
loaded = _cpu._load_kernel.cache_info().misses
owners = [_cpu.load_kernel(*each, 3216).owner for each in kernels]
assert _cpu._load_kernel.cache_info().misses == loaded == 8
print(sum(owner.cache_hits for owner in owners))
"""


def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(run_python, "-c", AHEAD, env=env) for _ in range(2)]
    assert sum(int(each.result()) for each in started) == 8


def test_works_without_avx512_and_without_a_folder_to_cache_in() -> None:
    scan = """
import torch
from sb3_dmamba.ops import selective_scan
x = torch.ones(2, 3, 4, requires_grad=True)
y = selective_scan(x, x, -torch.ones(4, 1), x[..., :1], x[..., :1], backend="cpu")
y.sum().backward()
numbers = [y.sum().item(), x.grad.sum().item()]
"""
    bare = """
import os
os.environ["NUMBA_CPU_NAME"] = "generic"
import numba.core.caching as caching
implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl
assert implementation._locator_classes
implementation._locator_classes = []
"""
    here: dict[str, list[float]] = {}
    exec(scan, here)
    found = [
        float(number)
        for number in run_python("-W", "error", "-c", bare + scan + "print(*numbers)").split()
    ]
    assert found == pytest.approx(here["numbers"], rel=1e-6)
