"""The only home of defaults and ranges: its checks, its JSON, its documentation."""

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
NAN, INF = float("nan"), float("inf")

# Of every field a valid value other than the default, and values that are refused.
COUNT = [0, -1, 1.0, True, "3", NAN]
VALUES: dict[str, tuple[Any, list[Any]]] = {
    "mixer": ("attention", ["mamba2", "Mamba", "", None, 1]),
    "context_length": (7, [*COUNT, None]),
    "hidden_size": (96, [*COUNT, None]),
    "n_layers": (2, [*COUNT, None]),
    "channel_mixing": (False, [0, 1, "yes"]),
    "activation": ("relu", ["tanh", None]),
    "dropout": (0.0, [-0.1, 1.0, NAN, INF, "0.1", None, True]),
    "d_state": (8, [*COUNT, None]),
    "d_conv": (2, [*COUNT, None]),
    "expand": (1, [*COUNT, None]),
    "dt_rank": (3, COUNT),
    "n_heads": (4, [*COUNT, None]),
    "filter_length": (3, [*COUNT, None]),
    "init": ("paper", ["", None]),
    "encoder": ("nature_cnn", ["cnn", None]),
    "embedding": ("tanh", ["relu", None]),
    "time_encoding": ("global", ["rotary", 1]),
    "max_timestep": (10, COUNT),
    "normalize_observations": (False, [0, None]),
    "return_scale": (1.0, [0.0, -0.1, NAN, INF, "0.1", True]),
    "memory": ("stream", ["both", None]),
    "carry_state": (True, [0, None]),
    "burn_in": (12, [-1, 1.0, True, "3", None]),
    "conditioning": ("sequence", ["adaln", None]),
    "sampling": ("uniform", ["returns", 1, True]),
    "balance": (1.0, [-0.1, 1.1, NAN, "0.5", None, True]),
    "n_updates": (5, COUNT),
    "batch_size": (3, [*COUNT, None]),
    "learning_rate": (6e-4, [0.0, -0.1, NAN, INF, "0.1", None, True]),
    "warmup_updates": (0, [-1, 0.5, True, "3"]),
    "lr_schedule": ("cosine", ["step", None]),
    "final_lr_fraction": (0.0, [-0.1, 1.1, NAN, None]),
    "decay_updates": (4, COUNT),
    "weight_decay": (0.0, [-0.1, NAN, INF, None]),
    "adam_betas": (
        (0.8, 0.95),
        [(0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9, 0.9, 0.9), ("a", "b"), 0.9, None],
    ),
    "max_grad_norm": (1.0, [0.0, INF, None]),
    "ema_decay": (0.998, [-0.1, 1.0, NAN, "0.9", None, True]),
    "precision": ("tf32", ["fp16", None]),
    "backend": ("reference", ["", None, 3]),
    "data_device": ("cpu", ["cuda", None, True]),
    "cuda_graph": ("off", [True, None, "yes"]),
}


def test_the_table_covers_every_field() -> None:
    assert list(VALUES) == FIELDS


def test_a_bad_value_is_named() -> None:
    violations = []
    for name, (_, bad) in VALUES.items():
        for value in bad:
            try:
                DecisionMambaConfig(**{name: value})
            except ConfigError as error:
                is_named = error.setting == name and error.value is value
                if is_named and str(error).startswith(f"{name}={value!r}: "):
                    continue
            violations.append((name, value))
    assert not violations


def test_a_changed_field_survives_json_and_numpy() -> None:
    for name, (value, _) in VALUES.items():
        config = DecisionMambaConfig().replace(**{name: value})
        assert getattr(config, name) == value != getattr(DecisionMambaConfig(), name)
        read = DecisionMambaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert DecisionMambaConfig.from_dict(config.to_file()) == config
        scalar = np.array(value)[()]  # of an array of choices, as in a sweep
        swept = DecisionMambaConfig().replace(**{name: scalar})
        for other in (read, swept):
            assert other == config
            assert hash(other) == hash(config)
            assert type(getattr(other, name)) is type(getattr(config, name)), name
            assert json.dumps(other.to_dict()) == json.dumps(config.to_dict())


def test_files_say_nothing_of_what_0_1_0_did() -> None:
    config = DecisionMambaConfig(ema_decay=0.0, sampling="uniform", balance=0.25)
    assert config.to_dict().keys() - config.to_file().keys() == {"ema_decay", "sampling"}


