"""An episode in pieces, each going on from the states after the one before, against the whole."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.networks import SequenceModel
from tests.models import MIXERS
from tests.toys import random_trajectories

T = 24  # steps of every episode
VARIANTS: list[dict[str, Any]] = [
    *({"mixer": mixer} for mixer in MIXERS),
    {"channel_mixing": False, "time_encoding": "none", "n_layers": 1},
    {"mixer": "convolution", "filter_length": 1},
    {"d_conv": 1, "backend": "reference"},
]
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def make_model(variant: dict[str, Any], n_actions: int | None = None) -> SequenceModel:
    data = random_trajectories(n_actions=n_actions)
    config = DecisionMambaConfig(hidden_size=16, n_layers=2, d_state=4, dropout=0.0, n_heads=2)
    config = config.replace(**{"context_length": T, **variant})  # attention forgets nothing
    torch.manual_seed(0)
    return SequenceModel(data.observation_space, data.action_space, config, None)


def whole_episodes(n_actions: int | None = None) -> WindowBatch:
    data = random_trajectories((T, T, T), n_actions=n_actions)
    return next(WindowSampler(data, T, 3).iterate_all())


def cut(batch: WindowBatch, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    observations, actions, returns_to_go, timesteps = (x[:, first:last] for x in batch.inputs())
    return observations, actions, returns_to_go, timesteps


def take_row(batch: WindowBatch, row: int) -> WindowBatch:
    return batch._map(lambda part: part[row : row + 1])


def run_in_pieces(
    model: SequenceModel, batch: WindowBatch, cuts: tuple[int, ...], detach: bool = False
) -> Tensor:
    layers = model.initial_layers(len(batch))
    predictions = []
    for first, last in itertools.pairwise((0, *cuts, T)):
        piece, layers = model.resume(*cut(batch, first, last), layers)
        predictions.append(piece)
        if detach:
            layers = [{name: rows.detach() for name, rows in layer.items()} for layer in layers]
    return torch.cat(predictions, dim=1)


def gradients(model: SequenceModel, predictions: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1.0, 2.0, predictions.numel()).view_as(predictions)
    (predictions * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cuts", [(8, 16), (1, 2, 23), (5,)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_pieces_are_the_whole_and_so_are_gradients_that_are_not_cut(
    variant: dict[str, Any], cuts: tuple[int, ...]
) -> None:
    model, batch = make_model(variant), whole_episodes()
    whole, pieces = model(*batch.inputs()), run_in_pieces(model, batch, cuts)
    torch.testing.assert_close(pieces, whole, **TOLERANCE)
    expected, found = gradients(model, whole), gradients(model, pieces)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("mixer", MIXERS)
def test_cutting_the_gradient_changes_nothing_but_the_gradient(mixer: str) -> None:
    model, batch = make_model({"mixer": mixer}), whole_episodes()
    whole = run_in_pieces(model, batch, (8, 16))
    truncated = run_in_pieces(model, batch, (8, 16), detach=True)
    assert torch.equal(truncated, whole)
    expected, found = gradients(model, whole), gradients(model, truncated)
    different = [n for n in expected if not torch.allclose(found[n], expected[n], rtol=1e-3)]
    assert any("mixer" in name for name in different)
    # The last layers after the recurrence see the same.
    assert not any(name.startswith(("head", "norm")) for name in different)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_steps_to_the_left_of_an_episode_leave_its_states_alone(variant: dict[str, Any]) -> None:
    """Rows with 0, 3 and 7 steps before them, side by side and each by itself."""
    model, batch = make_model(variant), whole_episodes()
    ages = (0, 3, 7)
    inputs = tuple(torch.zeros_like(part) for part in cut(batch, 0, 7))
    real = torch.zeros(3, 7, dtype=torch.bool)
    for row, age in enumerate(ages):
        if age:
            real[row, -age:] = True
            for left, part in zip(inputs, batch.inputs(), strict=True):
                left[row, -age:] = part[row, :age]
    inputs[0][~real] = 50.0  # what padding holds is nobody's business
    observations, actions, returns_to_go, timesteps = inputs
    begun = model.initial_layers(3)
    together, layers = model.resume(observations, actions, returns_to_go, timesteps, begun, real)
    assert together.isfinite().all()
    for row, age in enumerate(ages):
        alone = take_row(batch, row)
        begun = model.initial_layers(1)
        if age:
            expected, begun = model.resume(*cut(alone, 0, age), begun)
            torch.testing.assert_close(together[row, -age:], expected[0], **TOLERANCE)
        rest = cut(alone, age, T)
        mine = [{name: rows[row : row + 1] for name, rows in layer.items()} for layer in layers]
        found, _ = model.resume(*rest, mine)
        after, _ = model.resume(*rest, begun)
        torch.testing.assert_close(found, after, **TOLERANCE)


@pytest.mark.parametrize("mixer", MIXERS)
def test_resuming_is_what_acting_in_stream_does(mixer: str) -> None:
    """Attention, too, then remembers as many tokens as in acting."""
    model, batch = make_model({"mixer": mixer, "context_length": 5}, 3), whole_episodes(3)
    model.eval()
    with torch.no_grad():
        pieces = run_in_pieces(model, batch, (5, 10, 15, 20))
        layers = model.initial_layers(3)
        for step in range(T):
            now = [part[:, step] for part in batch.inputs()]
            last_actions = batch.actions[:, step - 1] if step else None
            tokens = model.embed_step(last_actions, now[2], now[0], now[3])
            prediction, layers = model.step(tokens, layers)
            torch.testing.assert_close(prediction, pieces[:, step], **TOLERANCE)


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_runs_in_bf16(mixer: str) -> None:
    model, batch = make_model({"mixer": mixer}), whole_episodes()
    whole = model(*batch.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        pieces = run_in_pieces(model, batch, (8, 16))
    assert not torch.equal(pieces, whole)
    torch.testing.assert_close(pieces, whole, rtol=0.1, atol=0.1)
    assert all(g.isfinite().all() for g in gradients(model, pieces).values())
