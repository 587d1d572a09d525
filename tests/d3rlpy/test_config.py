"""The fields: d3rlpy's with its defaults, ours, what each does, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from d3rlpy.algos import DecisionTransformerConfig, DiscreteDecisionTransformerConfig
from d3rlpy.algos.transformer.base import TransformerConfig
from torch import nn

from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.d3rlpy import (
    DecisionMambaConfig,
    DecisionMambaEncoderFactory,
    DiscreteDecisionMambaConfig,
)
from sb3_dmamba.d3rlpy.network import CORE_NAMES, SequenceConfig
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks import AttentionMixer, SequenceModel
from tests.d3rlpy.cases import OURS, make_algo, make_config, vector_encoder

DOCS = Path(__file__).parents[2] / "docs" / "d3rlpy.md"
PAIRS = [
    (DecisionTransformerConfig, DecisionMambaConfig),
    (DiscreteDecisionTransformerConfig, DiscreteDecisionMambaConfig),
]
OWN_FIELDS = [
    field.name
    for field in dataclasses.fields(SequenceConfig)[len(dataclasses.fields(TransformerConfig)) :]
]


def defaults(config: type) -> dict[str, Any]:
    return dataclasses.asdict(config())


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_their_fields_have_their_defaults(theirs: type, ours: type) -> None:
    expected, found = defaults(theirs), defaults(ours)
    assert {name: found.get(name, "absent") for name in expected} == expected
    assert set(found) - set(expected) == set(OWN_FIELDS)


@pytest.mark.parametrize("name", [*OWN_FIELDS, *CORE_NAMES])
def test_shared_fields_have_the_other_faces_defaults(name: str) -> None:
    if name in OWN_FIELDS and name in CORE_NAMES:
        assert getattr(DecisionMambaConfig(), name) == getattr(CoreConfig(), CORE_NAMES[name])


@pytest.mark.parametrize("config", [ours for _, ours in PAIRS])
def test_every_field_is_described(config: type) -> None:
    described = f"{DecisionMambaConfig.__doc__}{config.__doc__}"
    page = DOCS.read_text()
    for field in dataclasses.fields(config):
        assert f"        {field.name}: " in described or field.name == "gamma", field.name
        assert f"`{field.name}`" in page, f"docs/d3rlpy.md does not have {field.name}"


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


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", nn.ReLU), ("gelu", nn.GELU), ("tanh", nn.Tanh)]
)
def test_activations(activation: str, kind: type) -> None:
    (block,) = built(activation_type=activation).layers
    assert block.channel_mixer is not None
    assert isinstance(block.channel_mixer[2], kind)
    discrete = built("discrete mamba", embed_activation_type=activation)
    assert isinstance(discrete.embedding.activation, kind)
    assert isinstance(discrete.embedding.norm, nn.Identity)


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


def test_an_encoder_keeps_its_weights() -> None:
    torch.manual_seed(0)
    expected = vector_encoder().create((9,)).state_dict()
    torch.manual_seed(0)
    encoder: Any = built(init="paper").embedding.observation_encoder
    found = encoder.encoder.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_seed_makes_the_weights() -> None:
    same = [built(seed=3).state_dict() for _ in range(2)]
    other = built(seed=4).state_dict()
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert not torch.equal(same[0]["head.projection.weight"], other["head.projection.weight"])
    d3rlpy.seed(1)
    first = built()
    d3rlpy.seed(1)
    second = built()
    assert torch.equal(first.head.projection.weight, second.head.projection.weight)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"context_size": 0}, "context_size=0: give an integer"),
    ({"num_layers": 1.5}, "num_layers=1.5"),
    ({"num_heads": 0}, "num_heads=0"),
    ({"resid_dropout": 1.0}, "resid_dropout=1.0"),
    ({"embed_dropout": -0.1}, "embed_dropout=-0.1"),
    ({"attn_dropout": "much"}, "attn_dropout='much'"),
    ({"mixer": "mamba2"}, "mixer='mamba2'.*'attention'"),
    ({"activation_type": "geglu"}, "activation_type='geglu'"),
    ({"embedding": "bag"}, "embedding='bag'"),
    ({"time_encoding": "sine"}, "time_encoding='sine'"),
    ({"position_encoding_type": "simple"}, r"d3rlpy.PositionEncodingType.SIMPLE"),
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ({"precision": "fp16"}, "precision='fp16'"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": True}, "seed=True"),
    ({"seed": 3.0}, "seed=3.0: give an integer"),
    ({"attn_dropout": float("nan")}, "attn_dropout=nan"),
    ({"num_heads": 2.0}, "num_heads=2.0: give an integer"),
    ({"memory": "both"}, "memory='both'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
@pytest.mark.parametrize("name", OURS)
def test_bad_values_are_named_as_in_d3rlpy(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(name, **fields)


@pytest.mark.parametrize("name", OURS)
def test_numpys_scalars_are_stored_as_pythons(name: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "context_size": 7,
        "num_layers": 2,
        "num_heads": 3,
        "batch_size": 4,
        "learning_rate": 0.5,
        "resid_dropout": 0.25,
        "attn_dropout": 0.25,
        "embed_dropout": 0.0,
        "seed": 11,
        "channel_mixing": True,
        "mixer": "attention",
    }
    if name == "discrete mamba":
        fields |= {"warmup_tokens": 100, "final_tokens": 1000}
    config = make_config(name, **{key: np.array(value)[()] for key, value in fields.items()})
    plain = make_config(name, **fields)
    for key, value in fields.items():
        assert getattr(config, key) == value == getattr(plain, key)
        assert type(getattr(config, key)) is type(getattr(plain, key)) is type(value), key
    assert config.serialize() == plain.serialize()


def test_integers_beside_floats() -> None:
    config = make_config("discrete mamba", attn_dropout=0, warmup_tokens=2.5, final_tokens=1e3)
    assert (config.attn_dropout, config.warmup_tokens, config.final_tokens) == (0.0, 2.5, 1000)


def test_bad_combinations() -> None:
    with pytest.raises(ConfigError, match=r"position_encoding_type=PositionEncodingType\.SIMPLE"):
        make_config("discrete mamba", memory="stream")
    with pytest.raises(ConfigError, match='time_encoding="timestep"'):
        make_config("mamba", memory="stream", time_encoding="global")
    with pytest.raises(ConfigError, match=r"the encoder's output size.*num_heads=3"):
        built(mixer="attention", num_heads=3)
    with pytest.raises(ConfigError, match="warmup_tokens=-1"):
        make_config("discrete mamba", warmup_tokens=-1)


def test_the_encoder_factory() -> None:
    factory = DecisionMambaEncoderFactory(16)
    assert factory.create((5,))(torch.zeros(3, 5)).shape == (3, 16)
    assert factory.create((5, 2))(torch.zeros(3, 5, 2)).shape == (3, 16)
    assert factory.create((4, 40, 40))(torch.zeros(3, 4, 40, 40)).shape == (3, 16)
    flat = DecisionMambaEncoderFactory(16, "linear").create((4, 4, 4))
    assert flat(torch.ones(3, 4, 4, 4)).shape == (3, 16)
    with pytest.raises(SpaceError, match="tuples"):
        factory.create(((5,), (3,)))
    with pytest.raises(SpaceError, match="too small"):
        factory.create((3, 8, 8))
    with pytest.raises(SpaceError, match="kind='linear'"):
        DecisionMambaEncoderFactory(16, "nature_cnn").create((5,))
    assert type(DecisionMambaEncoderFactory(np.int64(16)).feature_size) is int
    with pytest.raises(ConfigError, match="feature_size=True"):
        DecisionMambaEncoderFactory(True)
    with pytest.raises(ConfigError, match="feature_size=0"):
        DecisionMambaEncoderFactory(0)
    with pytest.raises(ConfigError, match="kind='cnn'"):
        DecisionMambaEncoderFactory(16, "cnn")
    with pytest.raises(ConfigError, match="VectorEncoderFactory"):
        factory.create_with_action((5,), 2)


def test_without_d3rlpy() -> None:
    code = """
import sys
sys.modules["d3rlpy"] = None
try:
    import sb3_dmamba.d3rlpy
except ImportError as error:
    print(type(error).__name__, error)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout.startswith("MissingDependencyError d3rlpy is needed")
    assert 'pip install "sb3-dmamba[d3rlpy]"' in finished.stdout
