"""The actor for callers who pass rewards themselves, driven by hand and by d3rlpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.evaluation import StatefulActor
from tests.evaluation.toys import SeededEnv, ToyPolicy, expected_episode
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories


def play(actor: StatefulActor, seed: int, first_reward: float = 0.0) -> float:
    env = SeededEnv()
    actor.reset()
    shown, _ = env.reset(seed=seed)
    reward, total, over = first_reward, 0.0, False
    while not over:
        shown, reward, terminated, truncated, _ = env.step(actor.predict(shown, reward))
        total += reward
        over = terminated or truncated
    return total


@pytest.mark.parametrize("first_reward", [0.0, 123.0])
def test_episodes_are_those_worked_out_by_hand(first_reward: float) -> None:
    policy = ToyPolicy(SeededEnv())
    actor = StatefulActor(policy, 12.25)
    seen: list[float] = []
    for seed in (3, 6):  # the second must know nothing of the first
        total, to_go = expected_episode(12.25, seed)
        assert play(actor, seed, first_reward) == total
        seen += to_go
        assert actor.return_to_go == to_go[-1]
    assert [float(returns[0]) for _, returns in policy.batches] == seen


def test_discrete_actions_are_ints() -> None:
    actor = StatefulActor(ToyPolicy(SeededEnv(actions="discrete")), 5.0)
    assert type(actor.predict(np.array([3.0, 0.0]), 0.0)) is int


def test_the_memory_is_the_policys_or_the_one_asked_for() -> None:
    policy = ToyPolicy(SeededEnv(), memory="stream")
    StatefulActor(policy, 1.0)
    StatefulActor(policy, 1.0, memory="window")
    assert policy.memories_asked == ["stream", "window"]


def test_wrong_observations_and_rewards() -> None:
    actor = StatefulActor(ToyPolicy(SeededEnv()), 1.0)
    whole: Any = SeededEnv().reset()
    for observation in (np.zeros((1, 2)), whole):
        with pytest.raises(SpaceError) as refused:
            actor.predict(observation, 0.0)
        assert (refused.value.setting, refused.value.choices) == ("observation", ((2,),))
    actor.predict(np.array([3.0, 0.0]), float("nan"))  # the first reward is not looked at
    with pytest.raises(ConditioningError) as caught:
        actor.predict(np.array([3.0, 1.0]), float("nan"))
    assert caught.value.setting == "reward"
    assert actor.return_to_go == 1.0  # the episode can go on
    actor.predict(np.array([3.0, 1.0]), 0.5)
    assert actor.return_to_go == 0.5


def test_a_refused_observation_costs_no_reward() -> None:
    model = tiny_model(ChoiceEnv).fit(choice_trajectories(20), 1)
    actor = model.as_stateful_wrapper(100.0)
    actor.predict(np.zeros(2, np.float32), 0.0)
    with pytest.raises(SpaceError, match="nan at"):
        actor.predict(np.array([0.0, np.nan], np.float32), 10.0)
    actor.predict(np.zeros(2, np.float32), 10.0)
    assert actor.return_to_go == 90.0
