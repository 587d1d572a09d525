"""The names and signatures that users write against."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.evaluation.report import EvaluationReport
from sb3_dmamba.tasks import list_tasks

NAMES = [
    "DecisionMamba",
    "DecisionMambaConfig",
    "EvaluationReport",
    "ReturnToGo",
    "Trajectories",
    "__version__",
    "collect",
    "list_tasks",
    "load_trajectories",
]


def parameters(function: Callable[..., Any]) -> str:
    """Write a signature down: ``name``, ``name=default``, ``*`` before keyword-only ones."""
    parts: list[str] = []
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        stars = "**" if each.kind is each.VAR_KEYWORD else ""
        default = "" if each.default is each.empty else f"={each.default!r}"
        parts.append(f"{stars}{each.name}{default}")
    return ", ".join(parts)


def test_names() -> None:
    assert sorted(sb3_dmamba.__all__) == NAMES
    assert dir(sb3_dmamba) == NAMES
    for name in NAMES:
        assert getattr(sb3_dmamba, name) is not None
    with pytest.raises(AttributeError, match="DecisionMambo"):
        _ = sb3_dmamba.DecisionMambo
    major, minor, patch = sb3_dmamba.__version__.split(".")
    assert all(part.isdecimal() for part in (major, minor, patch))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            DecisionMamba,
            "task=None, env=None, *, config=None, seed=None, device='auto', verbose=0, "
            "tensorboard_log=None, policy_kwargs=None, recipe=None, stats_window_size=100, "
            "**overrides",
        ),
        (
            DecisionMamba.fit,
            "self, dataset=None, n_steps=None, *, callback=None, eval_env=None, eval_freq=0, "
            "n_eval_episodes=5, log_interval=100, tb_log_name='DecisionMamba', "
            "progress_bar=False, reset_num_timesteps=False",
        ),
        (
            DecisionMamba.learn,
            "self, total_timesteps, callback=None, log_interval=100, tb_log_name='DecisionMamba', "
            "reset_num_timesteps=True, progress_bar=False",
        ),
        (
            DecisionMamba.predict,
            "self, observation, state=None, episode_start=None, deterministic=True",
        ),
        (
            DecisionMamba.as_stateful_wrapper,
            "self, target_return, *, memory=None, deterministic=True, clip_rewards=None, "
            "delayed_rewards=None",
        ),
        (
            DecisionMamba.evaluate,
            "self, target_returns=None, n_episodes=10, *, env=None, memory=None, "
            "weights=None, deterministic=True, clip_rewards=None, delayed_rewards=None, "
            "max_episode_steps=None, seed=None, n_envs=None, n_workers=None",
        ),
        (DecisionMamba.save, "self, path, exclude=None, include=None"),
        (
            DecisionMamba.load,
            "path, env=None, device='auto', custom_objects=None, print_system_info=False, "
            "force_reset=True, *, verbose=None, tensorboard_log=None, seed=None, "
            "target_return=None, policy_kwargs=None, **overrides",
        ),
        (DecisionMamba.export, "self, path, *, memory=None, device='cpu', verify=True"),
        (DecisionMamba.get_env, "self"),
        (DecisionMamba.set_env, "self, env, force_reset=True"),
        (load_trajectories, "source, *, reward_mode='dense', top_fraction=None, **options"),
        (
            collect,
            "policy, env, n_steps, *, deterministic=False, seed=None, n_envs=1, env_id=None, "
            "env_kwargs=None, frame_stack=1, folder=None, overwrite=False, progress_bar=False, "
            "name=None",
        ),
        (list_tasks, ""),
        (EvaluationReport.to_pandas, "self"),
        (EvaluationReport.plot, "self, path=None, ax=None"),
    ],
)
def test_signatures(function: Callable[..., Any], expected: str) -> None:
    assert parameters(function) == expected


def test_scripts_for_stable_baselines3_pass_the_same_positions() -> None:
    for name in ("learn", "predict", "save", "load", "get_env", "set_env"):
        ours = list(inspect.signature(getattr(DecisionMamba, name)).parameters)
        theirs = list(inspect.signature(getattr(BaseAlgorithm, name)).parameters)
        shared = [each for each in theirs if each in ours]
        assert ours[: len(shared)] == theirs[: len(shared)] == shared, name


def test_the_wrapper_and_the_config() -> None:
    wrapper = list(inspect.signature(ReturnToGo.__new__).parameters)
    assert wrapper == ["cls", "env", "target_return", "clip_rewards", "delayed_rewards"]
    assert dataclasses.is_dataclass(DecisionMambaConfig)
    assert isinstance(DecisionMamba.logger, property)
