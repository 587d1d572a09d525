"""Features extractors of Stable-Baselines3's kind in the place of the observation encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import ConfigError, ModelFileError, SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy, ExtractorEncoder
from tests.models import differences, everything_in, tiny_model
from tests.toys import ChoiceEnv, choice_trajectories

DATA = choice_trajectories(40)
CONFIG = DecisionMambaConfig(hidden_size=16)


class Seen(BaseFeaturesExtractor):
    """Returns what it was shown, and notes which space it was made for."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        self.space = observation_space

    def forward(self, observations: Tensor) -> Tensor:
        self.last = observations
        return observations.flatten(1)


class Layers(BaseFeaturesExtractor):
    """A perceptron that draws its weights, and a buffer that no gradient moves."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 5) -> None:
        super().__init__(observation_space, features_dim)
        self.layers = nn.Sequential(nn.Linear(2, features_dim), nn.Tanh())
        self.register_buffer("offset", torch.rand(features_dim))

    def forward(self, observations: Tensor) -> Tensor:
        shown: Tensor = self.layers(observations) + self.offset
        return shown


KWARGS: dict[str, Any] = {
    "features_extractor_class": Layers,
    "features_extractor_kwargs": {"features_dim": 7},
}


def fitted(**settings: Any) -> DecisionMamba:
    return tiny_model(ChoiceEnv, policy_kwargs=KWARGS, **settings).fit(DATA, 4)


def shown_to(encoder: ExtractorEncoder) -> Tensor:
    assert isinstance(encoder.extractor, Seen)
    return encoder.extractor.last


def test_vectors_come_standardised() -> None:
    mean, std = np.array([1, 2, 3], np.float32), np.array([2, 4, 8], np.float32)
    space = spaces.Box(-9, 9, (3,), np.float32)
    encoder = ExtractorEncoder(space, CONFIG, ObservationStatistics(mean, std), Seen)
    observations = torch.arange(24.0).view(2, 4, 3)
    assert encoder(observations).shape == (2, 4, 16)
    expected = (observations.flatten(0, 1) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(shown_to(encoder), expected)


@pytest.mark.parametrize("shape", [(3, 36, 40), (36, 40, 3)], ids=["first", "last"])
def test_images_come_with_channels_first_between_0_and_1(shape: tuple[int, ...]) -> None:
    encoder = ExtractorEncoder(spaces.Box(0, 255, shape, np.uint8), CONFIG, None, Seen)
    assert isinstance(encoder.extractor, Seen)
    assert encoder.extractor.space == spaces.Box(0, 255, (3, 36, 40), np.uint8)
    image = torch.randint(0, 256, (1, 1, *shape), dtype=torch.uint8)
    encoder(image)
    first = image[0] if shape[0] == 3 else image[0].movedim(-1, 1)
    torch.testing.assert_close(shown_to(encoder), first / 255.0)


def test_it_learns_with_the_model_and_acts_in_both_memories() -> None:
    model = tiny_model(ChoiceEnv, policy_kwargs=KWARGS, learning_rate=1e-2, context_length=3)
    before = model.fit(DATA, 1).policy.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items() if ".extractor." in name}
    after = model.fit(DATA, 100).policy.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layers" in name}
    memories: tuple[Memory, ...] = ("window", "stream")
    for memory in memories:
        low, high = model.evaluate([2.0, 8.0], 20, memory=memory, n_workers=0).results
        assert high.mean - low.mean > 3


def test_training_goes_on_exactly_from_a_file(tmp_path: Path) -> None:
    model = fitted()
    model.save(tmp_path / "model")
    again = DecisionMamba.load(tmp_path / "model", custom_objects={"policy_kwargs": KWARGS})
    assert differences(everything_in(model), everything_in(again)) == []
    again = DecisionMamba.load(tmp_path / "model", policy_kwargs=KWARGS, env=ChoiceEnv)
    model.fit(DATA, 3)
    again.fit(DATA, 3)
    assert differences(everything_in(model), everything_in(again)) == []


def test_a_file_says_what_it_needs(tmp_path: Path) -> None:
    fitted().save(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"test_encoders\.Layers.*policy_kwargs=.*Layers"):
        DecisionMamba.load(tmp_path / "own")
    other = {"features_extractor_class": Seen}
    with pytest.raises(ConfigError, match=r"test_encoders\.Layers"):
        DecisionMamba.load(tmp_path / "own", policy_kwargs=other)
    narrow = {**KWARGS, "features_extractor_kwargs": {"features_dim": 6}}
    with pytest.raises(ModelFileError, match="do not fit"):
        DecisionMamba.load(tmp_path / "own", policy_kwargs=narrow)
    tiny_model(ChoiceEnv).fit(DATA, 1).save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="leave policy_kwargs out"):
        DecisionMamba.load(tmp_path / "plain", policy_kwargs=KWARGS)


def test_a_policy_alone_survives_a_file_and_a_copy(tmp_path: Path) -> None:
    policy = fitted().policy
    policy.save(tmp_path / "policy.pt")
    again = DecisionMambaPolicy.load(tmp_path / "policy.pt", policy_kwargs=KWARGS)
    for other in (again, copy.deepcopy(policy)):
        state = other.state_dict()
        assert all(torch.equal(each, state[name]) for name, each in policy.state_dict().items())
    with pytest.raises(ConfigError, match=r"test_encoders\.Layers"):
        DecisionMambaPolicy.load(tmp_path / "policy.pt")


def test_what_is_no_extractor_is_refused() -> None:
    mistakes: dict[str, dict[str, Any]] = {
        "net_arch": {"net_arch": [64]},
        "features_extractor_class=None": {"features_extractor_kwargs": {}},
        "features_extractor_class='cnn'": {"features_extractor_class": "cnn"},
    }
    for message, policy_kwargs in mistakes.items():
        with pytest.raises(ConfigError, match=message):
            tiny_model(ChoiceEnv, policy_kwargs=policy_kwargs)
    with pytest.raises(ConfigError, match="encoder='linear'"):
        fitted(encoder="linear")


def test_encoders_of_another_size_are_refused() -> None:
    class Wrong(Seen):
        def forward(self, observations: Tensor) -> Tensor:
            return super().forward(observations)[:, :1]

    space = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(SpaceError, match=r"Wrong.*\(2, 1\).*features_dim is 3"):
        ExtractorEncoder(space, CONFIG, None, Wrong)(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="Linear has no features_dim"):
        ExtractorEncoder(space, CONFIG, None, lambda space: nn.Linear(3, 4))
