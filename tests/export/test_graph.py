"""PolicyGraph, before it is exported: against ``predict``, for every kind of policy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from sb3_dmamba.config import Memory
from sb3_dmamba.export.graph import PolicyGraph
from tests.export.cases import (
    N_ENVS,
    all_kinds,
    as_step,
    assert_acts_like,
    draw_inputs,
    make_policy,
)

MEMORIES: tuple[Memory, ...] = get_args(Memory)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_step_is_what_predict_does(memory: Memory) -> None:
    for kind in all_kinds(memory):
        policy = make_policy(kind)
        assert_acts_like(policy, memory, as_step(PolicyGraph(policy, memory)))


@pytest.mark.parametrize("kind", ["mamba", "discrete"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_the_action_that_was_taken_may_be_another(memory: Memory, kind: str) -> None:
    policy = make_policy(kind)
    step = as_step(PolicyGraph(policy, memory))
    inputs = draw_inputs(policy)
    first = policy.initial_state(N_ENVS, memory)
    _, after = policy.act(*inputs[0], first)
    after.tensors["action"] = torch.full_like(after.tensors["action"], 7)
    expected, _ = policy.act(*inputs[1], after)
    _, state = step(*inputs[0], {n: t.numpy() for n, t in first.tensors.items()})
    unchanged, _ = step(*inputs[1], state)
    state["action"][:] = 7
    found, _ = step(*inputs[1], state)
    np.testing.assert_allclose(found["action"], expected, rtol=1e-4, atol=1e-5)
    if kind == "mamba":
        assert np.abs(found["action"] - unchanged["action"]).max() > 1e-3
