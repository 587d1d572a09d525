"""The model over whole windows, and over episodes in pieces."""

from __future__ import annotations

import itertools
import re
from operator import itemgetter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.networks import SequenceModel
from sb3_dmamba.networks.model import Modulation
from tests.models import MIXERS
from tests.toys import random_trajectories

SMALL = DecisionMambaConfig(hidden_size=16, n_layers=2, context_length=6, dropout=0.0, d_state=4)
VARIANTS: list[dict[str, Any]] = [
    {"conditioning": "sequence"},
    {"conditioning": "sequence", "channel_mixing": True},
    {"conditioning": "sequence", "mixer": "attention", "n_heads": 2},
    {
        "conditioning": "sequence",
        "time_encoding": "timestep",
        "mixer": "convolution",
        "filter_length": 4,
    },
    {"mixer": "convolution", "filter_length": 3, "time_encoding": "global"},
    {"embedding": "tanh", "time_encoding": "global"},
    {"init": "paper"},
    {"time_encoding": "none"},
    {"n_layers": 1, "normalize_observations": False},
    *({"conditioning": "decoupled", "mixer": mixer} for mixer in MIXERS),
    {"conditioning": "decoupled", "time_encoding": "timestep"},
    {"conditioning": "decoupled", "embedding": "tanh", "time_encoding": "global", "init": "paper"},
]


def make_network(
    data: Trajectories, config: DecisionMambaConfig, scatter: bool = True
) -> SequenceModel:
    """Build a network; modulations that start at zero are drawn at random, as if trained."""
    torch.manual_seed(0)
    model = SequenceModel(data.observation_space, data.action_space, config, None)
    for module in model.modules():
        if isinstance(module, Modulation) and scatter:
            torch.nn.init.normal_(module.projection.weight, std=0.3)
    return model


def make_model(
    config: DecisionMambaConfig, n_actions: int | None = None, image: bool = False
) -> tuple[SequenceModel, WindowSampler]:
    shape = (4, 36, 36) if image else (3,)
    data = random_trajectories(observation_shape=shape, n_actions=n_actions)
    return make_network(data, config), WindowSampler(data, config.context_length, 5, seed=0)


def predict(model: SequenceModel, sampler: WindowSampler, **changes: Tensor) -> Tensor:
    batch = sampler.sample(0)
    inputs = {
        name: changes.get(name, getattr(batch, name))
        for name in ("observations", "actions", "returns_to_go", "timesteps")
    }
    result: Tensor = model(**inputs)
    return result


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient(variant: dict[str, Any]) -> None:
    for n_actions in (None, 3):
        model, sampler = make_model(SMALL.replace(**variant), n_actions)
        predict(model, sampler).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_decoupled_starts_without_the_return_and_with_a_third_fewer_tokens() -> None:
    data = random_trajectories(observation_shape=(3,))
    model = make_network(data, SMALL.replace(time_encoding="none"), scatter=False)
    batch = WindowSampler(data, 6, 5, seed=0).sample(0)
    observations, actions, returns_to_go, timesteps = batch.inputs()
    assert model.embedding(*batch.inputs()).shape == (5, 2 * 6 - 1, 16)
    asked_otherwise = model(observations, actions, returns_to_go + 9.0, timesteps)
    torch.testing.assert_close(model(*batch.inputs()), asked_otherwise)
    # Without modulation it is the network without the first token of each step.
    tokens_only = SMALL.replace(conditioning="sequence", time_encoding="none")
    plain = SequenceModel(data.observation_space, data.action_space, tokens_only, None)
    names = {name for name in plain.state_dict() if "return_encoder" not in name}
    added = {"embedding.return_encoder", "modulation"}
    assert {n for n in model.state_dict() if not any(part in n for part in added)} == {
        n for n in names if not (n.startswith("norm.") or re.fullmatch(r"blocks\.\d\.norm\..*", n))
    }


