"""The configs: d3rlpy's Decision Transformer's fields, and ours."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from d3rlpy.algos.transformer.base import TransformerConfig
from d3rlpy.constants import PositionEncodingType
from d3rlpy.models import EncoderFactory, make_encoder_field
from d3rlpy.optimizers import OptimizerFactory, make_optimizer_field

from sb3_dmamba.checks import check_number, check_optional_integer
from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.config import check_setting
from sb3_dmamba.errors import ConfigError

if TYPE_CHECKING:
    from sb3_dmamba.d3rlpy.algo import DecisionMamba, DiscreteDecisionMamba

__all__ = [
    "CORE_NAMES",
    "DecisionMambaConfig",
    "DiscreteDecisionMambaConfig",
    "SequenceModelFields",
    "make_core_config",
]

CORE_NAMES = {  # d3rlpy's name of a setting -> ours, where the value is the same
    "context_size": "context_length",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "resid_dropout": "dropout",
    **{
        name: name
        for name in (
            *("mixer", "channel_mixing", "d_state", "d_conv", "expand", "dt_rank"),
            *("filter_length", "init", "max_timestep", "batch_size", "learning_rate"),
            *("precision", "backend", "memory"),
        )
    },
}
_TIME_ENCODINGS = {PositionEncodingType.SIMPLE: "timestep", PositionEncodingType.GLOBAL: "global"}
_CORE_ACTIVATIONS = ("gelu", "relu")
_ACTIVATIONS = ("relu", "gelu", "tanh", "swish", "none")  # d3rlpy's that keep the width


@dataclasses.dataclass()
class SequenceModelFields:
    """What our configs have and d3rlpy's Decision Transformer's do not.

    See :class:`DecisionMambaConfig` for what they mean.
    """

    mixer: str = "mamba"
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    filter_length: int = 6
    channel_mixing: bool = True
    init: str = "mamba"
    embedding: str | None = None
    time_encoding: str | None = None
    precision: str = "fp32"
    backend: str = "auto"
    memory: str = "window"
    seed: int | None = None


@dataclasses.dataclass()
class DecisionMambaConfig(SequenceModelFields, TransformerConfig):
    """Config of Decision Mamba for continuous actions, on d3rlpy's terms.

    The first block of fields is that of d3rlpy's ``DecisionTransformerConfig``, names and defaults
    included; a script that makes one can make this instead. ``gamma`` has no effect, there as here.

    Args:
        observation_scaler: Observation preprocessor.
        action_scaler: Action preprocessor; without one actions are taken to lie in [-1, 1].
        reward_scaler: Reward preprocessor, of returns-to-go too.
        compile_graph: Whether to compile updates and run them as a CUDA graph, on CUDA.
        context_size: Steps in a window.
        max_timestep: Size of the timestep table; later steps share its last entry.
        batch_size: Windows in an update.
        learning_rate: Learning rate.
        encoder_factory: Makes the observation encoder; its output size is the model's width.
        optim_factory: Makes the optimiser.
        num_heads: Heads of ``mixer="attention"``; no effect with the others.
        num_layers: Number of blocks.
        attn_dropout: Dropout of attention weights with ``mixer="attention"``; no effect with the
            others.
        resid_dropout: Dropout of what the mixer and the MLP of a block add.
        embed_dropout: Dropout of embedded tokens.
        activation_type: Activation of the MLP; no effect with ``channel_mixing=False``.
        position_encoding_type: ``SIMPLE`` adds an embedding of each step's place in the episode,
            ``GLOBAL`` of the window's first step's, and of each token's place in the window.
        mixer: What mixes the tokens: ``"mamba"``, ``"attention"`` or ``"convolution"``.
        d_state: States per channel of the Mamba mixer.
        d_conv: Taps of its causal convolution.
        expand: Its inner width over the model's.
        dt_rank: Rank of its step-size projection; None is a sixteenth of the width, rounded up.
        filter_length: Tokens that a filter of the convolution mixer spans.
        channel_mixing: Whether an MLP follows the mixer in each block.
        init: ``"mamba"`` is ``mamba_ssm.Mamba``'s initialisation; ``"paper"`` is the official
            code's N(0, 0.02). Encoders keep the start that their factory gives them.
        embedding: ``"norm"`` puts a LayerNorm on the embedded tokens, ``"tanh"`` a tanh on each;
            None is as in d3rlpy: ``"norm"`` here.
        time_encoding: ``"timestep"``, ``"global"``, or ``"none"`` for a mixer that knows the order
            by itself; None follows ``position_encoding_type``.
        precision: ``"fp32"``, or ``"bf16"`` for matrix products in bfloat16.
        backend: Implementation of Mamba's operations; ``"auto"`` picks the fastest that works.
        memory: How ``as_stateful_wrapper`` remembers: ``"window"`` as d3rlpy does, or ``"stream"``
            at a constant cost a step.
        seed: Seed of the weights and of dropout, the same as of ``sb3_dmamba.DecisionMamba``; None
            draws from torch's global generator, which ``d3rlpy.seed`` sets, as does dropout in
            compiled updates.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: d3rlpy 2.8.1, ``algos/transformer/decision_transformer.py`` (fields and defaults).
    """

    batch_size: int = 64
    learning_rate: float = 1e-4
    encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009  # a dataclasses.field
    optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009
    num_heads: int = 1
    num_layers: int = 3
    attn_dropout: float = 0.1
    resid_dropout: float = 0.1
    embed_dropout: float = 0.1
    activation_type: str = "relu"
    position_encoding_type: PositionEncodingType = PositionEncodingType.SIMPLE
    compile_graph: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def create(self, device: Any = False, enable_ddp: bool = False) -> DecisionMamba:
        """Return the algorithm.

        Args:
            device: ``False`` is the CPU, ``True`` the first GPU, a number that GPU; or the name of
                a torch device.
            enable_ddp: Whether to train data-parallel, in a process group that exists.
        """
        from sb3_dmamba.d3rlpy.algo import DecisionMamba

        return DecisionMamba(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the name that saved files know the config by."""
        return "decision_mamba"


