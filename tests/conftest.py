"""Settings of the whole suite: shapes are checked as they are annotated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Without a GPU Triton's kernels are interpreted, which Triton is told before anything imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before anything imports these rooms: their shape annotations become assertions.
install_import_hook(["sb3_dmamba.networks"], "beartype.beartype")

# The networks here are tiny, and OpenMP's threads stumble over each other on a busy machine. Tests
# of threads set their own number.
torch.set_num_threads(1)

# How long an example takes says more of the machine than of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

SHARED_DATA = Path(
    os.environ.get("SB3_DMAMBA_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded real datasets that lies beside a development checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no shared datasets at {SHARED_DATA} (set SB3_DMAMBA_SHARED_DATA)")
    return SHARED_DATA
