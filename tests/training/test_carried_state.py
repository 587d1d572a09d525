"""Training with a state from before the window: carried along, or warmed up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ConsecutiveSampler, Trajectories, WindowBatch, WindowSampler
from sb3_dmamba.errors import ModelFileError
from sb3_dmamba.model_file import ModelFile
from sb3_dmamba.training.batches import make_sampler
from sb3_dmamba.training.carried_state import CarriedState, warm_up
from sb3_dmamba.training.updater import (
    Updater,
    compute_carried_loss,
    compute_loss,
    compute_mean_loss,
)
from tests.models import MIXERS, TINY, Recorder, differences, everything_in, tiny_model
from tests.toys import random_trajectories
from tests.training.test_updater import spoil_padding

CPU = torch.device("cpu")
DATA = random_trajectories((23, 7, 40, 31))
LONGEST = 40


def make_updater(data: Trajectories = DATA, **settings: Any) -> Updater:
    config = DecisionMambaConfig().replace(**{**TINY, "dropout": 0.0, **settings})
    spaces_ = data.observation_space, data.action_space
    updater = Updater.create(*spaces_, config, None, 0, CPU)
    updater.policy.set_training_mode(True)
    return updater


def predict_whole_episodes(updater: Updater) -> Tensor:
    """Predict every step of the data, (N, A), each episode as one window."""
    (batch,) = WindowSampler(DATA, LONGEST, len(DATA)).iterate_all()
    with torch.no_grad():
        predictions: Tensor = updater.policy.model(*batch.inputs())
    return predictions[batch.padding_mask]


def gradients(updater: Updater, loss: Tensor) -> dict[str, Tensor]:
    updater.policy.zero_grad()
    loss.backward()
    named = updater.policy.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_carried_windows_see_what_one_window_of_the_whole_episode_sees(
    mixer: str, conditioning: str
) -> None:
    updater = make_updater(mixer=mixer, conditioning=conditioning, carry_state=True)
    if mixer == "attention":  # which forgets what is longer ago, in acting too
        for block in updater.policy.model.layers:
            block.mixer.n_remembered = 3 * LONGEST
    model, carried = updater.policy.model, CarriedState()
    expected = predict_whole_episodes(updater)
    sampler = ConsecutiveSampler(DATA, 5, 8, seed=1)
    begun = torch.zeros(8, dtype=torch.bool)  # rows that have seen an episode's start
    n_checked = 0
    for update in range(sampler.n_windows + 9):
        batch = sampler.sample(update)
        begun |= batch.timesteps[:, 0] == 0
        predictions, layers = model.resume(*batch.inputs(), carried.layers_for(model, batch))
        loss = compute_carried_loss(updater.policy, batch, carried)
        rows = compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)
        assert loss.item() == rows.item()
        carried.keep(layers, batch)
        assert batch.first_steps is not None
        steps = batch.first_steps[:, None] + torch.arange(5)
        checked = batch.padding_mask & begun[:, None]
        n_checked += int(checked.sum())
        torch.testing.assert_close(
            predictions[checked], expected[steps[checked]], rtol=1e-4, atol=1e-5
        )
    assert begun.all()
    assert n_checked > DATA.n_steps


def test_the_gradient_ends_where_the_window_begins() -> None:
    updater = make_updater(carry_state=True)
    model, carried = updater.policy.model, CarriedState()
    sampler = ConsecutiveSampler(DATA, 5, 8, seed=1)
    for update in range(4):
        batch = sampler.sample(update)
        layers = carried.layers_for(model, batch)
        assert not any(rows.requires_grad for layer in layers for rows in layer.values())
        loss = compute_carried_loss(updater.policy, batch, carried)
    found = gradients(updater, loss)  # would raise if it reached an earlier, freed graph
    again, _ = model.resume(*batch.inputs(), layers)
    same = compute_mean_loss(model.head, again, batch.actions, batch.padding_mask)
    for name, gradient in gradients(updater, same).items():
        torch.testing.assert_close(found[name], gradient)


def test_other_rows_find_nothing_to_go_on_from() -> None:
    updater = make_updater(carry_state=True)
    model, carried = updater.policy.model, CarriedState()
    sampler = ConsecutiveSampler(DATA, 5, 8, seed=1)

    def has_state(batch: WindowBatch) -> Tensor:
        return carried.layers_for(model, batch)[0]["scan"].flatten(1).any(dim=1)

    batch = sampler.sample(0)
    assert not has_state(batch).any()
    compute_carried_loss(updater.policy, batch, carried)
    after = sampler.sample(1)
    assert torch.equal(has_state(after), after.timesteps[:, 0] > 0)
    assert has_state(after).any()
    assert not has_state(sampler.sample(2))[after.timesteps[:, 0] > 0].any()  # left one out
    assert not has_state(ConsecutiveSampler(DATA, 5, 6, seed=1).sample(1)).any()
    other = ConsecutiveSampler(random_trajectories((1, 60)), 5, 8, seed=2).sample(1)
    assert not has_state(other).any()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("settings", [{"carry_state": True}, {"burn_in": 7}], ids=str)
def test_interrupted_and_continued_is_uninterrupted(
    mixer: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    def make() -> DecisionMamba:
        return tiny_model(mixer=mixer, **settings)

    expected = everything_in(make().fit(DATA, 12))
    assert differences(expected, everything_in(make().fit(DATA, 12))) == []
    model = make().fit(DATA, 12, callback=Recorder(stop_at=5))
    model.save(tmp_path / "model")
    assert differences(expected, everything_in(model.fit())) == []
    loaded = DecisionMamba.load(tmp_path / "model").fit(DATA, 7)
    assert differences(expected, everything_in(loaded)) == []
    # The state is part of it: without one, or with none carried, the result is another.
    loaded = DecisionMamba.load(tmp_path / "model")
    assert loaded._updater is not None
    loaded._updater.carried = CarriedState()
    changed = differences(expected, everything_in(loaded.fit(DATA, 7)))
    assert bool(changed) == ("carry_state" in settings)


def test_a_file_whose_state_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny_model(carry_state=True).fit(DATA, 4)
    model.save(tmp_path / "model.zip")
    file = ModelFile.read(tmp_path / "model.zip")
    before = everything_in(model.fit(n_steps=1))
    damages: list[dict[str, Tensor | None]] = [
        {"carried.next_steps": torch.zeros(8, dtype=torch.int64)},
        {"carried.next_steps": torch.tensor(0)},
        {"carried.next_steps": torch.zeros(8, 2)},
        {"carried.next_steps": torch.zeros(7, 2, dtype=torch.int64)},
        {"carried.next_steps": None},
        {"carried.layer1.scan": None},
        {"carried.layer0.scan": torch.zeros(8, 32, 3)},
        {"carried.layer0.scan": torch.zeros(8, 32, 4, dtype=torch.int64)},
        {"carried.layer7.scan": torch.zeros(8, 32, 4)},
        {"0.step": torch.zeros(2)},
    ]
    for damage in damages:
        changed = {**file.tensors["optimizer"], **damage}
        tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
        bad = ModelFile(file.header, {**file.tensors, "optimizer": tensors})
        bad.write(tmp_path / "bad.zip")
        for read in (DecisionMamba.load, model.set_parameters):
            with pytest.raises(ModelFileError):
                read(tmp_path / "bad.zip")
        assert differences(before, everything_in(model)) == []


@pytest.mark.parametrize("mixer", MIXERS)
def test_burn_in_sees_what_a_longer_window_sees(mixer: str) -> None:
    """And counts, and learns from, no more than the window."""
    updater = make_updater(mixer=mixer, burn_in=LONGEST)
    if mixer == "attention":
        for block in updater.policy.model.layers:
            block.mixer.n_remembered = 3 * LONGEST
    model = updater.policy.model
    first_steps = np.array([0, 20, 25, 69, 35, 96])  # starts, ends and middles of episodes
    batch = make_sampler(DATA, updater.config, seed=0).window_at(first_steps)
    assert batch.before is not None
    assert (~batch.before.padding_mask).any()
    assert (~batch.padding_mask).any()
    predictions, _ = model.resume(*batch.inputs(), warm_up(model, batch.before))
    found = predictions[batch.padding_mask]
    steps = (torch.tensor(first_steps)[:, None] + torch.arange(5))[batch.padding_mask]
    expected = predict_whole_episodes(updater)[steps]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    mean = (found - torch.tensor(DATA.actions)[steps]).square().mean()
    assert compute_loss(updater.policy, batch).item() == pytest.approx(mean.item(), rel=1e-5)


def test_nothing_is_learnt_from_the_steps_before() -> None:
    updater = make_updater(burn_in=12)
    model, batch = updater.policy.model, make_sampler(DATA, updater.config, seed=0).sample(3)
    assert batch.before is not None
    layers = warm_up(model, batch.before)
    fixed = [{name: rows.detach() for name, rows in layer.items()} for layer in layers]
    predictions, _ = model.resume(*batch.inputs(), fixed)
    loss = compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)
    expected = gradients(updater, loss)
    found = gradients(updater, compute_loss(updater.policy, batch))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_pads_the_steps_before_reaches_nothing(mixer: str) -> None:
    updater = make_updater(mixer=mixer, burn_in=12)
    batch = make_sampler(DATA, updater.config, seed=0).sample(3)
    assert batch.before is not None
    results = []
    for each in (batch.before, spoil_padding(batch.before)):
        loss = compute_loss(updater.policy, dataclasses.replace(batch, before=each))
        results.append((loss.item(), gradients(updater, loss)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-5, atol=1e-7)


def test_without_history_burn_in_is_plain_training() -> None:
    updater = make_updater(burn_in=5)
    data = random_trajectories((1,) * 9)
    batch = make_sampler(data, updater.config, seed=0).sample(0)
    assert batch.before is None
    assert compute_loss(updater.policy, batch).isfinite()
