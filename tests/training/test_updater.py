from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.networks.model import make_head
from sb3_dmamba.training.updater import Updater, compute_loss, draw_seed, local_seed
from tests.models import MIXERS, TINY, global_generators
from tests.toys import random_trajectories

CPU = torch.device("cpu")
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


class FixedModel(nn.Module):
    """Predicts what it is told to, in front of a real head."""

    def __init__(self, space: spaces.Space[Any], predictions: Tensor) -> None:
        super().__init__()
        self.predictions = nn.Parameter(predictions)
        self.head = make_head(space, 4)

    def forward(self, *batch: Tensor) -> Tensor:
        return self.predictions


class FixedPolicy(nn.Module):
    def __init__(self, space: spaces.Space[Any], predictions: Tensor) -> None:
        super().__init__()
        self.model = FixedModel(space, predictions)


def make_batch(actions: Tensor, mask: list[list[bool]]) -> WindowBatch:
    n_windows, n_steps = len(mask), len(mask[0])
    return WindowBatch(
        observations=torch.zeros(n_windows, n_steps, 1),
        actions=actions,
        returns_to_go=torch.zeros(n_windows, n_steps),
        timesteps=torch.zeros(n_windows, n_steps, dtype=torch.int64),
        padding_mask=torch.tensor(mask),
    )


MASK = [[True, True], [True, False]]


def continuous_case(padding: float) -> tuple[Any, WindowBatch]:
    space = spaces.Box(np.array([-2.0, 0.0], "f4"), np.array([2.0, 1.0], "f4"))
    predictions = [[[1.0, 0.5], [0.0, 0.0]], [[-1.0, 1.0], [padding, padding]]]
    actions = [[[0.0, 0.5], [2.0, 1.0]], [[-1.0, 0.75], [0.0, 0.0]]]
    policy: Any = FixedPolicy(space, torch.tensor(predictions))
    return policy, make_batch(torch.tensor(actions), MASK)


def discrete_case(padding: float) -> tuple[Any, WindowBatch]:
    space = spaces.Discrete(2, start=5)
    log3 = math.log(3.0)
    predictions = [[[0.0, 0.0], [0.0, log3]], [[log3, 0.0], [padding, padding]]]
    policy: Any = FixedPolicy(space, torch.tensor(predictions))
    return policy, make_batch(torch.tensor([[5, 6], [6, 0]]), MASK)


# Half ranges are 2 and 0.5. Steps: (1/2)^2 and 0; 1 and 4; 0 and (0.25/0.5)^2: each a mean of two.
CONTINUOUS = ((0.25 + 0.0) / 2 + (1.0 + 4.0) / 2 + (0.0 + 0.25) / 2) / 3
# Probabilities of what was done: 1/2, 3/4, 1/4.
DISCRETE = (math.log(2.0) + math.log(4.0 / 3.0) + math.log(4.0)) / 3
CASES = [(continuous_case, CONTINUOUS), (discrete_case, DISCRETE)]


