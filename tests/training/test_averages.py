"""Averaged weights: their values, which weights act, and what files and copies keep of both."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.errors import ConfigError, ModelFileError
from sb3_dmamba.evaluation import evaluate_targets
from sb3_dmamba.model_file import ModelFile
from sb3_dmamba.networks import DecisionMambaPolicy
from tests.models import Recorder, differences, everything_in, tiny_model
from tests.toys import ChoiceEnv, choice_trajectories

DATA = choice_trajectories(20)


def averaged(**settings: Any) -> DecisionMamba:
    return tiny_model(ChoiceEnv, **{"ema_decay": 0.3, **settings})


def weights_of(policy: DecisionMambaPolicy) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in policy.state_dict().items()}


class Weights(BaseCallback):
    """Notes the raw weights after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[dict[str, Tensor]] = []

    def _on_step(self) -> bool:
        assert isinstance(self.model, DecisionMamba)
        self.raw.append(weights_of(self.model.trained_policy))
        return True


def test_the_average_is_what_the_formula_says() -> None:
    initial = weights_of(tiny_model(ChoiceEnv, learning_rate=1e-30).fit(DATA, 1).policy)
    model = averaged().fit(DATA, 5, callback=(seen := Weights()))
    average = {name: each.double() for name, each in initial.items()}
    for decay, raw in zip((0.1, 2 / 11, 0.25, 0.3, 0.3), seen.raw, strict=True):
        average = {n: decay * each + (1 - decay) * raw[n].double() for n, each in average.items()}
    for name, tensor in model.policy.state_dict().items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-7)
    assert differences(weights_of(model.policy), seen.raw[-1]) != []


def test_averaging_changes_nothing_else(tmp_path: Path) -> None:
    plain, model = tiny_model(ChoiceEnv).fit(DATA, 5), averaged().fit(DATA, 5)
    assert plain.trained_policy is plain.policy
    assert differences(weights_of(plain.policy), weights_of(model.trained_policy)) == []
    for each in (plain, model):
        each.save(tmp_path / f"{each.config.ema_decay}")
    names = [set(ModelFile.read(tmp_path / name).tensors["optimizer"]) for name in ("0.0", "0.3")]
    assert not names[0] & {name for name in names[0] if name.startswith("trained.")}
    extra = {f"trained.{name}" for name, _ in model.policy.named_parameters()}
    assert names[1] - names[0] == extra
    assert set(plain.get_parameters()) == {"policy", "policy.optimizer"}


def test_interrupted_and_copied_runs_are_uninterrupted_ones(tmp_path: Path) -> None:
    for settings in ({}, {"carry_state": True}, {"sampling": "balanced"}):
        expected = everything_in(averaged(**settings).fit(DATA, 12))
        model = averaged(**settings).fit(DATA, 12, callback=Recorder(stop_at=5))
        model.save(tmp_path / "model")
        others = [DecisionMamba.load(tmp_path / "model"), copy.deepcopy(model)]
        others += [pickle.loads(pickle.dumps(model))]
        for other in (model, *others):
            other.fit(DATA)
            assert differences(expected, everything_in(other)) == []


def test_the_average_acts_everywhere(tmp_path: Path) -> None:
    def seen(model: DecisionMamba, policy: DecisionMambaPolicy) -> list[dict[str, Tensor]]:
        """Return the states of a policy and of a model after one step."""
        observation = {"observation": np.array([0.3, -0.2], "f4"), "return_to_go": np.array([5.0])}
        state = policy.initial_state(1)
        inputs = np.array([[0.3, -0.2]], "f4"), np.array([5.0]), state
        _, after = policy.act(*inputs)
        _, found = model.predict(observation)
        return [after.tensors, found.tensors]

    model = averaged(learning_rate=0.1, memory="stream").fit(DATA, 4)
    model.save(tmp_path / "light", exclude="optimizer")
    model.policy.save(tmp_path / "policy")
    for other in (
        DecisionMamba.load(tmp_path / "light").policy,
        DecisionMambaPolicy.load(tmp_path / "policy"),
    ):
        assert differences(weights_of(model.policy), weights_of(other)) == []
    for _ in range(2):  # what acting keeps of the weights follows updates
        expected, found = seen(model, copy.deepcopy(model.policy))
        assert differences(expected, found) == []
        raw, _ = seen(model, model.trained_policy)
        assert differences(raw, found) != []
        model.fit(n_steps=1)


