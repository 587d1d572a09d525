"""From d3rlpy's windows to ours: order, padding, times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sb3_dmamba.d3rlpy.network import find_real_steps, to_windows
from tests.d3rlpy.cases import OURS, draw_input, make_algo


def d3rlpy_batch(masks: list[list[int]]) -> Any:
    real = torch.tensor(masks, dtype=torch.float32)
    steps = torch.arange(1.0, 1 + real.numel()).view(real.shape)
    return SimpleNamespace(
        observations=torch.stack([steps, -steps], dim=2),
        actions=steps.unsqueeze(2),
        returns_to_go=steps.unsqueeze(2),
        timesteps=(real.cumsum(dim=1) * real).long(),
        masks=real,
    )


def test_padding_goes_to_the_right() -> None:
    batch = d3rlpy_batch([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    windows = to_windows(batch, is_discrete=False)
    assert windows.padding_mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert windows.returns_to_go[0, :2].tolist() == [3.0, 4.0]
    assert windows.returns_to_go[1].tolist() == [5.0, 6.0, 7.0, 8.0]
    assert windows.returns_to_go[2, 0] == 12.0
    assert windows.timesteps[0].tolist() == [0, 1, 0, 0]
    assert windows.timesteps[1].tolist() == [0, 1, 2, 3]
    assert windows.observations[0, :2].tolist() == [[3.0, -3.0], [4.0, -4.0]]


@given(masks=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_real_steps_keep_their_order_wherever_padding_is(masks: list[list[int]]) -> None:
    batch = d3rlpy_batch(masks)
    windows = to_windows(batch, is_discrete=False)
    for row, mask in enumerate(batch.masks.bool()):
        n_real = int(mask.sum())
        kept = batch.returns_to_go[row, mask, 0]
        assert torch.equal(windows.returns_to_go[row, :n_real], kept)
        assert windows.padding_mask[row].tolist() == [True] * n_real + [False] * (5 - n_real)
        assert sorted(windows.returns_to_go[row].tolist()) == sorted(
            batch.returns_to_go[row].flatten().tolist()
        )


def test_without_padding_nothing_is_copied() -> None:
    batch = d3rlpy_batch([[1, 1, 1]])
    assert (
        to_windows(batch, is_discrete=False, skip_if_full=True).observations is batch.observations
    )
    moved = to_windows(batch, is_discrete=False)
    assert torch.equal(moved.observations, batch.observations)


def test_discrete_actions_and_tuples() -> None:
    batch = d3rlpy_batch([[0, 1, 1]])
    batch.observations = [batch.observations, torch.ones(1, 3, 2, 2)]
    windows = to_windows(batch, is_discrete=True)
    assert windows.actions.dtype == torch.int64
    assert windows.actions.tolist() == [[2, 3, 1]]
    assert windows.observations.shape == (1, 3, 6)
    assert windows.observations[0, 0].tolist() == [2.0, -2.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("masks", "timesteps", "expected"),
    [
        ([0, 1, 1], [0, 1, 2], [0, 1, 1]),
        ([0, 0, 0], [0, 1, 2], [0, 1, 1]),  # as d3rlpy's exported policies call it
        ([1, 1, 1], [0, 1, 2], [1, 1, 1]),  # masks count where there are any
        ([0, 0, 0], [0, 0, 0], [0, 0, 1]),
    ],
)
def test_real_steps(masks: list[int], timesteps: list[int], expected: list[int]) -> None:
    found = find_real_steps(torch.tensor([masks], dtype=torch.float32), torch.tensor([timesteps]))
    assert found.tolist() == [expected]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", OURS)
def test_padding_changes_no_prediction(name: str) -> None:
    # The same weights with room for more steps pad more, and say the same.
    torch.manual_seed(0)
    short = make_algo(name, (9,), context_size=4, time_encoding="timestep")
    long = make_algo(name, (9,), context_size=11, time_encoding="timestep")
    long.impl.model.load_state_dict(short.impl.model.state_dict())
    for n_steps in (1, 3, 4):
        drawn = draw_input((9,), name.startswith("discrete"), n_steps)
        np.testing.assert_allclose(short.predict(drawn), long.predict(drawn), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_times_past_the_table_share_its_end(name: str) -> None:
    algo = make_algo(name, (9,), max_timestep=6, time_encoding="timestep")
    is_discrete = name.startswith("discrete")

    def predict(first: int) -> Any:
        return algo.predict(draw_input((9,), is_discrete, first=first))

    np.testing.assert_array_equal(predict(6), predict(1000))
    assert not np.allclose(predict(1), predict(6))


def test_nothing_in_padding_reaches_the_loss() -> None:
    algo = make_algo("mamba", (9,), embed_dropout=0.0, resid_dropout=0.0)
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    batch = d3rlpy_batch([[0, 0, 1, 1], [1, 1, 1, 1]])
    batch.observations, batch.actions = draw(2, 4, 9), draw(2, 4, 3).tanh()
    algo.impl.modules.set_train()
    expected = algo.impl.compute_grad(batch)["loss"]
    gradients = [p.grad.clone() for p in algo.impl.model.parameters()]
    for tensor in (batch.observations, batch.actions):
        tensor[0, :2] = 1e9
    found = algo.impl.compute_grad(batch)["loss"]
    assert torch.equal(found, expected)
    for parameter, gradient in zip(algo.impl.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
