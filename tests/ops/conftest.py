"""Every allocation that a kernel has to fill starts as NaN, and work is shared from the start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sb3_dmamba.ops import _cpu, _team


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(_cpu, "empty", poisoned)


@pytest.fixture(params=["torch's threads", "our threads"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let two threads share even the smallest work."""
    if request.param == "our threads":
        monkeypatch.setattr(_team, "find_team", lambda: None)
    elif _team.find_team() is None:
        pytest.skip("torch's threads cannot be borrowed here")
    monkeypatch.setattr(_cpu, "PARALLEL_THRESHOLD", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
