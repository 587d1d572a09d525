"""docs/drop_in.md: one line of each script differs, and both versions run; docs/d3rlpy.md runs."""

from __future__ import annotations

import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.sources import load_trajectories

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "drop_in.md").read_text(encoding="utf-8")
D3RLPY_PAGE = (DOCS / "d3rlpy.md").read_text(encoding="utf-8")
D3RLPY_BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", D3RLPY_PAGE, flags=re.DOTALL))
SCRIPTS = dict(re.findall(r"```diff (\w+)\n(.*?)```", PAGE, flags=re.DOTALL))
SMALLER = {  # so that a test can wait for it
    "n_steps=100000": "n_steps=2",
    "n_steps_per_epoch=1000": "n_steps_per_epoch=1",
    "batch_size=128": "batch_size=2",
    "num_layers=6": "num_layers=1",
    "context_size=30": "context_size=3",
    "Algorithm(env)": "Algorithm(env, **SMALL)",
}
SMALL: dict[str, Any] = {"n_updates": 3, "hidden_size": 16, "n_layers": 1, "context_length": 4}
SMALL["seed"] = 0


def old(script: str, added: str = "+") -> str:
    return "\n".join(line[1:] for line in script.splitlines() if not line.startswith(added))


def new(script: str) -> str:
    return old(script, "-")


def run(code: str) -> dict[str, Any]:
    for full, small in SMALLER.items():
        assert full in PAGE
        code = code.replace(full, small)
    variables: dict[str, Any] = {"SMALL": SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of gymnasium, about its environments
        exec(compile(code, "docs/drop_in.md", "exec"), variables)
    return variables


def check_d3rlpys_files(learnable: Any, kind: str, logs: Path) -> None:
    """It was evaluated after each epoch, and what it saved opens as itself."""
    import d3rlpy

    assert type(learnable).__name__ == kind
    assert learnable.grad_step == 2
    (folder,) = logs.glob(f"{kind}_*")
    assert len((folder / "environment.csv").read_text().split()) == 2
    loaded: Any = d3rlpy.load_learnable(str(folder / "model_2.d3"))
    assert type(loaded) is type(learnable)
    saved, trained = (each.impl.modules.transformer.state_dict() for each in (loaded, learnable))
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in trained)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # d3rlpy logs into the working directory


def test_one_line_of_each_script_differs() -> None:
    assert set(SCRIPTS) == {"hopper", "breakout", "evaluation", "minari"}
    for name, script in SCRIPTS.items():
        changes = [line[0] for line in script.splitlines() if line[:1] in ("+", "-")]
        assert sorted(changes) == ["+", "-"], name


@pytest.mark.parametrize("form", [old, new])
def test_hopper(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d3rlpy = pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    pytest.importorskip("mujoco", reason="the MuJoCo extra is not installed")
    dataset = collect("random", "Hopper-v5", n_steps=300, seed=0).to_d3rlpy()
    env: Any = gymnasium.wrappers.TimeLimit(gymnasium.make("Hopper-v5"), 3)
    monkeypatch.setattr(d3rlpy.datasets, "get_d4rl", lambda name: (dataset, env))
    trained = "DecisionTransformer" if form is old else "DecisionMamba"
    check_d3rlpys_files(run(form(SCRIPTS["hopper"]))["dt"], trained, tmp_path / "d3rlpy_logs")


@pytest.mark.parametrize("form", [old, new])
def test_breakout(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    d3rlpy = pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    pytest.importorskip("ale_py", reason="the Atari extra is not installed")
    played = load_trajectories(shared_data / "dqn-replay" / "Breakout" / "1", n_steps=200)
    env: Any = gymnasium.make("sb3_dmamba/Atari-v0", game="Breakout")
    given: Any = played.to_d3rlpy(), gymnasium.wrappers.TimeLimit(env, 3)
    monkeypatch.setattr(d3rlpy.datasets, "get_atari_transitions", lambda *_, **__: given)
    trained = "DiscreteDecisionTransformer" if form is old else "DiscreteDecisionMamba"
    check_d3rlpys_files(run(form(SCRIPTS["breakout"]))["dt"], trained, tmp_path / "d3rlpy_logs")


@pytest.mark.parametrize(("form", "algorithm"), [(old, PPO), (new, DecisionMamba)])
def test_evaluation(form: Any, algorithm: Any) -> None:
    if algorithm is PPO:
        PPO("MlpPolicy", make_vec_env("CartPole-v1"), device="cpu").save("cartpole")
    else:
        recorded = collect("random", "CartPole-v1", n_steps=200, seed=0)
        DecisionMamba("CartPole-v1", **SMALL).fit(recorded).save("cartpole")
    variables = run(form(SCRIPTS["evaluation"]))
    assert type(variables["model"]) is algorithm
    assert variables["model"].get_env().num_envs == 4
    assert variables["mean"] > 5


class _BehavioralCloning(PPO):
    """A user's class: a policy that is fitted to a Minari dataset."""

    def __init__(self, env: Any, **_: Any) -> None:
        super().__init__("MlpPolicy", env, device="cpu")

    def fit(self, dataset: Any) -> None:
        assert dataset.total_episodes > 0


@pytest.mark.parametrize(("form", "n_updates"), [(old, 0), (new, 3)])
def test_minari(
    form: Any, n_updates: int, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    module = types.ModuleType("behavioral_cloning")
    module.BehavioralCloning = _BehavioralCloning  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "behavioral_cloning", module)
    assert minari.load_dataset("cartpole/mixed-v0").total_episodes == 303
    variables = run(form(SCRIPTS["minari"]))
    assert variables["model"].num_timesteps == n_updates
    assert np.shape(variables["returns"]) == (5,)


@pytest.mark.parametrize("name", sorted(D3RLPY_BLOCKS))
def test_blocks_of_the_d3rlpy_page(name: str) -> None:
    pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
    assert "```python\n" not in D3RLPY_PAGE  # every block has a name
    run(D3RLPY_BLOCKS[name])
