"""The model over whole windows: causality, padding, gradients, and what it costs to read less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.networks import SequenceModel
from tests.models import MIXERS
from tests.toys import random_trajectories

SMALL = DecisionMambaConfig(hidden_size=16, n_layers=2, context_length=6, dropout=0.0, d_state=4)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"channel_mixing": False},
    {"mixer": "attention", "n_heads": 2},
    {"mixer": "convolution", "filter_length": 4},
    {"mixer": "convolution", "filter_length": 3, "time_encoding": "global"},
    {"embedding": "tanh", "time_encoding": "global"},
    {"init": "paper"},
    {"time_encoding": "none"},
    {"n_layers": 1, "normalize_observations": False},
]


def make_model(
    config: DecisionMambaConfig, n_actions: int | None = None, image: bool = False
) -> tuple[SequenceModel, WindowSampler]:
    shape = (4, 36, 36) if image else (3,)
    data = random_trajectories(observation_shape=shape, n_actions=n_actions)
    torch.manual_seed(0)
    model = SequenceModel(data.observation_space, data.action_space, config, None)
    return model, WindowSampler(data, config.context_length, 5, seed=0)


def predict(model: SequenceModel, sampler: WindowSampler, **changes: Tensor) -> Tensor:
    batch = sampler.sample(0)
    inputs = {
        name: changes.get(name, getattr(batch, name))
        for name in ("observations", "actions", "returns_to_go", "timesteps")
    }
    result: Tensor = model(**inputs)
    return result


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("n_actions", [None, 3])
def test_every_parameter_gets_a_gradient(variant: dict[str, Any], n_actions: int | None) -> None:
    model, sampler = make_model(SMALL.replace(**variant), n_actions)
    predict(model, sampler).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_images_of_either_layout_are_the_same_images() -> None:
    first, sampler = make_model(SMALL, n_actions=2, image=True)
    last_data = random_trajectories(observation_shape=(36, 36, 4), n_actions=2)
    last = SequenceModel(last_data.observation_space, last_data.action_space, SMALL, None)
    last.load_state_dict(first.state_dict())
    batch = sampler.sample(0)
    assert batch.observations.dtype == torch.uint8
    moved = predict(last, sampler, observations=batch.observations.movedim(2, -1))
    torch.testing.assert_close(moved, predict(first, sampler))


@pytest.mark.parametrize("mixer", MIXERS)
@given(step=st.integers(0, 5), field=st.sampled_from(["observations", "actions", "returns_to_go"]))
@settings(max_examples=25, deadline=None)
def test_a_later_token_never_changes_an_earlier_prediction(
    mixer: str, step: int, field: str
) -> None:
    model, sampler = make_model(SMALL.replace(mixer=mixer))
    before = predict(model, sampler)
    changed = getattr(sampler.sample(0), field).clone()
    changed[:, step:] += 3.0
    after = predict(model, sampler, **{field: changed})
    # A step's own action comes after its prediction; its return and observation come before.
    untouched = step + 1 if field == "actions" else step
    torch.testing.assert_close(after[:, :untouched], before[:, :untouched], rtol=0, atol=0)
    if untouched < before.shape[1]:
        assert (after[:, untouched:] != before[:, untouched:]).any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_padding_holds_changes_no_real_prediction(mixer: str) -> None:
    model, sampler = make_model(SMALL.replace(mixer=mixer))
    batch = sampler.sample(0)
    mask = batch.padding_mask
    assert not mask.all()
    noise = torch.where(mask.unsqueeze(-1), batch.observations, torch.tensor(1e3))
    after = predict(model, sampler, observations=noise)
    torch.testing.assert_close(after[mask], predict(model, sampler)[mask], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reading_fewer_tokens_reads_the_same(variant: dict[str, Any]) -> None:
    """The last block computes the state tokens alone; all tokens must give the same there."""
    model, sampler = make_model(SMALL.replace(**variant))
    batch = sampler.sample(0)
    tokens = model.embedding(
        batch.observations, batch.actions, batch.returns_to_go, batch.timesteps
    )
    for block in model.layers:
        tokens = block(tokens)
    expected = model.predict(tokens[:, 1::3])
    torch.testing.assert_close(predict(model, sampler), expected, rtol=1e-5, atol=1e-5)


def test_time_beyond_the_table_shares_its_last_entry() -> None:
    model, sampler = make_model(SMALL.replace(max_timestep=4))
    far = torch.full((5, 6), 10_000)
    last = torch.full((5, 6), 3)
    assert torch.equal(
        predict(model, sampler, timesteps=far), predict(model, sampler, timesteps=last)
    )


def test_observations_are_standardised_with_the_statistics() -> None:
    from sb3_dmamba.data import ObservationStatistics

    data = random_trajectories()
    statistics = ObservationStatistics(
        mean=np.array([1.0, 2.0, 3.0], np.float32), std=np.array([2.0, 4.0, 8.0], np.float32)
    )
    model = SequenceModel(data.observation_space, data.action_space, SMALL, statistics)
    plain = SequenceModel(data.observation_space, data.action_space, SMALL, None)
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith((".mean", ".std"))}
    plain.load_state_dict(weights, strict=False)
    sampler = WindowSampler(data, 6, 5, seed=0)
    raw = sampler.sample(0).observations
    scaled = (raw - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
    torch.testing.assert_close(
        predict(model, sampler), predict(plain, sampler, observations=scaled)
    )
