"""The only home of defaults: its checks, its JSON, its documentation."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(DecisionMambaConfig)]

# A valid value other than the default, for every field.
OTHER_VALUES: dict[str, Any] = {
    "mixer": "attention",
    "context_length": 7,
    "hidden_size": 96,
    "n_layers": 2,
    "channel_mixing": False,
    "activation": "relu",
    "dropout": 0.0,
    "d_state": 8,
    "d_conv": 2,
    "expand": 1,
    "dt_rank": 3,
    "n_heads": 4,
    "filter_length": 3,
    "init": "paper",
    "encoder": "nature_cnn",
    "embedding": "tanh",
    "time_encoding": "global",
    "max_timestep": 10,
    "normalize_observations": False,
    "return_scale": 1.0,
    "memory": "stream",
    "carry_state": True,
    "burn_in": 12,
    "n_updates": 5,
    "batch_size": 3,
    "learning_rate": 6e-4,
    "warmup_updates": 0,
    "lr_schedule": "cosine",
    "final_lr_fraction": 0.0,
    "decay_updates": 4,
    "weight_decay": 0.0,
    "adam_betas": (0.8, 0.95),
    "max_grad_norm": 1.0,
    "precision": "bf16",
    "backend": "reference",
    "data_device": "cpu",
    "cuda_graph": "off",
}

BAD_INTEGERS = [0, -1, 1.0, 1.5, True, "3", float("nan")]
BAD_NUMBERS = [-0.1, float("nan"), float("inf"), -float("inf"), "0.1", None, True]
BAD_VALUES: dict[str, list[Any]] = {
    "mixer": ["mamba2", "Mamba", "", None, 1],
    "context_length": [*BAD_INTEGERS, None],
    "hidden_size": [*BAD_INTEGERS, None],
    "n_layers": [*BAD_INTEGERS, None],
    "channel_mixing": [0, 1, "yes", None],
    "activation": ["tanh", None],
    "dropout": [*BAD_NUMBERS, 1.0, 1.5],
    "d_state": [*BAD_INTEGERS, None],
    "d_conv": [*BAD_INTEGERS, None],
    "expand": [*BAD_INTEGERS, None],
    "dt_rank": BAD_INTEGERS,
    "n_heads": [*BAD_INTEGERS, None],
    "filter_length": [*BAD_INTEGERS, None],
    "init": ["", "normal", None],
    "encoder": ["cnn", None],
    "embedding": ["relu", None],
    "time_encoding": ["rotary", None],
    "max_timestep": [*BAD_INTEGERS, None],
    "normalize_observations": [0, "no", None],
    "return_scale": [*BAD_NUMBERS, 0.0],
    "memory": ["both", None],
    "carry_state": [0, 1, "yes", None],
    "burn_in": [-1, 1.0, 1.5, True, "3", float("nan"), None],
    "n_updates": [*BAD_INTEGERS, None],
    "batch_size": [*BAD_INTEGERS, None],
    "learning_rate": [*BAD_NUMBERS, 0.0],
    "warmup_updates": [-1, 0.5, True, "3"],
    "lr_schedule": ["step", None],
    "final_lr_fraction": [*BAD_NUMBERS, 1.1],
    "decay_updates": BAD_INTEGERS,
    "weight_decay": BAD_NUMBERS,
    "adam_betas": [
        (0.9,),
        (0.9, 1.0),
        (-0.1, 0.9),
        (0.9, float("nan")),
        (0.9, 0.9, 0.9),
        ("a", "b"),
        0.9,
        None,
    ],
    "max_grad_norm": [*BAD_NUMBERS, 0.0],
    "precision": ["fp16", "float32", None],
    "backend": ["", None, 3],
    "data_device": ["cuda", "gpu", None, True],
    "cuda_graph": [True, False, None, "yes"],
}


def test_the_tables_cover_every_field() -> None:
    assert list(OTHER_VALUES) == FIELDS
    assert list(BAD_VALUES) == FIELDS


def test_a_schedule_of_stable_baselines3_is_told_what_to_write() -> None:
    schedule: Any = lambda left: 1e-3 * left  # noqa: E731
    with pytest.raises(ConfigError, match="lr_schedule='linear'") as raised:
        DecisionMambaConfig(learning_rate=schedule)
    assert (raised.value.setting, raised.value.value) == ("learning_rate", schedule)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": -1}, "learning_rate=-1: give a finite number above 0"),
        ({"dropout": 1.0}, "dropout=1.0: give a finite number of at least 0 and below 1"),
        ({"final_lr_fraction": 2}, "final_lr_fraction=2: give a finite number from 0 to 1"),
        ({"weight_decay": -1}, "weight_decay=-1: give a finite number of at least 0"),
    ],
)
def test_a_range_is_told_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig(**settings)
    assert str(raised.value) == words


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_field_survives_json(name: str) -> None:
    config = DecisionMambaConfig().replace(**{name: OTHER_VALUES[name]})
    assert getattr(config, name) == OTHER_VALUES[name] != getattr(DecisionMambaConfig(), name)
    again = DecisionMambaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert type(getattr(again, name)) is type(getattr(config, name))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values]
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig(**{name: value})
    assert raised.value.setting == name
    assert raised.value.value is value
    assert str(raised.value).startswith(f"{name}={value!r}: ")


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_value_in_a_file_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig.from_dict({name: BAD_VALUES[name][0]})
    assert raised.value.setting == name


@pytest.mark.parametrize("name", FIELDS)
def test_numpys_scalars_are_stored_as_pythons(name: str) -> None:
    plain = DecisionMambaConfig().replace(**{name: OTHER_VALUES[name]})
    scalar = np.array(OTHER_VALUES[name])[()]  # of an array of choices, as in a sweep
    config = DecisionMambaConfig().replace(**{name: scalar})
    assert config == plain
    assert hash(config) == hash(plain)
    assert type(getattr(config, name)) is type(getattr(plain, name))
    assert repr(config.to_dict()) == repr(plain.to_dict())
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())


@pytest.mark.parametrize("name", ["context_length", "burn_in", "dt_rank"])
@pytest.mark.parametrize("value", [np.float64(3.0), np.float32(3.0), np.True_, np.int64(-1)])
def test_numpys_scalars_are_checked_like_pythons(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig(**{name: value})
    assert (raised.value.setting, raised.value.value) == (name, value)


def test_narrow_floats_keep_their_value() -> None:
    config = DecisionMambaConfig().replace(learning_rate=np.float32(1e-3), return_scale=10)
    assert config.learning_rate == float(np.float32(1e-3))
    assert json.dumps(config.to_dict()["return_scale"]) == "10.0"
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig().replace(
            dropout=np.float32(1.0 - 1e-9)
        )  # float32 has no number so near to 1
    assert raised.value.setting == "dropout"


def test_absent_fields_take_their_defaults() -> None:
    assert DecisionMambaConfig.from_dict({}) == DecisionMambaConfig()
    config = DecisionMambaConfig.from_dict({"hidden_size": 64})
    assert config == DecisionMambaConfig(hidden_size=64)


def test_unknown_fields_get_a_suggestion() -> None:
    for change in (DecisionMambaConfig().replace, lambda **f: DecisionMambaConfig.from_dict(f)):
        with pytest.raises(ConfigError, match="did you mean 'hidden_size'") as raised:
            change(hiden_size=64)
        assert (raised.value.setting, raised.value.choices) == ("hiden_size", tuple(FIELDS))
        with pytest.raises(ConfigError, match=", ".join(FIELDS)) as raised:
            change(zzz=1)
        assert (raised.value.setting, raised.value.choices) == ("zzz", tuple(FIELDS))


@pytest.mark.parametrize(
    ("settings", "setting", "fix"),
    [
        ({"mixer": "attention", "n_heads": 3}, "n_heads", "hidden_size=128"),
        ({"memory": "stream", "time_encoding": "global"}, "memory", 'memory="window"'),
        ({"mixer": "convolution", "channel_mixing": False}, "channel_mixing", "=True"),
        ({"carry_state": True, "burn_in": 3}, "burn_in", "carry_state=False or burn_in=0"),
        ({"carry_state": True, "time_encoding": "global"}, "carry_state", "carry_state=False"),
        ({"burn_in": 3, "time_encoding": "global"}, "burn_in", "burn_in=0"),
    ],
)
def test_combinations_that_cannot_work(settings: dict[str, Any], setting: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as raised:
        DecisionMambaConfig(**settings)
    assert raised.value.setting == setting


def test_a_setting_of_another_mixer_is_not_checked() -> None:
    assert DecisionMambaConfig(n_heads=3).n_heads == 3  # Mamba has none


def test_rank_of_the_step_size() -> None:
    assert DecisionMambaConfig(hidden_size=128).resolved_dt_rank == 8
    assert DecisionMambaConfig(hidden_size=100).resolved_dt_rank == 7
    assert DecisionMambaConfig(dt_rank=3).resolved_dt_rank == 3


def test_is_frozen_and_replace_copies() -> None:
    config = DecisionMambaConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 1  # type: ignore[misc]
    assert config.replace(hidden_size=64).hidden_size == 64
    assert config.hidden_size == 128


def test_docstring_lists_exactly_the_fields() -> None:
    text = inspect.getdoc(DecisionMambaConfig)
    assert text is not None
    arguments = text.split("Args:\n")[1].split("\n\n")[0]
    assert re.findall(r"^    (\w+): ", arguments, flags=re.MULTILINE) == FIELDS
