"""Every test draws from d3rlpy's generators as if it were the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.d3rlpy.cases import seeded


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with seeded(0):
        yield
