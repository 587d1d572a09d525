from __future__ import annotations

import dataclasses
import math
import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch, WindowSampler
from sb3_dmamba.errors import ModelFileError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.model import make_head
from sb3_dmamba.training.updater import (
    Updater,
    compute_learning_rate,
    compute_loss,
    compute_mean_loss,
    draw_seed,
    local_seed,
    make_optimizer,
    optimizer_from_tensors,
    optimizer_to_tensors,
    resolve_config,
    split_by_decay,
)
from tests.models import MIXERS, TINY, global_generators
from tests.toys import random_trajectories

CPU = torch.device("cpu")
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


NO, LOG3 = 0.0, math.log(3.0)  # what was predicted in padding is put in the place of NO
# Half ranges are 2 and 0.5. Steps: (1/2)^2 and 0; 1 and 4; 0 and (0.25/0.5)^2: each a mean of two.
CONTINUOUS = (
    spaces.Box(np.array([-2.0, 0.0], "f4"), np.array([2.0, 1.0], "f4")),
    [[[1.0, 0.5], [0.0, 0.0]], [[-1.0, 1.0], [NO, NO]]],
    [[[0.0, 0.5], [2.0, 1.0]], [[-1.0, 0.75], [0.0, 0.0]]],
    ((0.25 + 0.0) / 2 + (1.0 + 4.0) / 2 + (0.0 + 0.25) / 2) / 3,
)
# Probabilities of what was done: 1/2, 3/4, 1/4.
DISCRETE = (
    spaces.Discrete(2, start=5),
    [[[0.0, 0.0], [0.0, LOG3]], [[LOG3, 0.0], [NO, NO]]],
    [[5, 6], [6, 0]],
    (math.log(2.0) + math.log(4.0 / 3.0) + math.log(4.0)) / 3,
)


@pytest.mark.parametrize(("space", "predicted", "actions", "expected"), [CONTINUOUS, DISCRETE])
def test_loss_is_the_mean_over_real_steps_and_padding_reaches_no_gradient(
    space: Any, predicted: Any, actions: Any, expected: float
) -> None:
    mask, found = torch.tensor([[True, True], [True, False]]), []
    for padding in (0.0, *GARBAGE):
        predictions = torch.tensor(predicted)
        predictions[1, 1] = padding
        predictions.requires_grad_()
        loss = compute_mean_loss(make_head(space, 4), predictions, torch.tensor(actions), mask)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        loss.backward()
        assert predictions.grad is not None
        found.append(predictions.grad)
        assert torch.equal(found[-1], found[0])
    assert not found[0][1, 1].any()
    assert found[0][0].any()


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


def spoil_padding(batch: WindowBatch) -> WindowBatch:
    """Put other values where a batch has padding, of which there has to be some."""
    padded = ~batch.padding_mask
    assert padded.any()
    return dataclasses.replace(
        batch,
        observations=torch.where(padded[..., None], 7.0, batch.observations),
        actions=torch.where(padded[..., None], -3.0, batch.actions),
        returns_to_go=torch.where(padded, 99.0, batch.returns_to_go),
        timesteps=torch.where(padded, 4, batch.timesteps),
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_padding_holds_changes_neither_loss_nor_gradients(mixer: str) -> None:
    updater = make_updater(mixer)
    batch = WindowSampler(random_trajectories(), 6, 8, 0).sample(0)
    noisy = spoil_padding(batch)
    losses = [compute_loss(updater.policy.eval(), each).item() for each in (batch, noisy)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    clean, other = gradients(updater, batch), gradients(updater, noisy)
    for name in clean:
        torch.testing.assert_close(other[name], clean[name], rtol=1e-5, atol=1e-7)


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


DECAY: dict[str, Any] = {"warmup_updates": 20, "final_lr_fraction": 0.2}
ENDS: dict[str, Any] = {"warmup_updates": 10, "decay_updates": 50, "final_lr_fraction": 0.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # a tenth of the run warms up
        ({}, {0: 0.05, 1: 0.1, 8: 0.45, 9: 0.5, 10: 0.5, 99: 0.5, 1000: 0.5}),
        ({"warmup_updates": 4}, {0: 0.125, 2: 0.375, 3: 0.5, 4: 0.5, 99: 0.5}),
        ({"warmup_updates": 0}, {0: 0.5}),
        ({"lr_schedule": "linear", **DECAY}, {20: 0.5, 40: 0.4, 80: 0.2, 100: 0.1, 5000: 0.1}),
        (
            {"lr_schedule": "cosine", **DECAY},
            {20: 0.5, 40: 0.3 + 0.2 * math.sqrt(0.5), 60: 0.3, 100: 0.1, 5000: 0.1},
        ),
        ({"lr_schedule": "linear", **ENDS}, {10: 0.5, 20: 0.375, 30: 0.25, 50: 0.0, 60: 0.0}),
        (  # a decay inside the warm-up is over after it
            {"lr_schedule": "linear", "warmup_updates": 10, "decay_updates": 5},
            {9: 0.5, 11: 0.05},
        ),
    ],
    ids=str,
)
def test_the_learning_rate(settings: dict[str, Any], expected: dict[int, float]) -> None:
    config = DecisionMambaConfig.from_recipe("paper", learning_rate=0.5, **settings)
    found = {update: compute_learning_rate(config, update, 100) for update in expected}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


FLAT = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
MOVES = spaces.Box(-1.0, 1.0, (2,))
CHOICES = spaces.Discrete(5)
OPTIMIZED: list[tuple[Any, Any, dict[str, Any]]] = [
    (FLAT, MOVES, {}),
    (FLAT, CHOICES, {"channel_mixing": False, "embedding": "tanh"}),
    (IMAGE, CHOICES, {"time_encoding": "global"}),
    (FLAT, MOVES, {"mixer": "attention"}),
    (FLAT, MOVES, {"mixer": "convolution"}),
    (IMAGE, CHOICES, {"mixer": "attention", "time_encoding": "global"}),
]


def make_policy(observations: Any, actions: Any, settings: dict[str, Any]) -> DecisionMambaPolicy:
    config = DecisionMambaConfig(hidden_size=16, n_layers=2, context_length=4).replace(**settings)
    return DecisionMambaPolicy(observations, actions, config)


@pytest.mark.parametrize(("observations", "actions", "settings"), OPTIMIZED)
def test_only_weights_of_products_decay(
    observations: Any, actions: Any, settings: dict[str, Any]
) -> None:
    policy = make_policy(observations, actions, settings)
    decayed, free = ([id(each) for each in part] for part in split_by_decay(policy))
    assert sorted(decayed + free) == sorted(map(id, policy.parameters()))
    for name, parameter in policy.named_parameters():
        parts = name.split(".")
        never = parts[-1] in ("bias", "A_log", "D", "position_table", "filters")
        never |= bool({"norm", "conv1d", "timestep_table"} & set(parts)) or parameter.dim() < 2
        never |= isinstance(policy.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        assert (id(parameter) in decayed) == (not never), name


def test_settings_reach_the_optimiser_and_only_products_shrink() -> None:
    config = DecisionMambaConfig(
        hidden_size=16, n_layers=1, learning_rate=0.1, weight_decay=0.5, adam_betas=(0.8, 0.95)
    )
    policy = DecisionMambaPolicy(FLAT, MOVES, config)
    optimizer = make_optimizer(policy, config)
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.95)] * 2
    assert [group["lr"] for group in optimizer.param_groups] == [0.1] * 2
    before = [parameter.detach().clone() for parameter in [*decayed, *free]]
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for index, (old, new) in enumerate(zip(before, [*decayed, *free], strict=True)):
        factor = 1.0 - 0.1 * 0.5 if index < len(decayed) else 1.0
        torch.testing.assert_close(new.detach(), old * factor)


