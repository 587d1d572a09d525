"""Config fields, the network they make, encoder factories, and windows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
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
from tests.d3rlpy.cases import OURS, draw_input, make_algo, make_config, vector_encoder

DOCS = Path(__file__).parents[2] / "docs" / "d3rlpy.md"
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


def test_padding_moves_to_the_right() -> None:
    batch = d3rlpy_batch([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    windows = to_windows(batch, is_discrete=False)
    assert windows.padding_mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert windows.returns_to_go[0, :2].tolist() == [3.0, 4.0]
    assert windows.returns_to_go[1].tolist() == [5.0, 6.0, 7.0, 8.0]
    assert windows.returns_to_go[2, 0] == 12.0
    assert windows.timesteps[0].tolist() == [0, 1, 0, 0]
    assert windows.timesteps[1].tolist() == [0, 1, 2, 3]
    assert windows.observations[0, :2].tolist() == [[3.0, -3.0], [4.0, -4.0]]


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


def test_without_padding_nothing_is_copied() -> None:
    batch = d3rlpy_batch([[1, 1, 1]])
    kept = to_windows(batch, is_discrete=False, skip_if_full=True)
    assert kept.observations is batch.observations
    moved = to_windows(batch, is_discrete=False)
    assert torch.equal(moved.observations, batch.observations)


def test_discrete_actions_and_tuples() -> None:
    batch = d3rlpy_batch([[0, 1, 1]])
    batch.observations = [batch.observations, torch.ones(1, 3, 2, 2)]
    windows = to_windows(batch, is_discrete=True)
    assert windows.actions.dtype == torch.int64
    assert windows.actions.tolist() == [[2, 3, 1]]
    assert windows.observations.shape == (1, 3, 6)
    assert windows.observations[0, 0].tolist() == [2.0, -2.0, 1.0, 1.0, 1.0, 1.0]


def test_real_steps() -> None:
    masks = [[0.0, 1, 1], [0.0, 0, 0], [1.0, 1, 1], [0.0, 0, 0]]  # zeros: of exported policies
    timesteps = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 0, 0]])
    found = find_real_steps(torch.tensor(masks), timesteps)
    assert found.tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", OURS)
def test_padding_changes_no_prediction(name: str) -> None:
    # The same weights with room for more steps pad more, and say the same.
    torch.manual_seed(0)
    short = make_algo(name, (9,), context_size=4, time_encoding="timestep")
    long = make_algo(name, (9,), context_size=11, time_encoding="timestep")
    long.impl.model.load_state_dict(short.impl.model.state_dict())
    for n_steps in (1, 3, 4):
        drawn = draw_input((9,), name.startswith("discrete"), n_steps)
        np.testing.assert_allclose(short.predict(drawn), long.predict(drawn), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_times_past_the_table_share_its_end(name: str) -> None:
    algo = make_algo(name, (9,), max_timestep=6, time_encoding="timestep")
    is_discrete = name.startswith("discrete")

    def predict(first: int) -> Any:
        return algo.predict(draw_input((9,), is_discrete, first=first))

    np.testing.assert_array_equal(predict(6), predict(1000))
    assert not np.allclose(predict(1), predict(6))


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
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout == "MissingDependencyError d3rlpy\n"
