"""What ``predict`` remembers: evaluators pickle, move, drop, reorder and join it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.errors import ConditioningError
from sb3_dmamba.networks import ActingState
from tests.evaluation.toys import episode_length
from tests.sb3.setting import TARGET, by_hand, fitted, make_env

MEMORIES = pytest.mark.parametrize("memory", ["window", "stream"])


def through_torch(state: ActingState) -> ActingState:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


WAYS: dict[str, Any] = {
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "copy": copy.deepcopy,
    "torch": through_torch,
    "move": lambda state: state.to("cpu"),
    "split": lambda state: ActingState.concatenate([state.take([i]) for i in range(len(state))]),
    "shuffle": lambda state: state.take(np.arange(len(state))[::-1]).take(
        np.arange(len(state))[::-1]
    ),
}


@MEMORIES
@pytest.mark.parametrize("way", WAYS)
def test_an_evaluator_that_drops_what_is_over(way: str, memory: Any) -> None:
    """Episodes of different lengths in one batch, which shrinks and is reordered at every step."""
    model = fitted(memory=memory, mixer="mamba" if way in ("pickle", "split") else "attention")
    seeds = [4, 5, 6, 7]
    envs: Any = {seed: make_env() for seed in seeds}
    shown = {seed: env.reset(seed=seed)[0] for seed, env in envs.items()}
    to_go = dict.fromkeys(seeds, TARGET)
    totals = dict.fromkeys(seeds, 0.0)
    state, live = None, list(seeds)
    while live:
        observation = {
            "observation": np.stack([shown[seed] for seed in live]),
            "return_to_go": np.array([[to_go[seed]] for seed in live], np.float32),
        }
        actions, state = model.predict(observation, state)
        state = WAYS[way](state)
        over = []
        for action, seed in zip(actions, live, strict=True):
            shown[seed], reward, terminated, truncated, _ = envs[seed].step(action)
            totals[seed] += reward
            to_go[seed] -= reward
            if terminated or truncated:
                over.append(seed)
        rows = [row for row, seed in enumerate(live) if seed not in over][::-1]
        live, state = [live[row] for row in rows], state.take(rows)
    expected = [total for total, _ in by_hand(model, seeds)]
    np.testing.assert_allclose([totals[seed] for seed in seeds], expected, rtol=1e-5)
    assert {episode_length(seed) for seed in seeds} == {2, 3, 4, 5}


def test_states_that_cannot_be_joined() -> None:
    window = fitted().policy.initial_state(1, "window")
    stream = fitted().policy.initial_state(1, "stream")
    other = fitted(hidden_size=32).policy.initial_state(1, "stream")
    for states in ([window, stream], [stream, other], []):
        with pytest.raises(ConditioningError):
            ActingState.concatenate(states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@MEMORIES
def test_a_state_that_was_moved_is_moved_back(memory: Any) -> None:
    model = copy.deepcopy(fitted(memory=memory).policy).to("cuda")
    seen = {"observation": np.ones((1, 2), np.float32), "return_to_go": np.array([TARGET])}
    _, state = model.predict(seen)
    expected, _ = model.predict(seen, state)
    found, _ = model.predict(seen, state.to("cpu"))
    np.testing.assert_array_equal(found, expected)