def test_numpys_scalars_are_checked_like_pythons() -> None:
    for value in (np.float64(3.0), np.True_, np.int64(-1)):
        with pytest.raises(ConfigError) as raised:
            DecisionMambaConfig(dt_rank=value)  # type: ignore[arg-type]
        assert (raised.value.setting, raised.value.value) == ("dt_rank", value)
    narrow = DecisionMambaConfig().replace(learning_rate=np.float32(1e-3), return_scale=10)
    assert narrow.learning_rate == float(np.float32(1e-3))
    assert json.dumps(narrow.to_dict()["return_scale"]) == "10.0"
    with pytest.raises(ConfigError):  # float32 has no number so near to 1
        DecisionMambaConfig().replace(dropout=np.float32(1.0 - 1e-9))


def test_a_schedule_of_stable_baselines3_is_told_what_to_write() -> None:
    schedule: Any = lambda left: 1e-3 * left  # noqa: E731
    with pytest.raises(ConfigError, match="lr_schedule='linear'") as raised:
        DecisionMambaConfig(learning_rate=schedule)
    assert (raised.value.setting, raised.value.value) == ("learning_rate", schedule)


def test_unknown_fields_get_a_suggestion() -> None:
    for change in (DecisionMambaConfig().replace, lambda **f: DecisionMambaConfig.from_dict(f)):
        for name, hint in (("hiden_size", "did you mean 'hidden_size'"), ("zzz", FIELDS[-1])):
            with pytest.raises(ConfigError, match=hint) as raised:
                change(**{name: 64})
            assert (raised.value.setting, raised.value.choices) == (name, tuple(FIELDS))


@pytest.mark.parametrize(
    ("settings", "setting", "fix"),
    [
        ({"mixer": "attention", "n_heads": 3}, "n_heads", "hidden_size=128"),
        ({"memory": "stream", "time_encoding": "global"}, "memory", 'memory="window"'),
        ({"mixer": "convolution", "channel_mixing": False}, "channel_mixing", "=True"),
        ({"carry_state": True, "burn_in": 3}, "burn_in", "carry_state=False or burn_in=0"),
        ({"carry_state": True, "sampling": "balanced"}, "sampling", "carry_state=False"),
        ({"carry_state": True, "time_encoding": "global"}, "carry_state", "carry_state=False"),
        ({"burn_in": 3, "time_encoding": "global"}, "burn_in", "burn_in=0"),
    ],
)
def test_combinations_that_cannot_work(settings: dict[str, Any], setting: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as raised:
        DecisionMambaConfig(**settings)
    assert (raised.value.setting, raised.value.value) == (setting, settings[setting])


def test_rank_of_the_step_size() -> None:
    assert DecisionMambaConfig(hidden_size=128).resolved_dt_rank == 8
    assert DecisionMambaConfig(hidden_size=100).resolved_dt_rank == 7
    assert DecisionMambaConfig(dt_rank=3).resolved_dt_rank == 3


def test_docstring_lists_exactly_the_fields() -> None:
    text = inspect.getdoc(DecisionMambaConfig)
    assert text is not None
    arguments = text.split("Args:\n")[1].split("\n\n")[0]
    assert re.findall(r"^    (\w+): ", arguments, flags=re.MULTILINE) == FIELDS


def test_recipes() -> None:
    paper = DecisionMambaConfig.from_recipe("paper", dropout=0.3)
    assert (paper.context_length, paper.conditioning, paper.dropout) == (20, "sequence", 0.3)
    assert paper == DecisionMambaConfig.from_dict({"dropout": 0.3})  # as 0.1.0 wrote it
    assert DecisionMambaConfig.from_recipe("default") == DecisionMambaConfig()
    with pytest.raises(ConfigError) as raised:
        DecisionMambaConfig.from_recipe("best")  # type: ignore[arg-type]
    assert (raised.value.setting, raised.value.value) == ("recipe", "best")


def test_an_mlp_follows_mixers_that_mix_no_channels() -> None:
    for mixer, given, expected in (
        *(("mamba", None, False), ("attention", None, True), ("convolution", None, True)),
        *(("mamba", True, True), ("attention", False, False)),
    ):
        config = DecisionMambaConfig().replace(mixer=mixer, channel_mixing=given)
        assert config.resolved_channel_mixing is expected