SMALL = DecisionMambaConfig(hidden_size=8, n_layers=1, d_state=2)


def make_stepped_optimizer(seed: int = 0) -> torch.optim.AdamW:
    policy = DecisionMambaPolicy(FLAT, CHOICES, SMALL)
    optimizer = make_optimizer(policy, SMALL)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return optimizer


def test_an_optimiser_state_that_does_not_fit() -> None:
    optimizer = make_stepped_optimizer()
    before = {k: v.clone() for k, v in optimizer_to_tensors(optimizer).items()}
    changes: list[dict[str, Any]] = [
        {"999.exp_avg": torch.zeros(1)},
        {"exp_avg": torch.zeros(1)},
        {"0.momentum": torch.zeros(1)},
        {"-1.exp_avg": torch.zeros(1)},
        {"\u00b2.exp_avg": torch.zeros(1)},
        {"0.exp_avg": torch.zeros(3)},
        {"0.step": torch.zeros(3)},
        {"0.step": torch.tensor(1)},
        {"0.exp_avg_sq": None},
        {"0.step": None},
    ]
    for change in changes:
        changed = {k: v for k, v in {**before, **change}.items() if v is not None}
        with pytest.raises(ModelFileError) as raised:
            optimizer_from_tensors(optimizer, changed)
        assert raised.value.setting == next(iter(change))
        after = optimizer_to_tensors(optimizer)
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_data_decides_what_is_left_open() -> None:
    data = random_trajectories((30, 50))
    open_config = DecisionMambaConfig()
    found = resolve_config(open_config, data)
    scale = np.std(data.returns_to_go, dtype=np.float64)
    assert found.return_scale == pytest.approx(scale, rel=1e-3)
    assert (found.max_timestep, found.n_updates) == (50, 2000)
    # 20 passes of 80 steps, 2 of them in an update
    often = resolve_config(open_config.replace(batch_size=1, context_length=1), data)
    assert often.n_updates == 2000
    many = random_trajectories((1000,) * 5)
    small = open_config.replace(batch_size=2, context_length=5)
    assert resolve_config(small, many).n_updates == 10_000
    for truncated, expected in (([True, True], "condition"), ([True, False], "none")):
        flags = np.array(truncated)
        cut = dataclasses.replace(data, truncated=flags, terminated=~flags)
        assert resolve_config(open_config, cut).time_encoding == expected
    tokens = open_config.replace(conditioning="sequence")
    assert resolve_config(tokens, data).resolved_time_encoding == "timestep"
    numbers: dict[str, Any] = {"return_scale": 3.0, "n_updates": 7, "max_timestep": 9}
    given = DecisionMambaConfig(**numbers, time_encoding="timestep", channel_mixing=False)
    assert resolve_config(given, data) == given
    constant = dataclasses.replace(data, rewards=np.zeros_like(data.rewards))
    assert resolve_config(open_config, constant).return_scale == 1.0
