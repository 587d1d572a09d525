"""Converted models act and predict as the originals, in both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.algos import DecisionTransformerConfig
from d3rlpy.models import PixelEncoderFactory, VectorEncoderFactory
from d3rlpy.optimizers import AdamWFactory, RMSpropFactory, WarmupSchedulerFactory
from d3rlpy.preprocessing import (
    ClipRewardScaler,
    ConstantShiftRewardScaler,
    MinMaxActionScaler,
    MinMaxObservationScaler,
    MinMaxRewardScaler,
    MultiplyRewardScaler,
    PixelObservationScaler,
    ReturnBasedRewardScaler,
    StandardObservationScaler,
    StandardRewardScaler,
)
from gymnasium import spaces

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.d3rlpy import DecisionMambaEncoderFactory, from_sb3, to_sb3
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, ModelFileError, NotFittedError, SpaceError
from sb3_dmamba.networks.model import Modulation
from tests.d3rlpy.cases import draw_batch, make_algo, make_scalers, vector_encoder
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories, random_trajectories

N_STEPS = 12
BOUNDS = spaces.Box(np.array([-2.0, 0.5], dtype=np.float32), np.array([1.0, 7.0], dtype=np.float32))


def with_actions(data: Trajectories, actions: np.ndarray, space: Any) -> Trajectories:
    return dataclasses.replace(data, actions=actions, action_space=space)


def in_bounds(data: Trajectories, space: spaces.Box) -> Trajectories:
    """Actions of [-1, 1] in other bounds, and observations far from standardised."""
    actions = space.low + (data.actions + 1) / 2 * (space.high - space.low)
    moved = with_actions(data, actions.astype(np.float32), space)
    return dataclasses.replace(moved, observations=3.0 * data.observations + 5.0)


def one_episode(space: spaces.Box, observations: np.ndarray) -> Trajectories:
    """One episode of discrete actions with given observations."""
    n = len(observations)
    return Trajectories(
        observations=observations,
        actions=np.arange(n) % 3,
        rewards=np.ones(n, dtype=np.float32),
        terminated=np.array([True]),
        truncated=np.array([False]),
        episode_offsets=np.array([0, n]),
        observation_space=space,
        action_space=spaces.Discrete(3),
    )


def play(actor: Any, data: Trajectories) -> np.ndarray:
    """What an actor does on the first observations of a dataset, with rewards of all sizes."""
    rng = np.random.default_rng(4)
    actions, reward = [], 0.0
    for step in range(N_STEPS):
        actions.append(actor.predict(data.observations[step], reward))
        reward = float(rng.normal(scale=3.0))
    return np.array(actions)


def both_play(model: DecisionMamba, learnable: Any, data: Trajectories) -> None:
    """Assert that both act and predict alike, in both memories."""
    predictions: dict[str, list[np.ndarray]] = {"ours": [], "theirs": []}

    def choose(output: np.ndarray) -> Any:
        predictions["theirs"].append(output)
        return int(output.argmax()) if is_discrete else output

    def note(module: Any, inputs: Any, output: Any) -> None:
        predictions["ours"].append(output.reshape(-1, output.shape[-1])[-1].numpy())

    is_discrete = isinstance(model.action_space, spaces.Discrete)
    memories: list[Memory] = ["window", "stream"]
    if model.config.time_encoding == "global":
        memories.remove("stream")
    for memory in memories:
        hook = model.policy.model.head.register_forward_hook(note)
        ours = play(model.as_stateful_wrapper(25.0, memory=memory), data)
        hook.remove()
        theirs = play(learnable.as_stateful_wrapper(25.0, choose, memory=memory), data)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5)
    np.testing.assert_allclose(predictions["theirs"], predictions["ours"], rtol=0, atol=2e-5)
    assert np.ptp(predictions["ours"], axis=0).min() > 1e-3  # they depend on what is seen


UINT8_ROW = spaces.Box(0, 255, (6,), np.uint8)
LAST = spaces.Box(0, 255, (40, 36, 3), np.uint8)
ROWS = np.random.default_rng(0).integers(0, 256, (20, 6), dtype=np.uint8)
IMAGES = np.random.default_rng(0).integers(0, 256, (13, 40, 36, 3), dtype=np.uint8)

CASES: dict[str, tuple[Trajectories, dict[str, Any]]] = {
    "continuous": (random_trajectories(), {}),
    "bounds": (in_bounds(random_trajectories(), BOUNDS), {}),
    "not standardised": (random_trajectories(), {"normalize_observations": False}),
    "discrete": (random_trajectories(n_actions=4), {"embedding": "tanh"}),
    "attention": (random_trajectories(), {"mixer": "attention", "n_heads": 2}),
    "convolution": (random_trajectories(), {"mixer": "convolution", "filter_length": 3}),
    "decoupled": (random_trajectories(), {"conditioning": "decoupled"}),
    "no MLP, no time": (
        random_trajectories(),
        {"channel_mixing": False, "time_encoding": "none", "memory": "stream"},
    ),
    "relu": (random_trajectories(), {"activation": "relu", "return_scale": 1.0}),
    "images": (
        random_trajectories((6, 9), (2, 36, 36), n_actions=3),
        {"time_encoding": "global", "embedding": "tanh"},
    ),
    "channels last": (one_episode(LAST, IMAGES), {}),
    "bytes": (one_episode(UINT8_ROW, ROWS), {"normalize_observations": False}),
    "two dimensions": (random_trajectories(observation_shape=(3, 2)), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str, tmp_path: Path) -> None:
    data, settings = CASES[case]
    settings = {"n_updates": 4, "learning_rate": 0.03, "warmup_updates": 0, **settings}
    model = tiny_model(**settings).fit(data)
    learnable = from_sb3(model)
    both_play(model, learnable, data)

    learnable.save(tmp_path / "model.d3")
    loaded: Any = d3rlpy.load_learnable(str(tmp_path / "model.d3"))
    back = to_sb3(loaded)
    both_play(back, learnable, data)
    assert back.config.replace(
        normalize_observations=True, encoder="auto", return_scale=1.0
    ) == model.config.replace(normalize_observations=True, encoder="auto", return_scale=1.0)
    assert back.config.return_scale == pytest.approx(model.config.return_scale)
    assert back.action_space == model.action_space
    assert back.policy.flat_space.shape == model.policy.flat_space.shape
    assert back.policy.flat_space.dtype == model.policy.flat_space.dtype
    assert (back.seed, back._n_updates) == (model.seed, model._n_updates)


def test_a_converted_model_can_be_trained_further(tmp_path: Path) -> None:
    data = choice_trajectories(20)
    model = tiny_model().fit(data, 4)
    model.save(tmp_path / "model")
    learnable = from_sb3(str(tmp_path / "model"))
    batch = draw_batch((2,), True, size=8)
    batch.actions.clip(0, 1, out=batch.actions)
    losses = [learnable.update(batch)["loss"] for _ in range(40)]
    assert losses[-1] < losses[0]
    back = to_sb3(learnable, ChoiceEnv(), target_return=8.0)
    assert back._n_updates == 44
    assert back.target_return == 8.0
    assert back.get_env() is not None
    both_play(back, learnable, data)
    back.fit(data, 2)
    assert back._n_updates == 46


SCALERS: list[dict[str, Any]] = [
    {"reward_scaler": scaler}
    for scaler in (
        None,
        MultiplyRewardScaler(0.01),
        MultiplyRewardScaler(-0.2),
        ReturnBasedRewardScaler(return_max=30.0, return_min=-10.0, multiplier=2.0),
        MinMaxRewardScaler(minimum=-3.0, maximum=17.0, multiplier=5.0),
        StandardRewardScaler(mean=4.0, std=9.0),
        ConstantShiftRewardScaler(-3.0, 0.2),
        ConstantShiftRewardScaler(-3.0, 0.2, multiply_first=True),
    )
]
SCALERS += [
    {"observation_scaler": scaler, "encoder_factory": factory}
    for scaler, factory in (
        (StandardObservationScaler(np.arange(9.0), np.linspace(1.0, 2.0, 9)), vector_encoder()),
        (MinMaxObservationScaler(np.full(9, -3.0), np.linspace(1, 2, 9)), vector_encoder()),
        (PixelObservationScaler(), vector_encoder()),
        (PixelObservationScaler(), DecisionMambaEncoderFactory(8)),
        (None, DecisionMambaEncoderFactory(8)),
    )
]
SCALERS.append(make_scalers("min_max", (9,), False))


def test_scalers_become_part_of_the_network() -> None:
    cnn = PixelEncoderFactory(feature_size=8, exclude_last_activation=True)
    pixels = {"encoder_factory": cnn, "observation_scaler": PixelObservationScaler()}
    learnable = make_algo("discrete mamba", (2, 36, 36), **pixels)
    model = to_sb3(learnable)
    assert model.config.encoder == "nature_cnn"
    both_play(model, learnable, random_trajectories((13,), (2, 36, 36), n_actions=3))
    clock = {"conditioning": "decoupled", "time_encoding": "condition"}
    for fields in [{**clock, "reward_scaler": MultiplyRewardScaler(-0.2)}, *SCALERS]:
        learnable = make_algo("mamba", (9,), **{"encoder_factory": vector_encoder(), **fields})
        for module in learnable.impl.model.modules():
            if isinstance(module, Modulation):  # which starts without effect
                torch.nn.init.normal_(module.projection.weight, std=0.3)
        model = to_sb3(learnable)
        data = random_trajectories(observation_shape=(9,))
        if isinstance(learnable.observation_scaler, PixelObservationScaler):
            data = one_episode(spaces.Box(0, 255, (9,), np.uint8), np.resize(ROWS, (20, 9)))
        both_play(model, learnable, data)
        assert model.policy.flat_space.dtype == data.observation_space.dtype
    assert model.action_space == spaces.Box(-2.0, 5.0, (3,), np.float32)  # of the last


def test_settings_of_the_optimiser() -> None:
    factory = AdamWFactory(
        weight_decay=0.3,
        betas=(0.8, 0.9),
        clip_grad_norm=2.0,
        lr_scheduler_factory=WarmupSchedulerFactory(17),
    )
    learnable = make_algo("mamba", (9,), encoder_factory=vector_encoder(), optim_factory=factory)
    config = to_sb3(learnable).config
    assert (config.weight_decay, config.adam_betas, config.max_grad_norm) == (0.3, (0.8, 0.9), 2.0)
    assert config.warmup_updates == 17
    other = make_algo(
        "mamba", (9,), encoder_factory=vector_encoder(), optim_factory=RMSpropFactory()
    )
    assert to_sb3(other).config.warmup_updates is None


NO_COUNTERPART: list[tuple[str, str, Any]] = [
    ("mamba", "encoder_factory", VectorEncoderFactory([8, 8])),
    ("mamba", "encoder_factory", d3rlpy.models.DefaultEncoderFactory()),
    (
        *("mamba", "encoder_factory"),
        VectorEncoderFactory([8], use_layer_norm=True, exclude_last_activation=True),
    ),
    ("mamba", "activation_type", "swish"),
    ("discrete mamba", "embed_activation_type", "relu"),
    ("mamba", "reward_scaler", ClipRewardScaler(-1.0, 1.0)),
    ("mamba", "reward_scaler", MultiplyRewardScaler(0.0)),
    ("mamba", "observation_scaler", StandardObservationScaler()),  # not fitted
    ("mamba", "action_scaler", MinMaxActionScaler()),
]


def test_settings_without_a_counterpart_are_named() -> None:
    for name, setting, value in NO_COUNTERPART:
        fields = {"encoder_factory": vector_encoder(), setting: value}
        with pytest.raises(ConfigError) as caught:
            to_sb3(make_algo(name, (9,), **fields))
        assert (caught.value.setting, caught.value.value) == (setting, value)
    images = DecisionMambaEncoderFactory(8, "nature_cnn")
    with pytest.raises(ConfigError) as caught:
        to_sb3(make_algo("mamba", (2, 36, 36), encoder_factory=images))
    assert caught.value.setting == "observation_scaler"


def test_other_objects_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        from_sb3(make_algo("mamba", (9,)))
    assert caught.value.setting == "model"
    theirs = DecisionTransformerConfig().create()
    theirs.create_impl((9,), 2)
    others: list[Any] = ["model.d3", tiny_model(), theirs]
    for other in others:
        with pytest.raises(ConfigError) as caught:
            to_sb3(other)
        assert caught.value.setting == "learnable"


def test_other_mistakes() -> None:
    with pytest.raises(SpaceError) as caught:
        to_sb3(make_algo("mamba", ((9,), (3,))))
    assert caught.value.setting == "observation_space"
    with pytest.raises(NotFittedError):
        to_sb3(make_algo("mamba"))
    with pytest.raises(NotFittedError):
        from_sb3(tiny_model())
    unscaled = make_algo("mamba", (2,), encoder_factory=vector_encoder())
    with pytest.raises(SpaceError):
        to_sb3(unscaled, ChoiceEnv(), target_return=1.0)
    waiting = to_sb3(unscaled, ChoiceEnv())  # without a target return
    with pytest.raises(ConfigError) as unknown:
        waiting.get_env()
    assert unknown.value.setting == "target_return"
    rows = one_episode(UINT8_ROW, ROWS)
    shifted = with_actions(rows, rows.actions + 2, spaces.Discrete(3, start=2))
    with pytest.raises(SpaceError) as caught:
        from_sb3(tiny_model().fit(shifted, 1))
    assert caught.value.value == shifted.action_space


def test_loading_files_of_the_other_api_names_to_sb3(tmp_path: Path) -> None:
    model = tiny_model().fit(choice_trajectories(20), 1)
    from_sb3(model).save(tmp_path / "learnable.d3")
    model.policy.save(str(tmp_path / "policy.pth"))
    for name in ("learnable.d3", "policy.pth"):
        with pytest.raises(ModelFileError, match=r"to_sb3"):
            DecisionMamba.load(tmp_path / name)
