"""Models of data that pays at episodes' ends: acting asks for the whole return until then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import DatasetInfo, Trajectories, load_trajectories
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.evaluation import StatefulActor
from tests.models import tiny_model
from tests.toys import CHOICE_LENGTH, ChoiceEnv, choice_trajectories

DATA = choice_trajectories(50)
DELAYED = load_trajectories(DATA, reward_mode="delayed")


def with_rewards(rewards: list[int], lengths: list[int]) -> Trajectories:
    n_steps = len(rewards)
    ends = np.cumsum(lengths)
    return load_trajectories(
        {
            "observations": np.zeros((n_steps, 2)),
            "actions": np.zeros(n_steps, dtype=int),
            "rewards": np.array(rewards),
            "terminals": np.isin(np.arange(1, n_steps + 1), ends),
        }
    )


def test_what_is_taken_for_delayed() -> None:
    assert DatasetInfo.of(DELAYED).delayed_rewards
    for rewards, lengths, expected in (
        ([0, 0, 5, 0, 2], [3, 2], True),
        ([0, 0, 5, 0, 0], [3, 2], True),  # an episode that earned nothing
        ([0, 0, 5, 1, 2], [3, 2], False),
        ([0, 0, 0, 0, 0], [3, 2], False),  # nothing says
        ([1, 2, 3], [1, 1, 1], False),
        ([-1, 0, -1], [1, 2], True),
    ):
        assert DatasetInfo.of(with_rewards(rewards, lengths)).delayed_rewards is expected


def test_every_wrapper_keeps_the_target() -> None:
    env = ReturnToGo(ChoiceEnv(), 7.0, delayed_rewards=True)
    assert env.delayed_rewards
    env.reset(seed=0)
    for _ in range(CHOICE_LENGTH):
        shown, reward, terminated, *_ = env.step(1)
        assert (reward, shown["return_to_go"].tolist()) == (1.0, [7.0])
    assert terminated
    for vector in (
        ReturnToGo(SyncVectorEnv([ChoiceEnv] * 2), 7.0, delayed_rewards=True),
        ReturnToGo(DummyVecEnv([ChoiceEnv] * 2), 7.0, delayed_rewards=True),
    ):
        vector.reset()
        result: Any = vector.step(np.ones(2, dtype=np.int64))
        assert result[0]["return_to_go"].tolist() == [[7.0], [7.0]]
        assert result[1].tolist() == [1.0, 1.0]


def test_a_stateful_actor_keeps_the_target() -> None:
    model = tiny_model().fit(DELAYED, 1)
    for delayed, expected in ((None, 7.0), (True, 7.0), (False, 5.0)):
        actor: StatefulActor = model.as_stateful_wrapper(7.0, delayed_rewards=delayed)
        for reward in (0.0, 1.0, 1.0):
            actor.predict(np.zeros(2, np.float32), reward)
        assert actor.return_to_go == expected


def test_everything_of_a_model_keeps_the_target(tmp_path: Path) -> None:
    model = tiny_model(ChoiceEnv).fit(DELAYED, 1)
    model.save(tmp_path / "model")
    for each in (model, DecisionMamba.load(tmp_path / "model", env=ChoiceEnv)):
        assert each.dataset.delayed_rewards
        venv: Any = each.get_env()
        target = venv.reset()["return_to_go"].item()
        for _ in range(3):
            shown, *_ = venv.step(np.array([1]))
            assert shown["return_to_go"].item() == target
        report = each.evaluate(5.0, 2, n_workers=0)
        assert report.delayed_rewards
        assert "until the end" in str(report)
        dense = each.evaluate(5.0, 2, n_workers=0, delayed_rewards=False)
        assert not dense.delayed_rewards
        assert "until the end" not in str(dense)
    plain = tiny_model(ChoiceEnv).fit(DATA, 1)
    assert not plain.evaluate(5.0, 1, n_workers=0).delayed_rewards