@dataclasses.dataclass()
class DiscreteDecisionMambaConfig(SequenceModelFields, TransformerConfig):
    """Config of Decision Mamba for discrete actions, on d3rlpy's terms.

    Fields are those of :class:`DecisionMambaConfig`, with the defaults of d3rlpy's
    ``DiscreteDecisionTransformerConfig`` in the first block, and three more.

    Args:
        embed_activation_type: Activation on each embedding; no effect where ``embedding`` is
            given.
        warmup_tokens: Steps seen over which the learning rate rises from zero.
        final_tokens: Steps seen after which it has fallen, along a cosine, to a tenth. Neither has
            an effect where ``optim_factory`` has a scheduler of its own.
        embedding: As in :class:`DecisionMambaConfig`; None is ``embed_activation_type``.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: d3rlpy 2.8.1, ``algos/transformer/decision_transformer.py`` (fields and defaults).
    """

    batch_size: int = 128
    learning_rate: float = 6e-4
    encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009  # a dataclasses.field
    optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009
    num_heads: int = 8
    num_layers: int = 6
    attn_dropout: float = 0.1
    resid_dropout: float = 0.1
    embed_dropout: float = 0.1
    activation_type: str = "gelu"
    embed_activation_type: str = "tanh"
    position_encoding_type: PositionEncodingType = PositionEncodingType.GLOBAL
    warmup_tokens: int = 10240
    final_tokens: int = 30000000
    compile_graph: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def create(self, device: Any = False, enable_ddp: bool = False) -> DiscreteDecisionMamba:
        """Return the algorithm; see :meth:`DecisionMambaConfig.create`."""
        from sb3_dmamba.d3rlpy.algo import DiscreteDecisionMamba

        return DiscreteDecisionMamba(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the name that saved files know the config by."""
        return "discrete_decision_mamba"


AnyConfig = DecisionMambaConfig | DiscreteDecisionMambaConfig


def make_core_config(config: AnyConfig, hidden_size: int) -> CoreConfig:
    """Say in our terms what the network is.

    Args:
        config: The face's config.
        hidden_size: Output size of its encoder.

    Raises:
        ConfigError: A value is out of its range; names it as d3rlpy does.
    """
    fields = {ours: getattr(config, theirs) for theirs, ours in CORE_NAMES.items()}
    time_encoding = config.time_encoding or _TIME_ENCODINGS[config.position_encoding_type]
    embedding = config.embedding
    if embedding is None:
        embedding = "tanh" if isinstance(config, DiscreteDecisionMambaConfig) else "norm"
    if config.activation_type in _CORE_ACTIVATIONS:  # the others are put in place afterwards
        fields["activation"] = config.activation_type
    try:
        return CoreConfig(
            **fields,
            hidden_size=hidden_size,
            embedding=embedding,  # type: ignore[arg-type]
            time_encoding=time_encoding,  # type: ignore[arg-type]
            return_scale=1.0,  # the reward scaler's to do, as the observation scaler's
            normalize_observations=False,
        )
    except ConfigError as error:
        raise ConfigError(_in_their_terms(str(error), config)) from None


def check_fields(config: AnyConfig) -> None:
    """Check every field that needs no data to be checked; numbers become Python's own.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.
    """
    if config.position_encoding_type not in _TIME_ENCODINGS:
        choices = " or ".join(f"d3rlpy.{encoding}" for encoding in _TIME_ENCODINGS)
        raise ConfigError(
            f"position_encoding_type={config.position_encoding_type!r}: give {choices}"
        )
    for name in ("attn_dropout", "embed_dropout"):
        setattr(config, name, check_setting("dropout", getattr(config, name), name))
    for name in ("activation_type", "embed_activation_type"):
        value = getattr(config, name, "none")
        if value not in _ACTIVATIONS:
            raise ConfigError(
                f"{name}={value!r}: choose one of {', '.join(map(repr, _ACTIVATIONS))}"
            )
    if isinstance(config, DiscreteDecisionMambaConfig):
        for name in ("warmup_tokens", "final_tokens"):
            steps = check_number(name, getattr(config, name), 0.0, words="of steps, at least 0")
            setattr(config, name, int(steps) if steps.is_integer() else steps)
    config.seed = check_optional_integer("seed", config.seed, 0)
    # The width is the encoder's, which is not known yet: one that the heads divide stands for it.
    n_heads = check_setting("n_heads", config.num_heads, "num_heads")
    core = make_core_config(config, hidden_size=n_heads)
    for theirs, ours in CORE_NAMES.items():
        setattr(config, theirs, getattr(core, ours))


def _in_their_terms(message: str, config: AnyConfig) -> str:
    """Name settings as the face does."""
    names = {ours: theirs for theirs, ours in CORE_NAMES.items()}
    names["hidden_size"] = "the encoder's output size, "
    if config.time_encoding is None:
        for encoding, value in _TIME_ENCODINGS.items():
            message = message.replace(
                f'time_encoding="{value}"', f"position_encoding_type={encoding}"
            )
    return re.sub(r"\b(\w+)(?==)", lambda match: names.get(match[1], match[1]), message)
