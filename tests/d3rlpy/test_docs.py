"""The page's code runs, with our line and with d3rlpy's own in its place."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import d3rlpy
import gymnasium
import pytest
import torch

from sb3_dmamba import load_trajectories
from sb3_dmamba.d3rlpy import DecisionMamba, DiscreteDecisionMamba
from tests.d3rlpy.cases import seeded

PAGE = (Path(__file__).parents[2] / "docs" / "d3rlpy.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, flags=re.DOTALL))
SMALLER = {
    "n_steps=100000": "n_steps=2",
    "n_steps_per_epoch=1000": "n_steps_per_epoch=1",
    "batch_size=128": "batch_size=2",
    "num_layers=6": "num_layers=1",
    "context_size=30": "context_size=3",
}
OUR_LINE = re.compile(r"from sb3_dmamba\.d3rlpy import \w+ as (\w+)")


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> dict[str, Any]:
    for full, small in SMALLER.items():
        code = code.replace(full, small)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of gymnasium, about its environments
        exec(compile(code, name, "exec"), variables)
    return variables


def short(env: Any) -> Any:
    return gymnasium.wrappers.TimeLimit(env, 3)


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    data = load_trajectories("sb3_dmamba/hopper-v0").to_d3rlpy()
    env = short(gymnasium.make("Hopper-v5"))
    monkeypatch.setattr(d3rlpy.datasets, "get_d4rl", lambda name: (data, env))


@pytest.fixture
def _breakout(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    pytest.importorskip("ale_py", reason="the Atari extra is not installed")
    trajectories = load_trajectories(shared_data / "dqn-replay" / "Breakout" / "1", n_steps=200)
    env = short(gymnasium.make("sb3_dmamba/Atari-v0", game="Breakout"))
    data = trajectories.to_d3rlpy()
    monkeypatch.setattr(
        d3rlpy.datasets, "get_atari_transitions", lambda game, **options: (data, env)
    )


def run_both_lines(
    name: str, ours: type, theirs: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = BLOCKS[name]
    before = OUR_LINE.sub(r"from d3rlpy.algos import \1", code)
    changed = [
        (one, other)
        for one, other in zip(before.splitlines(), code.splitlines(), strict=True)
        if one != other
    ]
    assert len(changed) == 1
    for text, kind in ((before, theirs), (code, ours)):
        learnable = run(name, tmp_path, monkeypatch, text)["dt"]
        assert type(learnable) is kind
        (folder,) = (tmp_path / "d3rlpy_logs").glob(f"{kind.__name__}_*")
        assert len((folder / "environment.csv").read_text().split()) == 2
        loaded: Any = d3rlpy.load_learnable(str(folder / "model_2.d3"))
        assert type(loaded) is kind
        both: tuple[Any, Any] = (loaded, learnable)
        states = [each.impl.modules.transformer.state_dict() for each in both]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.usefixtures("_hopper")
def test_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = d3rlpy.algos.DecisionTransformer
    run_both_lines("hopper", DecisionMamba, theirs, tmp_path, monkeypatch)


@pytest.mark.usefixtures("_breakout")
def test_breakout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = d3rlpy.algos.DiscreteDecisionTransformer
    run_both_lines("breakout", DiscreteDecisionMamba, theirs, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"hopper", "breakout"}))
def test_the_other_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, tmp_path, monkeypatch, BLOCKS[name])


def test_what_is_made_smaller_is_there() -> None:
    assert all(full in PAGE for full in SMALLER)
    assert "```python\n" not in PAGE
