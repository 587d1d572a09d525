"""What a caller may do with actions and states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConditioningError, ConfigError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy

MEMORIES: tuple[Memory, ...] = ("window", "stream")
CONFIG = DecisionMambaConfig(hidden_size=16, n_layers=1, context_length=4, d_state=4)


def make_policy(action_space: spaces.Space[Any] | None = None) -> DecisionMambaPolicy:
    torch.manual_seed(0)
    space = spaces.Box(-2.0, 2.0, (3, 2), np.float32) if action_space is None else action_space
    policy = DecisionMambaPolicy(spaces.Box(-9.0, 9.0, (5,), np.float32), space, CONFIG)
    policy.set_training_mode(False)
    return policy


OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
RETURNS = np.array([5.0, 9.0], np.float32)


@pytest.mark.parametrize("memory", MEMORIES)
def test_changing_an_action_changes_no_memory(memory: Memory) -> None:
    policy = make_policy()
    action, state = policy.act(OBSERVATIONS[0], RETURNS, policy.initial_state(2, memory))
    taken = action.copy()
    action *= 3.0
    expected, _ = policy.act(OBSERVATIONS[1], RETURNS, state.with_action(taken))
    np.testing.assert_array_equal(policy.act(OBSERVATIONS[1], RETURNS, state)[0], expected)


@pytest.mark.parametrize("memory", MEMORIES)
def test_another_action_than_the_policy_chose_is_remembered(memory: Memory) -> None:
    policy = make_policy()
    chosen, state = policy.act(OBSERVATIONS[0], RETURNS, policy.initial_state(2, memory))
    other = -chosen
    changed = state.with_action(other)
    assert changed.tensors["action"].tolist() == other.reshape(2, 6).tolist()
    assert state.tensors["action"].tolist() == chosen.reshape(2, 6).tolist()
    first, _ = policy.act(OBSERVATIONS[1], RETURNS, state)
    second, _ = policy.act(OBSERVATIONS[1], RETURNS, changed)
    assert np.abs(first - second).max() > 1e-4


def test_discrete_actions_too() -> None:
    policy = make_policy(spaces.Discrete(4))
    _, state = policy.act(OBSERVATIONS[0], RETURNS, policy.initial_state(2))
    assert state.with_action([3, 1]).tensors["action"].tolist() == [3, 1]


def test_actions_of_another_number_or_size_are_refused() -> None:
    policy = make_policy()
    state = policy.initial_state(2)
    for wrong in (np.zeros((1, 3, 2)), np.zeros((2, 3)), np.zeros((3, 2, 2)), np.zeros(())):
        with pytest.raises(ConditioningError, match="2 environments"):
            state.with_action(wrong)


def test_no_memory_is_none_and_not_nothing() -> None:
    with pytest.raises(ConfigError, match="memory=''"):
        make_policy().initial_state(1, "")


def test_images_of_floats_are_no_bytes() -> None:
    space = spaces.Box(0.0, 1.0, (3, 84, 84), np.float32)
    with pytest.raises(SpaceError, match="of bytes"):
        DecisionMambaPolicy(space, spaces.Discrete(2), CONFIG.replace(encoder="nature_cnn"))