@pytest.mark.parametrize(("case", "expected"), CASES)
@pytest.mark.parametrize("padding", [0.0, *GARBAGE])
def test_loss_is_the_mean_over_real_steps(
    case: Callable[[float], tuple[Any, WindowBatch]], expected: float, padding: float
) -> None:
    policy, batch = case(padding)
    assert compute_loss(policy, batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", [continuous_case, discrete_case])
@pytest.mark.parametrize("padding", GARBAGE)
def test_padded_predictions_reach_no_gradient(
    case: Callable[[float], tuple[Any, WindowBatch]], padding: float
) -> None:
    clean, batch = case(0.0)
    compute_loss(clean, batch).backward()
    spoilt, batch = case(padding)
    compute_loss(spoilt, batch).backward()
    gradient = spoilt.model.predictions.grad
    assert torch.equal(gradient, clean.model.predictions.grad)
    assert not gradient[1, 1].any()
    assert gradient[0].any()


def make_updater(mixer: str = "mamba", seed: int = 0, **settings: Any) -> Updater:
    data = random_trajectories()
    config = DecisionMambaConfig().replace(**{**TINY, "mixer": mixer, **settings})
    return Updater.create(data.observation_space, data.action_space, config, None, seed, CPU)


def gradients(updater: Updater, batch: WindowBatch) -> dict[str, Tensor]:
    updater.policy.zero_grad()
    updater.policy.set_training_mode(False)
    compute_loss(updater.policy, batch).backward()
    named = updater.policy.named_parameters()
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_padding_holds_changes_neither_loss_nor_gradients(mixer: str) -> None:
    updater = make_updater(mixer)
    batch = WindowSampler(random_trajectories(), 6, 8, 0).sample(0)
    padded = ~batch.padding_mask
    assert padded.any()
    spoilt = dataclasses.replace(
        batch,
        observations=torch.where(padded[..., None], 7.0, batch.observations),
        actions=torch.where(padded[..., None], -3.0, batch.actions),
        returns_to_go=torch.where(padded, 99.0, batch.returns_to_go),
        timesteps=torch.where(padded, 4, batch.timesteps),
    )
    losses = [compute_loss(updater.policy.eval(), each).item() for each in (batch, spoilt)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    clean, other = gradients(updater, batch), gradients(updater, spoilt)
    for name in clean:
        torch.testing.assert_close(other[name], clean[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_gets_a_gradient(mixer: str) -> None:
    updater = make_updater(mixer)
    batch = WindowSampler(random_trajectories(), 6, 8, 0).sample(0)
    found = gradients(updater, batch)
    without = [
        name
        for name, _ in updater.policy.named_parameters()
        if name not in found or not found[name].any()
    ]
    assert without == []


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_update_is_a_function_of_weights_seed_and_number(mixer: str) -> None:
    sampler = WindowSampler(random_trajectories(), 5, 8, 0)
    first, second, other = make_updater(mixer), make_updater(mixer), make_updater(mixer)
    for n_done in (0, 1):
        first.update(sampler, n_done, n_done, 10)
    for n_done in (0, 1):
        torch.rand(3)
        second.update(sampler, n_done, n_done, 10)
    for n_done in (0, 2):  # another second batch, with other dropout
        other.update(sampler, n_done, n_done, 10)
    weights = [each.policy.state_dict() for each in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_dropout_changes_with_seed_and_number() -> None:
    data = random_trajectories()

    class OneBatch(WindowSampler):
        def sample(self, update: int) -> WindowBatch:
            return super().sample(0)

    sampler = OneBatch(data, 5, 8, 0)
    losses = []
    for seed, n_done in ((0, 0), (0, 1), (1, 0)):
        updater = make_updater(dropout=0.5)
        updater.seed = seed  # of dropout alone: the weights are alike
        losses.append(float(updater.update(sampler, n_done, 0, 10).loss))
    assert len(set(losses)) == 3
    updater = make_updater(dropout=0.5)
    assert float(updater.update(sampler, 0, 0, 10).loss) == losses[0]


def test_gradients_are_clipped_and_their_norm_reported() -> None:
    sampler = WindowSampler(random_trajectories(), 5, 8, 0)
    norms, steps = [], []
    for limit in (1e6, 1e-3):
        updater = make_updater(max_grad_norm=limit, dropout=0.0)
        norms.append(float(updater.update(sampler, 0, 0, 10).grad_norm))
        grads = [p.grad.flatten() for p in updater.policy.parameters() if p.grad is not None]
        steps.append(float(torch.cat(grads).norm()))
    assert norms[0] == norms[1] == pytest.approx(steps[0], rel=1e-5)
    assert steps[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_is_the_schedules() -> None:
    updater = make_updater(learning_rate=0.5, warmup_updates=4, lr_schedule="constant")
    sampler = WindowSampler(random_trajectories(), 5, 8, 0)
    assert updater.update(sampler, 7, 1, 10).learning_rate == 0.25
    assert {group["lr"] for group in updater.optimizer.param_groups} == {0.25}


@pytest.mark.parametrize("mixer", MIXERS)
def test_bf16_stays_near_fp32(mixer: str) -> None:
    curves = {}
    sampler = WindowSampler(random_trajectories((20,) * 5), 5, 16, 0)
    for precision in ("fp32", "bf16"):
        updater = make_updater(mixer, precision=precision, learning_rate=1e-2)
        losses = [float(updater.update(sampler, n, n, 40).loss) for n in range(40)]
        assert {p.dtype for p in updater.policy.parameters()} == {torch.float32}
        curves[precision] = np.array(losses)
    assert not np.array_equal(curves["fp32"], curves["bf16"])  # it does something
    np.testing.assert_allclose(curves["bf16"], curves["fp32"], rtol=0.1)
    assert curves["bf16"][-10:].mean() < curves["bf16"][:5].mean()


def test_local_seed_leaves_the_global_generators_alone() -> None:
    before = global_generators(), random.getstate()
    with local_seed(CPU, 5, 1):
        first = torch.rand(4)
    with suppress(KeyError), local_seed(CPU, 5, 1):
        second = torch.rand(4)
        raise KeyError
    with local_seed(CPU, 5, 2):
        third = torch.rand(4)
    assert draw_seed() != draw_seed()
    assert (global_generators(), random.getstate()) == before
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