def test_images_of_either_layout_are_the_same_images() -> None:
    first, sampler = make_model(SMALL, n_actions=2, image=True)
    last_data = random_trajectories(observation_shape=(36, 36, 4), n_actions=2)
    last = SequenceModel(last_data.observation_space, last_data.action_space, SMALL, None)
    last.load_state_dict(first.state_dict())
    batch = sampler.sample(0)
    assert batch.observations.dtype == torch.uint8
    moved = predict(last, sampler, observations=batch.observations.movedim(2, -1))
    torch.testing.assert_close(moved, predict(first, sampler))


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
@pytest.mark.parametrize("mixer", MIXERS)
@given(step=st.integers(0, 5), field=st.sampled_from(["observations", "actions", "returns_to_go"]))
@settings(max_examples=25, deadline=None)
def test_a_later_token_never_changes_an_earlier_prediction(
    mixer: str, conditioning: str, step: int, field: str
) -> None:
    model, sampler = make_model(SMALL.replace(mixer=mixer, conditioning=conditioning))
    before = predict(model, sampler)
    changed = getattr(sampler.sample(0), field).clone()
    changed[:, step:] += 3.0
    after = predict(model, sampler, **{field: changed})
    # A step's own action comes after its prediction; its return and observation come before.
    untouched = step + 1 if field == "actions" else step
    torch.testing.assert_close(after[:, :untouched], before[:, :untouched], rtol=0, atol=0)
    if untouched < before.shape[1]:
        assert (after[:, untouched:] != before[:, untouched:]).any()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reading_fewer_tokens_reads_the_same(variant: dict[str, Any]) -> None:
    """The last block computes the state tokens alone; all tokens must give the same there."""
    model, sampler = make_model(SMALL.replace(**variant))
    batch = sampler.sample(0)
    tokens = model.embedding(
        batch.observations, batch.actions, batch.returns_to_go, batch.timesteps
    )
    condition = model.embedding.condition(batch.returns_to_go, batch.timesteps)
    for block in model.layers:
        tokens = block(tokens, None, condition)
    expected = model.predict(tokens[:, model.state_tokens], condition)
    torch.testing.assert_close(predict(model, sampler), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("time_encoding", ["timestep", "condition"])
def test_time_beyond_the_table_shares_its_last_entry(time_encoding: str) -> None:
    model, sampler = make_model(SMALL.replace(max_timestep=4, time_encoding=time_encoding))
    far = torch.full((5, 6), 10_000)
    last = torch.full((5, 6), 3)
    assert torch.equal(
        predict(model, sampler, timesteps=far), predict(model, sampler, timesteps=last)
    )


T = 24  # steps of every episode
RESUMED: list[dict[str, Any]] = [
    *({"mixer": mixer} for mixer in MIXERS),
    *({"mixer": mixer, "conditioning": "decoupled"} for mixer in MIXERS),
    {"channel_mixing": False, "time_encoding": "none", "n_layers": 1},
    {"mixer": "convolution", "filter_length": 1},
    {"d_conv": 1, "backend": "reference"},
]
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def make_resumable(variant: dict[str, Any], n_actions: int | None = None) -> SequenceModel:
    data = random_trajectories(n_actions=n_actions)
    config = DecisionMambaConfig(hidden_size=16, n_layers=2, d_state=4, dropout=0.0, n_heads=2)
    config = config.replace(**{"context_length": T, **variant})  # attention forgets nothing
    return make_network(data, config)


def whole_episodes(n_actions: int | None = None) -> WindowBatch:
    data = random_trajectories((T, T, T), n_actions=n_actions)
    return next(WindowSampler(data, T, 3).iterate_all())


def cut(batch: WindowBatch, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    observations, actions, returns_to_go, timesteps = (x[:, first:last] for x in batch.inputs())
    return observations, actions, returns_to_go, timesteps


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


@pytest.mark.parametrize("variant", RESUMED, ids=str)
def test_pieces_are_the_whole_and_so_are_gradients_that_are_not_cut(
    variant: dict[str, Any],
) -> None:
    model, batch = make_resumable(variant), whole_episodes()
    whole = model(*batch.inputs())
    expected = gradients(model, whole)
    for cuts in ((8, 16), (1, 2, 23)):
        pieces = run_in_pieces(model, batch, cuts)
        torch.testing.assert_close(pieces, whole, **TOLERANCE)
        found = gradients(model, pieces)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("variant", RESUMED, ids=str)
def test_steps_to_the_left_of_an_episode_leave_its_states_alone(variant: dict[str, Any]) -> None:
    """Rows with 0, 3 and 7 steps before them, side by side and each by itself."""
    model, batch = make_resumable(variant), whole_episodes()
    ages = (0, 3, 7)
    inputs = tuple(torch.zeros_like(part) for part in cut(batch, 0, 7))
    real = torch.zeros(3, 7, dtype=torch.bool)
    for row, age in enumerate(ages):
        if age:
            real[row, -age:] = True
            for left, part in zip(inputs, batch.inputs(), strict=True):
                left[row, -age:] = part[row, :age]
    inputs[0][~real] = 50.0  # padding must have no influence
    observations, actions, returns_to_go, timesteps = inputs
    begun = model.initial_layers(3)
    together, layers = model.resume(observations, actions, returns_to_go, timesteps, begun, real)
    assert together.isfinite().all()
    for row, age in enumerate(ages):
        alone = batch._map(itemgetter(slice(row, row + 1)))
        begun = model.initial_layers(1)
        if age:
            expected, begun = model.resume(*cut(alone, 0, age), begun)
            torch.testing.assert_close(together[row, -age:], expected[0], **TOLERANCE)
        rest = cut(alone, age, T)
        mine = [{name: rows[row : row + 1] for name, rows in layer.items()} for layer in layers]
        found, _ = model.resume(*rest, mine)
        after, _ = model.resume(*rest, begun)
        torch.testing.assert_close(found, after, **TOLERANCE)


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_resuming_is_what_acting_in_stream_does(mixer: str, conditioning: str) -> None:
    """Attention, too, then remembers as many tokens as in acting."""
    variant = {"mixer": mixer, "conditioning": conditioning, "context_length": 5}
    model, batch = make_resumable(variant, 3), whole_episodes(3)
    model.eval()
    with torch.no_grad():
        pieces = run_in_pieces(model, batch, (5, 10, 15, 20))
        layers = model.initial_layers(3)
        for step in range(T):
            now = [part[:, step] for part in batch.inputs()]
            before = [part[:, step - 1] if step else None for part in batch.inputs()]
            embedded = model.embed_step(before[1], now[2], now[0], now[3], before[2])
            prediction, layers = model.step(*embedded, layers)
            torch.testing.assert_close(prediction, pieces[:, step], **TOLERANCE)
