"""``DecisionMambaConfig``: settings of a model and its training, with defaults and ranges."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sb3_dmamba.checks import check_flag, check_integer, check_number, did_you_mean, near_names
from sb3_dmamba.errors import ConfigError

Memory = Literal["window", "stream"]
Recipe = Literal["default", "paper"]


@dataclass(frozen=True)
class DecisionMambaConfig:
    """Settings of a Decision Mamba (or Decision Transformer) and of its training.

    The defaults are the recipe that measures best over several small datasets (docs/results.md);
    :meth:`from_recipe` gives the paper's. Where None is a value of the data, ``fit`` puts it in.
    ``sb3_dmamba.list_tasks()`` lists the recipe of each task.

    Args:
        mixer: Token mixer: ``"mamba"`` (Decision Mamba), ``"attention"`` (Decision Transformer)
            or ``"convolution"`` (Decision ConvFormer). The rest of the model is the same.
        context_length: Steps in a training window, and in the window of ``memory="window"``.
        hidden_size: Width of every token.
        n_layers: Number of blocks.
        channel_mixing: Whether an MLP (4x) follows the mixer in each block; None is False for
            Mamba, which mixes channels itself, and True for the other mixers.
        activation: The MLP's: ``"gelu"``, or ``"relu"`` as in Decision Transformer's Gym code.
        dropout: Probability of zeroing an activation in training.
        d_state: States per channel of the Mamba mixer.
        d_conv: Taps of its causal convolution.
        expand: Its inner width over ``hidden_size``.
        dt_rank: Rank of its step-size projection; None is ``ceil(hidden_size / 16)``.
        n_heads: Heads of the attention mixer.
        filter_length: Tokens spanned by a filter of the convolution mixer, the current one
            included.
        init: ``"mamba"`` is ``mamba_ssm.Mamba``'s own initialisation; ``"paper"`` is the official
            code's N(0, 0.02) and zero bias on every linear layer, Mamba's included.
        encoder: ``"linear"``, ``"nature_cnn"``, or ``"auto"`` by the observation space.
        embedding: ``"norm"`` puts a LayerNorm on the embedded tokens (the paper's Gym model),
            ``"tanh"`` a tanh on each embedding (its Atari model).
        time_encoding: ``"timestep"`` adds a learned embedding of the step in the episode to the
            three tokens of a step; ``"global"`` adds it together with a learned embedding of the
            token's place in the window (the paper's Atari model; works with ``memory="window"``);
            ``"condition"`` gives the step, as a share of ``max_timestep``, to what modulates the
            norms, beside the return-to-go (``conditioning="decoupled"`` alone): the rate at which
            rewards must come follows from both; ``"none"`` adds nothing. None is by the data:
            ``"condition"`` where most episodes end at a time limit, else ``"none"``; with
            ``conditioning="sequence"`` it is ``"timestep"``.
        max_timestep: Size of the timestep table; later steps share its last entry, and count as
            its last step in ``"condition"``. None is the longest episode of the data.
        normalize_observations: Whether observations are standardised with the dataset's mean and
            standard deviation. Images are divided by 255 either way.
        return_scale: Returns-to-go are divided by this, in the environment's units; None is their
            standard deviation in the data.
        memory: How acting remembers: ``"window"`` re-encodes the last ``context_length`` steps at
            each step, as the paper does; ``"stream"`` carries the recurrent state at a constant
            cost per step.
        carry_state: Whether training carries the recurrent state, without its gradient, from a
            window to the next window of the episode, as ``memory="stream"`` does in acting
            (truncated backpropagation through time). Episodes are then read from start to end in
            windows that do not overlap. Gradients still stop at a window's start, so
            dependencies longer than ``context_length`` steps are not learnt.
        burn_in: Steps before each training window that compute the recurrent state at its start,
            without loss or gradient. Windows are drawn as without burn-in. The state always
            comes from the current weights, at the cost of a forward pass over these steps.
        conditioning: How the return-to-go reaches the model. ``"sequence"``: a token of its own
            before each step's state and action, as in the paper. ``"decoupled"``: the sequence
            holds states and actions alone, and the return-to-go of a step scales and shifts the
            norms of that step's tokens (adaptive LayerNorm); a third fewer tokens.
        sampling: Which windows are drawn: ``"uniform"`` over all steps, or ``"balanced"`` over
            episode returns: the share ``balance`` of the windows is drawn uniformly over ten equal
            bins of the data's range of returns (those that hold episodes), then over the steps of
            the bin. Not with ``carry_state``, which reads every episode once. None is
            ``"balanced"`` where that is possible.
        balance: That share, from 0 to 1; the rest is uniform. No effect with ``"uniform"``.
        n_updates: Optimiser steps of one ``fit``; None is by the size of the data: every step is
            seen 20 times, in 2,000 to 100,000 updates.
        batch_size: Windows in an update.
        learning_rate: AdamW's, at the top of the schedule.
        warmup_updates: Updates over which the learning rate rises linearly from zero; None is a
            tenth of the run, as the paper's 10,000 of 100,000.
        lr_schedule: What follows the warm-up: ``"constant"``, or ``"linear"`` or ``"cosine"``
            decay to ``final_lr_fraction``.
        final_lr_fraction: The learning rate at the end, as a fraction of ``learning_rate``.
        decay_updates: Updates after which the decay is complete; None is the end of the run.
        weight_decay: AdamW's, on the weights of matrix products alone.
        adam_betas: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        ema_decay: Decay per update of an exponential moving average of the weights, such as 0.998;
            0 keeps none. The average then acts, is evaluated and exported, and the raw weights go
            on training. Update u, from 0, has the decay ``min(ema_decay, (1 + u) / (10 + u))``.
        precision: Of matrix products in training: ``"fp32"``; ``"bf16"`` (bfloat16, in the blocks);
            ``"tf32"``, on CUDA alone; or ``"auto"``: bf16 where the device multiplies in it
            natively, else fp32, which a model keeps when training goes on elsewhere.
        backend: Implementation of the operations: ``"auto"`` picks the fastest that works on the
            device; one requested by name (``"reference"``, ``"cpu"``, ...) is used or raises.
        data_device: Where the dataset is kept in training: ``"device"`` is the model's device,
            ``"cpu"`` the host's memory (batches are then prefetched for a GPU), ``"auto"`` the
            GPU if the dataset fits, else the host. Batches are the same.
        cuda_graph: Whether updates run as CUDA graphs, without Python between their kernels:
            ``"on"``, ``"off"``, or ``"auto"``: on a CUDA device, if the first replay equals the
            plain update. Acting launches its kernels one by one.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: Ota 2024 (arXiv:2403.19925), appendix; Chen et al. 2021 (arXiv:2106.01345), appendix.
    """

    mixer: Literal["mamba", "attention", "convolution"] = "mamba"
    context_length: int = 10
    hidden_size: int = 128
    n_layers: int = 3
    channel_mixing: bool | None = None
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.1
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    n_heads: int = 1
    filter_length: int = 6
    init: Literal["mamba", "paper"] = "mamba"  # the official code's slows learning, see docs
    encoder: Literal["auto", "linear", "nature_cnn"] = "auto"
    embedding: Literal["norm", "tanh"] = "norm"
    time_encoding: Literal["condition", "timestep", "global", "none"] | None = None
    max_timestep: int | None = None
    normalize_observations: bool = True
    return_scale: float | None = None
    memory: Memory = "window"
    carry_state: bool = False
    burn_in: int = 0
    conditioning: Literal["sequence", "decoupled"] = "decoupled"
    sampling: Literal["uniform", "balanced"] | None = None
    balance: float = 0.5
    n_updates: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_updates: int | None = None
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_lr_fraction: float = 0.05
    decay_updates: int | None = None
    weight_decay: float = 0.1
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 0.25
    ema_decay: float = 0.0
    precision: Literal["fp32", "bf16", "tf32", "auto"] = "fp32"
    backend: str = "auto"
    data_device: Literal["auto", "cpu", "device"] = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        if callable(self.learning_rate):  # a schedule of Stable-Baselines3's
            message = (
                "learning_rate is a function: give the highest rate, and the schedule by "
                "lr_schedule='linear' (or 'cosine', 'constant'), warmup_updates and "
                "final_lr_fraction"
            )
            raise ConfigError(message, setting="learning_rate", value=self.learning_rate)
        for name in _type_hints():  # numbers become Python's own, for JSON and hashes
            object.__setattr__(self, name, check_setting(name, getattr(self, name)))
        _check_combinations(self)

    @property
    def resolved_dt_rank(self) -> int:
        """Rank of the step-size projection, with None resolved."""
        return self.dt_rank or math.ceil(self.hidden_size / 16)

    @property
    def resolved_n_updates(self) -> int:
        """Optimiser steps of one ``fit``, once the data has decided."""
        assert self.n_updates is not None
        return self.n_updates

    @property
    def resolved_return_scale(self) -> float:
        """What returns-to-go are divided by; 1 where no data has decided."""
        return 1.0 if self.return_scale is None else self.return_scale

    @property
    def resolved_channel_mixing(self) -> bool:
        """Whether an MLP follows the mixer, with None resolved."""
        return self.mixer != "mamba" if self.channel_mixing is None else self.channel_mixing

    @property
    def resolved_time_encoding(self) -> str:
        """How the model sees time; with None as if every episode ended at a time limit."""
        by_default = "condition" if self.conditioning == "decoupled" else "timestep"
        return self.time_encoding or by_default

    @property
    def resolved_sampling(self) -> str:
        """Which windows are drawn, with None resolved."""
        return self.sampling or ("uniform" if self.carry_state else "balanced")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an environment step, 3 with the return-to-go among them, else 2."""
        return 3 if self.conditioning == "sequence" else 2

    def replace(self, **overrides: Any) -> DecisionMambaConfig:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: A name is not a field (suggests the nearest), or a value is out of range.
        """
        _check_names(overrides)
        return dataclasses.replace(self, **overrides)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **overrides: Any) -> DecisionMambaConfig:
        """Build a config from a recipe's name, with some fields changed.

        Args:
            recipe: ``"default"``, or ``"paper"``: the paper's for D4RL locomotion.
            **overrides: Fields to change.

        Raises:
            ConfigError: There is no such recipe; or as :meth:`replace`.
        """
        if recipe not in _RECIPES:
            known = ", ".join(map(repr, _RECIPES))
            message = f"recipe={recipe!r}: choose one of {known}"
            raise ConfigError(message, setting="recipe", value=recipe, choices=_RECIPES)
        return cls().replace(**{**_RECIPES[recipe], **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {**dataclasses.asdict(self), "adam_betas": list(self.adam_betas)}

    def to_file(self) -> dict[str, Any]:
        """Return :meth:`to_dict` without later fields than 0.1.0's, where they change nothing.

        0.1.0 can then read the file.
        """
        fields = self.to_dict()
        return {k: v for k, v in fields.items() if k not in _SINCE_0_1 or v != _SINCE_0_1[k]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecisionMambaConfig:
        """Build a config from the result of :meth:`to_dict` or :meth:`to_file`.

        Absent fields take the paper's values: 0.1.0 knew no others.

        Raises:
            ConfigError: As :meth:`replace`.
        """
        return cls.from_recipe("paper", **fields)


# What 0.1.0 did without these fields.
_SINCE_0_1: dict[str, Any] = {
    "conditioning": "sequence",
    "sampling": "uniform",
    "balance": 0.5,
    "ema_decay": 0.0,
}

# Ota 2024 (arXiv:2403.19925), D4RL locomotion: the defaults of 0.1.0.
_PAPER: dict[str, Any] = {
    "context_length": 20,
    "channel_mixing": True,
    "time_encoding": "timestep",
    "max_timestep": 1000,
    "return_scale": 1000.0,
    **_SINCE_0_1,
    "n_updates": 100_000,
    "lr_schedule": "constant",
    "final_lr_fraction": 0.1,
    "weight_decay": 1e-4,
}
_RECIPES: dict[str, dict[str, Any]] = {"default": {}, "paper": _PAPER}

_ONES = (
    *("context_length", "hidden_size", "n_layers", "d_state", "d_conv", "expand", "dt_rank"),
    *("n_heads", "filter_length", "max_timestep", "n_updates", "batch_size", "decay_updates"),
)
_MINIMA = {**dict.fromkeys(_ONES, 1), "burn_in": 0, "warmup_updates": 0}  # of integers
_ABOVE_ZERO = (math.ulp(0.0), math.inf, "above 0")
_BELOW_ONE = (0.0, 1.0 - 1e-9, "of at least 0 and below 1")
_LONGEST_CONTEXT = 1 << 20  # steps; acting allocates them
_LARGEST = 2**63 - 1  # integer of torch's
_RANGES = {  # of floats: lowest, highest, and both in words
    "dropout": _BELOW_ONE,
    "balance": (0.0, 1.0, "from 0 to 1"),
    "ema_decay": _BELOW_ONE,
    "return_scale": _ABOVE_ZERO,
    "learning_rate": _ABOVE_ZERO,
    "final_lr_fraction": (0.0, 1.0, "from 0 to 1"),
    "weight_decay": (0.0, math.inf, "of at least 0"),
    "max_grad_norm": _ABOVE_ZERO,
}


def check_setting(field: str, value: Any, name: str | None = None) -> Any:
    """Validate the value of one field and convert it to Python's own type."""
    name, hint = name or field, _type_hints()[field]
    if value is None and type(None) in get_args(hint):
        return None
    if field in _RANGES:
        return check_number(name, value, *_RANGES[field])
    if field in _MINIMA:
        most = _LONGEST_CONTEXT if field == "context_length" else _LARGEST
        return check_integer(name, value, _MINIMA[field], most)
    if bool in (hint, *get_args(hint)):
        return check_flag(name, value)
    for each in (hint, *get_args(hint)):
        if get_origin(each) is Literal:
            return _check_choice(name, value, get_args(each))
    return _check_betas(name, value) if field == "adam_betas" else _check_name(name, value)


