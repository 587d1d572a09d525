"""The page's code runs; the two recipes that it names are run by tests/test_drop_in.py."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.d3rlpy.cases import seeded

PAGE = (Path(__file__).parents[2] / "docs" / "d3rlpy.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = BLOCKS[name].replace("n_steps=100000", "n_steps=2")
    code = code.replace("n_steps_per_epoch=1000", "n_steps_per_epoch=1")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of gymnasium, about its environments
        exec(compile(code, name, "exec"), variables)


def test_every_block_is_run() -> None:
    assert BLOCKS
    assert "```python\n" not in PAGE
