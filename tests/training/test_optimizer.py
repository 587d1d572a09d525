from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.training.updater import make_optimizer, split_by_decay

FLAT = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
MOVES = spaces.Box(-1.0, 1.0, (2,))
CHOICES = spaces.Discrete(5)
CASES: list[tuple[Any, Any, dict[str, Any]]] = [
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


@pytest.mark.parametrize(("observations", "actions", "settings"), CASES)
def test_every_parameter_is_in_exactly_one_group(
    observations: Any, actions: Any, settings: dict[str, Any]
) -> None:
    policy = make_policy(observations, actions, settings)
    decayed, free = split_by_decay(policy)
    ids = [id(parameter) for parameter in [*decayed, *free]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in policy.parameters()}


@pytest.mark.parametrize(("observations", "actions", "settings"), CASES)
def test_only_weights_of_products_decay(
    observations: Any, actions: Any, settings: dict[str, Any]
) -> None:
    policy = make_policy(observations, actions, settings)
    decayed = {id(parameter) for parameter in split_by_decay(policy)[0]}
    by_name = dict(policy.named_parameters())
    for name, parameter in by_name.items():
        parts = name.split(".")
        never = parts[-1] in ("bias", "A_log", "D", "position_table")
        never |= (
            "norm" in parts
            or parts[-1] == "filters"
            or "conv1d" in parts
            or "timestep_table" in parts
        )
        never |= parameter.dim() < 2
        never |= isinstance(policy.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        assert (id(parameter) in decayed) == (not never), name
    expected = {"attention": "mixer", "convolution": "channel_mixer"}.get(
        settings.get("mixer", ""), "in_proj"
    )
    assert any(expected in name for name, each in by_name.items() if id(each) in decayed)


def test_mamba_by_name() -> None:
    policy = make_policy(FLAT, CHOICES, {"n_layers": 1, "channel_mixing": False})
    decayed = {id(parameter) for parameter in split_by_decay(policy)[0]}
    names = [name for name, each in policy.named_parameters() if id(each) in decayed]
    assert sorted(names) == [
        "model.blocks.0.mixer.dt_proj.weight",
        "model.blocks.0.mixer.in_proj.weight",
        "model.blocks.0.mixer.out_proj.weight",
        "model.blocks.0.mixer.x_proj.weight",
        "model.embedding.observation_encoder.projection.weight",
        "model.embedding.return_encoder.weight",
        "model.head.projection.weight",
    ]


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