@functools.cache
def _type_hints() -> dict[str, Any]:
    return get_type_hints(DecisionMambaConfig)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return choices[choices.index(value)]
    known = ", ".join(map(repr, choices))
    raise ConfigError(
        f"{name}={value!r}: choose one of {known}", setting=name, value=value, choices=choices
    )


def _check_name(name: str, value: Any) -> str:
    if isinstance(value, str) and value:
        return str.__str__(value)  # of a subclass such as NumPy's, Python's own
    raise ConfigError(
        f'{name}={value!r}: give "auto" or an implementation\'s name', setting=name, value=value
    )


def _check_betas(name: str, value: Any) -> tuple[float, float]:
    try:
        first, second = value
        if 0.0 <= first < 1.0 and 0.0 <= second < 1.0:
            return float(first), float(second)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name}={value!r}: give two numbers in [0, 1)", setting=name, value=value)


def _check_names(fields: Mapping[str, Any]) -> None:
    known = list(_type_hints())
    for name in fields:
        if name not in known:
            hint = did_you_mean(near_names(name, known)) or f"known settings: {', '.join(known)}"
            raise ConfigError(f"no setting is called {name!r}: {hint}", setting=name, choices=known)


def _check_combinations(config: DecisionMambaConfig) -> None:
    """Reject combinations of valid values that cannot work together."""
    if config.mixer == "attention" and config.hidden_size % config.n_heads:
        message = f"hidden_size={config.hidden_size} is not a multiple of n_heads={config.n_heads}"
        raise ConfigError(message, setting="n_heads", value=config.n_heads)
    if config.mixer == "convolution" and not config.resolved_channel_mixing:
        message = 'mixer="convolution" mixes no channels by itself: use channel_mixing=True'
        raise ConfigError(message, setting="channel_mixing", value=False, choices=[True])
    if config.time_encoding == "condition" and config.conditioning == "sequence":
        message = (
            'time_encoding="condition" modulates norms, and conditioning="sequence" has no '
            'modulation: use conditioning="decoupled" or time_encoding="timestep"'
        )
        raise ConfigError(
            message, setting="time_encoding", value="condition", choices=["timestep", "none"]
        )
    if config.carry_state and config.burn_in:
        message = (
            f"burn_in={config.burn_in} and carry_state=True exclude each other: use "
            f"carry_state=False or burn_in=0"
        )
        raise ConfigError(message, setting="burn_in", value=config.burn_in, choices=[0])
    if config.carry_state and config.sampling == "balanced":
        message = (
            f'sampling="{config.sampling}" and carry_state=True exclude each other, since carried '
            f'states go through whole episodes: use carry_state=False or sampling="uniform"'
        )
        raise ConfigError(message, setting="sampling", value=config.sampling, choices=["uniform"])
    if config.time_encoding != "global":
        return
    # The global encoding has a position for each token of the window, and none before it.
    for setting, accepted in (("memory", "window"), ("carry_state", False), ("burn_in", 0)):
        value = getattr(config, setting)
        if value != accepted:
            given, instead = (
                f'{setting}="{each}"' if isinstance(each, str) else f"{setting}={each}"
                for each in (value, accepted)
            )
            message = (
                f'{given} has no place in the window for time_encoding="global": '
                f'use {instead} or time_encoding="timestep"'
            )
            raise ConfigError(message, setting=setting, value=value, choices=[accepted])
