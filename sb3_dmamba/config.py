"""``DecisionMambaConfig``: every setting of a model and its training, with its default."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from sb3_dmamba.checks import (
    check_flag,
    check_integer,
    check_number,
    check_optional_integer,
    did_you_mean,
    near_names,
)
from sb3_dmamba.errors import ConfigError

Memory = Literal["window", "stream"]


@dataclass(frozen=True)
class DecisionMambaConfig:
    """Settings of a Decision Mamba (or Decision Transformer) and of its training.

    The defaults are the paper's recipe for D4RL locomotion, except where a comment says so;
    ``sb3_dmamba.list_tasks()`` has the recipe of each task.

    Args:
        mixer: What mixes the tokens: ``"mamba"`` (Decision Mamba), ``"attention"`` (Decision
            Transformer) or ``"convolution"`` (Decision ConvFormer). Nothing else changes between
            them.
        context_length: Steps in a training window, and the steps that ``memory="window"`` sees.
        hidden_size: Width of every token.
        n_layers: Number of blocks.
        channel_mixing: Whether an MLP (4x) follows the mixer in each block.
        activation: The MLP's: ``"gelu"``, or ``"relu"`` as in Decision Transformer's Gym code.
        dropout: Probability of dropping an activation, in training only.
        d_state: States per channel of the Mamba mixer.
        d_conv: Taps of its causal convolution.
        expand: Its inner width over ``hidden_size``.
        dt_rank: Rank of its step-size projection; None is ``ceil(hidden_size / 16)``.
        n_heads: Heads of the attention mixer.
        filter_length: Tokens that a filter of the convolution mixer spans, the present one
            included.
        init: ``"mamba"`` is ``mamba_ssm.Mamba``'s own initialisation; ``"paper"`` is the official
            code's N(0, 0.02) and zero bias on every linear layer, Mamba's included.
        encoder: ``"linear"``, ``"nature_cnn"``, or ``"auto"`` by the observation space.
        embedding: ``"norm"`` puts a LayerNorm on the embedded tokens (the paper's Gym model),
            ``"tanh"`` a tanh on each embedding (its Atari model).
        time_encoding: ``"timestep"`` adds a learned embedding of the step in the episode to the
            three tokens of a step; ``"global"`` adds it together with a learned embedding of the
            token's place in the window (the paper's Atari model; works with ``memory="window"``);
            ``"none"`` adds nothing, for a mixer that knows the order by itself.
        max_timestep: Size of the timestep table; later steps share its last entry.
        normalize_observations: Whether observations are standardised with the dataset's mean and
            standard deviation. Images are divided by 255 either way.
        return_scale: Returns-to-go are divided by this, in the environment's units.
        memory: How acting remembers: ``"window"`` re-encodes the last ``context_length`` steps at
            each step, as the paper does; ``"stream"`` carries the recurrent state at a constant
            cost a step.
        carry_state: Whether training carries the recurrent state, without its gradient, from a
            window to the one after it in the episode, as ``memory="stream"`` does in acting
            (truncated backpropagation through time). Episodes are then seen from their start to
            their end, in windows that do not overlap. Gradients still stop where a window
            begins, so what matters only after more than ``context_length`` steps is not learnt.
        burn_in: Steps before each training window that bring the recurrent state to where the
            window starts, without loss or gradient. Windows are drawn as ever, and the state is
            never older than the weights, at the price of a forward pass over these steps.
        n_updates: Optimiser steps of one ``fit``.
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
        precision: ``"fp32"``, or ``"bf16"`` for matrix products in bfloat16.
        backend: Implementation of the operations: ``"auto"`` picks the fastest that works on the
            device; a name (``"reference"``, ``"cpu"``, ...) is used or raises.
        data_device: Where batches are put together in training: ``"device"`` keeps the dataset
            beside the model, ``"cpu"`` in the computer's own memory (a thread then fetches batches
            ahead for a GPU), ``"auto"`` is the first on a GPU where it fits. Batches are the same.
        cuda_graph: Whether updates run as CUDA graphs, without Python between their kernels:
            ``"on"``, ``"off"``, or ``"auto"`` on a CUDA device if a first replay does what the
            plain update does. Acting launches its kernels one by one.

    Raises:
        ConfigError: A value is out of its range; names the field, the value and the range.

    Source: Ota 2024 (arXiv:2403.19925), appendix; Chen et al. 2021 (arXiv:2106.01345), appendix.
    """

    mixer: Literal["mamba", "attention", "convolution"] = "mamba"
    context_length: int = 20
    hidden_size: int = 128
    n_layers: int = 3
    channel_mixing: bool = True
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
    time_encoding: Literal["timestep", "global", "none"] = "timestep"
    max_timestep: int = 1000
    normalize_observations: bool = True
    return_scale: float = 1000.0
    memory: Memory = "window"
    carry_state: bool = False
    burn_in: int = 0
    n_updates: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_updates: int | None = None
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_fraction: float = 0.1
    decay_updates: int | None = None
    weight_decay: float = 1e-4
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 0.25
    precision: Literal["fp32", "bf16"] = "fp32"
    backend: str = "auto"
    data_device: Literal["auto", "cpu", "device"] = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        checked = _check_choices(self)
        if callable(self.learning_rate):  # Stable-Baselines3's schedules
            raise ConfigError(
                "learning_rate is a function: give the highest rate, and the schedule by "
                "lr_schedule='linear' (or 'cosine', 'constant'), warmup_updates and "
                "final_lr_fraction",
                setting="learning_rate",
                value=self.learning_rate,
            )
        for name in (*_MINIMA, *_RANGES):
            checked[name] = check_setting(name, getattr(self, name))
        checked["adam_betas"] = _check_betas(self.adam_betas)
        if not isinstance(self.backend, str) or not self.backend:
            raise ConfigError(
                f'backend={self.backend!r}: give "auto" or an implementation\'s name',
                setting="backend",
                value=self.backend,
            )
        checked["backend"] = str.__str__(self.backend)  # of a subclass, NumPy's say, Python's own
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_combinations(self)

    @property
    def resolved_dt_rank(self) -> int:
        """Rank of the step-size projection, with None resolved."""
        return self.dt_rank or math.ceil(self.hidden_size / 16)

    def replace(self, **overrides: Any) -> DecisionMambaConfig:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: A name is not a field (suggests the nearest), or a value is out of range.
        """
        _check_names(overrides)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {**dataclasses.asdict(self), "adam_betas": list(self.adam_betas)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecisionMambaConfig:
        """Build a config from what :meth:`to_dict` returned; absent fields take their defaults.

        Raises:
            ConfigError: As :meth:`replace`.
        """
        _check_names(fields)
        return cls(**fields)


_MINIMA = {  # of integers
    "context_length": 1,
    "hidden_size": 1,
    "n_layers": 1,
    "d_state": 1,
    "d_conv": 1,
    "expand": 1,
    "dt_rank": 1,
    "n_heads": 1,
    "filter_length": 1,
    "max_timestep": 1,
    "burn_in": 0,
    "n_updates": 1,
    "batch_size": 1,
    "warmup_updates": 0,
    "decay_updates": 1,
}
_ABOVE_ZERO = (math.ulp(0.0), math.inf, "above 0")
_RANGES = {  # of floats: lowest, highest, and the two in words
    "dropout": (0.0, 1.0 - 1e-9, "of at least 0 and below 1"),
    "return_scale": _ABOVE_ZERO,
    "learning_rate": _ABOVE_ZERO,
    "final_lr_fraction": (0.0, 1.0, "from 0 to 1"),
    "weight_decay": (0.0, math.inf, "of at least 0"),
    "max_grad_norm": _ABOVE_ZERO,
}


def check_setting(field: str, value: Any, name: str | None = None) -> Any:
    """Return a number as Python's, or refuse it where it is out of a field's range.

    Args:
        field: A number of :class:`DecisionMambaConfig`, whose range counts.
        value: What was given for it; None where the field may be None.
        name: What the user knows it as, where that is not the field's name.

    Raises:
        ConfigError: The value is of another type, or out of range; names it and the range.
    """
    name = name or field
    if field in _RANGES:
        return check_number(name, value, *_RANGES[field])
    is_optional = _type_hints()[field] is not int
    return (check_optional_integer if is_optional else check_integer)(name, value, _MINIMA[field])


@functools.cache
def _type_hints() -> dict[str, Any]:
    return get_type_hints(DecisionMambaConfig)


def _check_names(fields: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(DecisionMambaConfig)]
    for name in fields:
        if name not in known:
            hint = did_you_mean(near_names(name, known)) or f"known settings: {', '.join(known)}"
            raise ConfigError(f"no setting is called {name!r}: {hint}", setting=name, choices=known)


def _check_choices(config: DecisionMambaConfig) -> dict[str, Any]:
    """Return the fields that are one of a few texts, or true or false, as Python's own."""
    checked: dict[str, Any] = {}
    for name, hint in _type_hints().items():
        choices = get_args(hint)
        value = getattr(config, name)
        if choices and all(isinstance(choice, str) for choice in choices):
            if value not in choices:
                known = ", ".join(map(repr, choices))
                raise ConfigError(
                    f"{name}={value!r}: choose one of {known}",
                    setting=name,
                    value=value,
                    choices=choices,
                )
            checked[name] = choices[choices.index(value)]
        elif hint is bool:
            checked[name] = check_flag(name, value)
    return checked


def _check_combinations(config: DecisionMambaConfig) -> None:
    if config.mixer == "attention" and config.hidden_size % config.n_heads:
        raise ConfigError(
            f"hidden_size={config.hidden_size} is not a multiple of n_heads={config.n_heads}",
            setting="n_heads",
            value=config.n_heads,
        )
    if config.mixer == "convolution" and not config.channel_mixing:
        raise ConfigError(
            'mixer="convolution" mixes no channels by itself: use channel_mixing=True',
            setting="channel_mixing",
            value=False,
            choices=[True],
        )
    if config.carry_state and config.burn_in:
        raise ConfigError(
            f"burn_in={config.burn_in} and carry_state=True exclude each other: use "
            f"carry_state=False or burn_in=0",
            setting="burn_in",
            value=config.burn_in,
            choices=[0],
        )
    if config.time_encoding == "global":
        _check_global_time(config)


def _check_global_time(config: DecisionMambaConfig) -> None:
    """Refuse what has steps outside the window, which this time encoding has no place for."""
    uses = {
        'memory="stream"': (config.memory == "stream", 'memory="window"'),
        "carry_state=True": (config.carry_state, "carry_state=False"),
        f"burn_in={config.burn_in}": (config.burn_in > 0, "burn_in=0"),
    }
    for setting, (is_used, instead) in uses.items():
        if is_used:
            raise ConfigError(
                f'{setting} has no place in the window for time_encoding="global": '
                f'use {instead} or time_encoding="timestep"',
                setting=setting.partition("=")[0],
            )


def _check_betas(betas: Any) -> tuple[float, float]:
    try:
        first, second = betas
        if 0.0 <= first < 1.0 and 0.0 <= second < 1.0:
            return float(first), float(second)
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        f"adam_betas={betas!r}: give two numbers in [0, 1)", setting="adam_betas", value=betas
    )
