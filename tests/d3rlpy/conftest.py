"""Every test draws from d3rlpy's generators as if it were the first; without d3rlpy none runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("d3rlpy") is None:

    class _SkippedModule(pytest.Module):
        """A module of tests that is not imported."""

        def collect(self) -> Any:
            pytest.skip("the d3rlpy extra is not installed", allow_module_level=True)

    def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
        module: pytest.Module = _SkippedModule.from_parent(parent, path=module_path)
        return module


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    from tests.d3rlpy.cases import seeded

    with seeded(0):
        yield
