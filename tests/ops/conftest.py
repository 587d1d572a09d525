"""Every allocation that a kernel has to fill starts as NaN, and work is shared from the start.

Where there is no GPU, Triton's kernels are interpreted: tests/conftest.py settles that.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from sb3_dmamba.ops import _cpu
from tests.ops.interpreter import patch_each_module_once

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON and not torch.cuda.is_available():
    patch_each_module_once()


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    def poisoned_like(
        *shape: int, like: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype or like.dtype, device=like.device)

    monkeypatch.setattr(_cpu, "empty", poisoned)
    if HAS_TRITON:
        shared = importlib.import_module("sb3_dmamba.ops._triton")
        monkeypatch.setattr(shared, "empty", poisoned_like)


@pytest.fixture(autouse=True)
def _short_tiles(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Interpret half as many tokens at a time: most tests have only a few."""
    if HAS_TRITON and "unrolled_as_on_a_gpu" not in request.fixturenames:
        scan = triton_scan()
        monkeypatch.setattr(scan, "TILE", 4)
        monkeypatch.setattr(scan, "HISTORY", 2)


@pytest.fixture
def unrolled_as_on_a_gpu() -> None:
    """Keep the number of tokens that kernels take at a time."""


def triton_scan() -> ModuleType:
    """Return the module of the scan in Triton."""
    return importlib.import_module("sb3_dmamba.ops.selective_scan.triton")


@pytest.fixture(params=["torch's threads", "a pool"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let two threads share even the smallest work."""
    if request.param == "a pool":
        monkeypatch.setattr(_cpu, "find_team", lambda: None)
    elif _cpu.find_team() is None:
        pytest.skip("torch's threads cannot be borrowed here")
    monkeypatch.setattr(_cpu, "PARALLEL_THRESHOLD", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
