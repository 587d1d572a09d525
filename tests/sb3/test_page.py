"""The page on Stable-Baselines3 runs as it stands, with smaller numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "stable_baselines3.md"
TEXT = PAGE.read_text(encoding="utf-8")
SMALLER = {
    "n_steps=5000": "n_steps=300",
    "n_updates=1000": "n_updates=2, hidden_size=16, n_layers=1, context_length=5",
    "n_eval_episodes=10": "n_eval_episodes=2",
}


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a")
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One script, since later blocks use what earlier ones made."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
    for full, small in SMALLER.items():
        assert full in code
        code = code.replace(full, small)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert (tmp_path / "hub" / "dmamba-CartPole-v1.zip").is_file()
    assert len(names["both"]) == 2