def test_reports_say_which_weights_acted(tmp_path: Path) -> None:
    model = averaged(learning_rate=0.05).fit(DATA, 12)
    for weights, policy in (("ema", model.policy), ("last", model.trained_policy)):
        report = model.evaluate([2.0, 8.0], 5, weights=weights, deterministic=False)  # type: ignore[arg-type]
        expected = evaluate_targets(
            policy, ChoiceEnv, [2.0, 8.0], 5, seed=model.seed, deterministic=False
        )
        assert report.weights == weights
        assert [each.returns.tolist() for each in report.results] == [
            each.returns.tolist() for each in expected.results
        ]
    assert model.evaluate(2.0, 1).weights == "ema"
    model.save(tmp_path / "light", exclude="optimizer")
    light = DecisionMamba.load(tmp_path / "light", env=ChoiceEnv)
    for each, weights, choices in (
        (tiny_model(ChoiceEnv).fit(DATA, 1), "ema", ("last",)),
        (light, "last", ("ema",)),
        (model, "best", ("ema", "last")),
    ):
        with pytest.raises(ConfigError) as raised:
            each.evaluate(2.0, 1, weights=weights)  # type: ignore[arg-type]
        assert (raised.value.setting, raised.value.choices) == ("weights", choices)
    assert light.fit(DATA, 1).evaluate(2.0, 1, weights="last").weights == "last"


def test_files_that_lack_one_of_the_two(tmp_path: Path) -> None:
    tiny_model(ChoiceEnv).fit(DATA, 3).save(tmp_path / "plain")
    model = averaged().fit(DATA, 3)
    model.save(tmp_path / "both")
    model.save(tmp_path / "light", exclude="optimizer")
    raw, average = weights_of(model.trained_policy), weights_of(model.policy)
    begun = DecisionMamba.load(tmp_path / "plain", ema_decay=0.9)  # an average from now on
    for policy in (begun.policy, begun.trained_policy):
        assert differences(weights_of(policy), raw) == []
    light = DecisionMamba.load(tmp_path / "light")
    for policy in (light.policy, light.trained_policy):
        assert differences(weights_of(policy), average) == []
    ended = DecisionMamba.load(tmp_path / "both", ema_decay=0.0)
    assert ended.trained_policy is ended.policy
    assert differences(weights_of(ended.policy), raw) == []
    with pytest.raises(ConfigError) as raised:
        DecisionMamba.load(tmp_path / "light", ema_decay=0.0)
    assert raised.value.setting == "ema_decay"
    before, wider = everything_in(model), averaged(hidden_size=24).fit(DATA, 1)
    file = ModelFile.read(tmp_path / "both")
    theirs = wider.trained_policy.state_dict()["model.head.projection.weight"]
    for name in ("model.head.projection.weight", "other"):
        optimizer = {**file.tensors["optimizer"], f"trained.{name}": theirs}
        buffer = io.BytesIO()
        ModelFile(file.header, {**file.tensors, "optimizer": optimizer}).write(buffer)
        with pytest.raises(ModelFileError):
            model.set_parameters(io.BytesIO(buffer.getvalue()))
        assert differences(everything_in(model), before) == []


def test_parameters_of_both_move_between_models() -> None:
    model, other = averaged().fit(DATA, 4), averaged(seed=9).fit(DATA, 1)
    other.set_parameters(model.get_parameters())
    assert differences(everything_in(model), everything_in(other)) == ["counters"]
    given = tiny_model(ChoiceEnv).fit(DATA, 2).get_parameters()  # without an average
    other.set_parameters(given)
    for policy in (other.policy, other.trained_policy):
        assert differences(weights_of(policy), given["policy"]) == []
    wrong = {"trained_policy": averaged(hidden_size=24).fit(DATA, 1).policy.state_dict()}
    with pytest.raises(ModelFileError):
        other.set_parameters(wrong, exact_match=False)


class Normed(BaseFeaturesExtractor):
    """An extractor with running statistics."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 2)
        self.layer = nn.BatchNorm1d(2)

    def forward(self, observations: Tensor) -> Tensor:
        normed: Tensor = self.layer(observations)
        return normed


def test_running_statistics_act_as_training_left_them() -> None:
    model = averaged(policy_kwargs={"features_extractor_class": Normed}).fit(DATA, 3)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.fit(n_steps=2)
        own, theirs = dict(copied.policy.named_buffers()), copied.trained_policy.named_buffers()
        assert differences(own, dict(theirs)) == []
        name = next(name for name in own if name.endswith("num_batches_tracked"))
        assert own[name] == 5
