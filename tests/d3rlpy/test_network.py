"""Config fields, the network they make, encoder factories, and windows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.algos import DecisionTransformerConfig, DiscreteDecisionTransformerConfig
from d3rlpy.algos.transformer.base import TransformerConfig
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.d3rlpy import (
    DecisionMambaConfig,
    DecisionMambaEncoderFactory,
    DiscreteDecisionMambaConfig,
)
from sb3_dmamba.d3rlpy.network import CORE_NAMES, SequenceConfig, find_real_steps, to_windows
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks import AttentionMixer, SequenceModel
from tests.d3rlpy.cases import OURS, make_algo, make_config, vector_encoder
from tests.scripts import run_python

PAIRS = [
    (DecisionTransformerConfig, DecisionMambaConfig),
    (DiscreteDecisionTransformerConfig, DiscreteDecisionMambaConfig),
]
THEIR_FIELDS = [field.name for field in dataclasses.fields(TransformerConfig)]
OWN_FIELDS = {field.name for field in dataclasses.fields(SequenceConfig)} - set(THEIR_FIELDS)


def test_fields_have_the_defaults_of_d3rlpy_and_of_the_core_config() -> None:
    for theirs, ours in PAIRS:
        expected, found = (dataclasses.asdict(config()) for config in (theirs, ours))
        assert {name: found.get(name, "absent") for name in expected} == expected
        assert found.keys() - expected.keys() == OWN_FIELDS
    for name in OWN_FIELDS & CORE_NAMES.keys():
        assert getattr(DecisionMambaConfig(), name) == getattr(
            CoreConfig.from_recipe("paper"), CORE_NAMES[name]
        )


def built(name: str = "mamba", **fields: Any) -> SequenceModel:
    fields = {"encoder_factory": vector_encoder(), **fields}
    model: SequenceModel = make_algo(name, (9,), **fields).impl.model
    return model


def test_fields_reach_the_network() -> None:
    model = built(
        num_layers=3, d_state=2, d_conv=3, expand=3, dt_rank=5, max_timestep=7, context_size=6
    )
    mixer: Any = model.layers[2].mixer
    assert len(model.layers) == 3
    assert mixer.A_log.shape == (24, 2)
    assert mixer.conv1d.weight.shape == (24, 1, 3)
    assert mixer.dt_proj.weight.shape == (24, 5)
    assert model.embedding.timestep_table is not None
    assert model.embedding.timestep_table.weight.shape == (7, 8)
    assert built(channel_mixing=False).layers[0].channel_mixer is None
    assert built(backend="reference").layers[0].mixer.backend == "reference"
    convolution: Any = built(mixer="convolution", filter_length=3).layers[0].mixer
    assert convolution.filters.shape == (3, 8, 3)


def test_dropouts_are_told_apart() -> None:
    model = built(mixer="attention", attn_dropout=0.1, resid_dropout=0.2, embed_dropout=0.3)
    (block,) = model.layers
    assert isinstance(block.mixer, AttentionMixer)
    assert block.channel_mixer is not None
    mlp_dropout: Any = block.channel_mixer[-1]
    found = (block.mixer.dropout, block.dropout.p, mlp_dropout.p, model.dropout.p)
    assert found == (0.1, 0.2, 0.2, 0.3)
    assert block.mixer.n_heads == 2


def test_embeddings_and_times() -> None:
    continuous, discrete = built(), built("discrete mamba")
    assert isinstance(continuous.embedding.norm, nn.LayerNorm)
    assert continuous.embedding.position_table is None
    assert discrete.embedding.position_table is not None
    normed = built("discrete mamba", embedding="norm")
    assert isinstance(normed.embedding.norm, nn.LayerNorm)
    assert isinstance(normed.embedding.activation, nn.Identity)
    assert isinstance(built(embedding="tanh").embedding.activation, nn.Tanh)
    timeless = built("discrete mamba", time_encoding="none")
    assert timeless.embedding.timestep_table is None
    assert timeless.embedding.position_table is None
    globally = built(position_encoding_type=d3rlpy.PositionEncodingType.GLOBAL)
    assert globally.embedding.position_table is not None


BAD: dict[str, tuple[Any, ...]] = {
    "context_size": (0,),
    "num_layers": (1.5,),
    "num_heads": (0, 2.0),
    "resid_dropout": (1.0,),
    "embed_dropout": (-0.1,),
    "attn_dropout": ("much", float("nan")),
    "mixer": ("mamba2",),
    "activation_type": ("geglu",),
    "embedding": ("bag",),
    "time_encoding": ("sine",),
    "position_encoding_type": ("simple",),
    "learning_rate": (0.0,),
    "precision": ("fp16",),
    "seed": (-1, True, 3.0),
    "memory": ("both",),
}


@pytest.mark.parametrize("name", OURS)
def test_bad_values_are_named_as_in_d3rlpy(name: str) -> None:
    for setting, values in BAD.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"{setting}=") as caught:
                make_config(name, **{setting: value})
            assert caught.value.setting == setting
            assert caught.value.value is value
    with pytest.raises(ConfigError) as caught:
        make_config("discrete mamba", warmup_tokens=-1)
    assert caught.value.setting == "warmup_tokens"


def test_bad_combinations() -> None:
    # What d3rlpy calls otherwise is named as in d3rlpy.
    with pytest.raises(ConfigError, match=r"position_encoding_type=PositionEncodingType\.SIMPLE"):
        make_config("discrete mamba", memory="stream")
    with pytest.raises(ConfigError, match='time_encoding="timestep"'):
        make_config("mamba", memory="stream", time_encoding="global")
    with pytest.raises(ConfigError, match=r"the encoder's output size.*num_heads=3") as caught:
        built(mixer="attention", num_heads=3)
    assert caught.value.setting == "num_heads"


def test_numpys_scalars_are_stored_as_pythons() -> None:
    fields: dict[str, Any] = {
        "context_size": 7,
        "learning_rate": 0.5,
        "channel_mixing": True,
        "mixer": "attention",
        "warmup_tokens": 100,
    }
    arrays = {key: np.array(value)[()] for key, value in fields.items()}
    config, plain = (make_config("discrete mamba", **each) for each in (arrays, fields))
    for key, value in fields.items():
        assert getattr(config, key) == value
        assert type(getattr(config, key)) is type(value), key
    assert config.serialize() == plain.serialize()


def test_the_encoder_factory() -> None:
    factory = DecisionMambaEncoderFactory(16)
    assert factory.create((5,))(torch.zeros(3, 5)).shape == (3, 16)
    assert factory.create((5, 2))(torch.zeros(3, 5, 2)).shape == (3, 16)
    assert factory.create((4, 40, 40))(torch.zeros(3, 4, 40, 40)).shape == (3, 16)
    flat = DecisionMambaEncoderFactory(16, "linear").create((4, 4, 4))
    assert flat(torch.ones(3, 4, 4, 4)).shape == (3, 16)
    for kind, shape in (("auto", ((5,), (3,))), ("auto", (3, 8, 8)), ("nature_cnn", (5,))):
        with pytest.raises(SpaceError):  # a tuple, too small an image, a vector
            DecisionMambaEncoderFactory(16, kind).create(shape)
    assert type(DecisionMambaEncoderFactory(np.int64(16)).feature_size) is int
    for fields in ({"feature_size": True}, {"feature_size": 0}, {"kind": "cnn"}):
        with pytest.raises(ConfigError) as caught:
            DecisionMambaEncoderFactory(**fields)
        assert [caught.value.setting] == list(fields)
    with pytest.raises(ConfigError):
        factory.create_with_action((5,), 2)


def d3rlpy_batch(masks: list[list[int]]) -> Any:
    real = torch.tensor(masks, dtype=torch.float32)
    steps = torch.arange(1.0, 1 + real.numel()).view(real.shape)
    return SimpleNamespace(
        observations=torch.stack([steps, -steps], dim=2),
        actions=steps.unsqueeze(2),
        returns_to_go=steps.unsqueeze(2),
        timesteps=(real.cumsum(dim=1) * real).long(),
        masks=real,
    )


@given(masks=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_real_steps_keep_their_order_wherever_padding_is(masks: list[list[int]]) -> None:
    batch = d3rlpy_batch(masks)
    windows = to_windows(batch, is_discrete=False)
    for row, mask in enumerate(batch.masks.bool()):
        n_real = int(mask.sum())
        kept = batch.returns_to_go[row, mask, 0]
        assert torch.equal(windows.returns_to_go[row, :n_real], kept)
        assert windows.padding_mask[row].tolist() == [True] * n_real + [False] * (5 - n_real)
        assert sorted(windows.returns_to_go[row].tolist()) == sorted(
            batch.returns_to_go[row].flatten().tolist()
        )


def test_real_steps() -> None:
    masks = [[0.0, 1, 1], [0.0, 0, 0], [1.0, 1, 1], [0.0, 0, 0]]  # zeros: of exported policies
    timesteps = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 0, 0]])
    found = find_real_steps(torch.tensor(masks), timesteps)
    assert found.tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert found.dtype == torch.float32


def test_nothing_in_padding_reaches_the_loss() -> None:
    algo = make_algo("mamba", (9,), embed_dropout=0.0, resid_dropout=0.0)
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    batch = d3rlpy_batch([[0, 0, 1, 1], [1, 1, 1, 1]])
    batch.observations, batch.actions = draw(2, 4, 9), draw(2, 4, 3).tanh()
    algo.impl.modules.set_train()
    expected = algo.impl.compute_grad(batch)["loss"]
    gradients = [p.grad.clone() for p in algo.impl.model.parameters()]
    for tensor in (batch.observations, batch.actions):
        tensor[0, :2] = 1e9
    found = algo.impl.compute_grad(batch)["loss"]
    assert torch.equal(found, expected)
    for parameter, gradient in zip(algo.impl.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_without_d3rlpy() -> None:
    code = """
import sys
sys.modules["d3rlpy"] = None
try:
    import sb3_dmamba.d3rlpy
except ImportError as error:
    print(type(error).__name__, error.extra)
"""
    assert run_python("-c", code) == "MissingDependencyError d3rlpy\n"
