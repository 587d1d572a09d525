"""The attributes of errors, which programs read, and their way between processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba import errors
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.checks import check_flag, check_integer, check_number
from sb3_dmamba.cli.output import parse_settings
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.d4rl import parse_name
from sb3_dmamba.data import load_trajectories
from sb3_dmamba.envs import canonical_game
from sb3_dmamba.envs.tmaze import TMaze
from sb3_dmamba.errors import (
    BackendError,
    ConditioningError,
    ConfigError,
    DatasetError,
    DecisionMambaError,
    MissingDependencyError,
    ModelFileError,
    SpaceError,
    UnknownTaskError,
)
from sb3_dmamba.networks.policy import read_observation, read_starts
from sb3_dmamba.ops.dispatch import resolve_backend
from sb3_dmamba.spaces import check_action_space, check_dataset_fits
from sb3_dmamba.tasks import get_task

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
PAIR = spaces.Discrete(2)


def every_error() -> list[type[DecisionMambaError]]:
    """Return every error type of the module, whatever its ``__all__`` says."""
    return [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, DecisionMambaError)
    ]


def catch(call: Callable[[], Any]) -> DecisionMambaError:
    with pytest.raises(DecisionMambaError) as raised:
        call()
    return raised.value


@pytest.mark.parametrize(
    ("kind", "call", "setting", "value"),
    [
        (ConfigError, lambda: check_integer("n", 0, 1), "n", 0),
        (ConfigError, lambda: check_number("x", "1"), "x", "1"),
        (ConfigError, lambda: check_flag("f", 1), "f", 1),
        (ConfigError, lambda: DecisionMambaConfig(dropout=2.0), "dropout", 2.0),
        (ConfigError, lambda: DecisionMambaConfig(mixer="rnn"), "mixer", "rnn"),  # type: ignore[arg-type]
        (ConfigError, lambda: parse_settings(["n_layers=two"]), "n_layers", "two"),
        (ConfigError, lambda: load_trajectories({}, reward_mode="few"), "reward_mode", "few"),
        (ConfigError, lambda: TMaze(render_mode="human"), "render_mode", "human"),
        (DatasetError, lambda: parse_name("hopper-best-v2"), "dataset", "hopper-best-v2"),
        (DatasetError, lambda: canonical_game("Brakeout"), "game", "Brakeout"),
        (UnknownTaskError, lambda: get_task("Hoper-v5"), "task", "Hoper-v5"),
        (SpaceError, lambda: check_action_space(spaces.MultiBinary(2)), "action_space", ...),
        (SpaceError, lambda: check_dataset_fits(BOX, PAIR, BOX, BOX), "action_space", ...),
        (BackendError, lambda: resolve_backend("tpu", "cpu"), "backend", "tpu"),
        (ConditioningError, lambda: read_observation({}, BOX), "observation", None),
        (ConditioningError, lambda: read_starts(True, 2), "episode_start", True),
    ],
)
def test_an_error_says_which_setting_and_value(
    kind: type[DecisionMambaError], call: Callable[[], Any], setting: str, value: Any
) -> None:
    error = catch(call)
    assert type(error) is kind
    assert error.setting == setting
    if value is not ...:
        assert error.value == value


@pytest.mark.parametrize(
    ("call", "choices"),
    [
        (lambda: check_flag("f", 1), (True, False)),
        (
            lambda: DecisionMambaConfig(precision="fp16"),  # type: ignore[arg-type]
            ("fp32", "bf16"),
        ),
        (lambda: TMaze(render_mode="human"), (None, "ansi")),
        (lambda: get_task("Hoper-v5"), None),
        (lambda: check_dataset_fits(BOX, PAIR, BOX, BOX), (BOX,)),
    ],
)
def test_an_error_lists_what_is_accepted(
    call: Callable[[], Any], choices: tuple[Any, ...] | None
) -> None:
    found = catch(call).choices
    assert found == choices or (choices is None and "Hopper-v5" in found)


def test_an_unknown_option_lists_the_known_ones() -> None:
    option = catch(lambda: load_trajectories({}, enviroment="Hopper-v5"))
    assert option.setting == "enviroment"
    assert "env_id" in option.choices


def test_a_dataset_error_says_where() -> None:
    rewards = np.zeros(5)
    rewards[3] = np.nan
    source = {
        "observations": np.zeros((5, 2)),
        "actions": np.zeros((5, 1)),
        "rewards": rewards,
        "terminals": np.array([0, 1, 0, 0, 1]),
    }
    error = catch(lambda: load_trajectories(source))
    assert isinstance(error, DatasetError)
    assert (error.setting, error.episode, error.index) == ("rewards", 1, 3)
    assert np.isnan(error.value)


def test_an_error_about_a_file_names_it(tmp_path: Path) -> None:
    missing, damaged = tmp_path / "missing", tmp_path / "damaged"
    damaged.write_bytes(b"no zip")
    for path in (missing, damaged):
        error = catch(lambda path=path: DecisionMamba.load(path))  # type: ignore[misc]
        assert isinstance(error, ModelFileError)
        assert error.path == str(path)
    absent = catch(lambda: load_trajectories(missing))
    assert isinstance(absent, DatasetError)
    assert absent.path == str(missing)
    with damaged.open("rb") as stream:
        streamed = catch(lambda: DecisionMamba.load(stream))
    assert isinstance(streamed, ModelFileError)
    assert streamed.path is None


def test_every_error_survives_pickling() -> None:
    for kind in every_error():
        if kind is MissingDependencyError:
            error: DecisionMambaError = MissingDependencyError("ray", "run on a cluster", "ray")
        else:
            error = kind("message", setting="n", value=np.float32(2), choices=range(3))
            assert error.choices == (0, 1, 2)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_what_belongs_to_one_kind_survives_pickling() -> None:
    dataset = DatasetError("message", path=Path("a"), episode=1, index=7)
    missing = MissingDependencyError("opencv-python", "play", "atari")
    file = ModelFileError("message", path="m.zip", setting="format_version", value=9)
    names = ("path", "episode", "index", "package", "purpose", "extra", "setting", "value")
    expected = [
        {"path": "a", "episode": 1, "index": 7},
        {"package": "opencv-python", "purpose": "play", "extra": "atari"},
        {"path": "m.zip", "setting": "format_version", "value": 9},
    ]
    for error, attributes in zip((dataset, missing, file), expected, strict=True):
        found = vars(pickle.loads(pickle.dumps(error)))
        assert {name: found[name] for name in names if found.get(name) is not None} == attributes


def test_a_value_that_cannot_be_pickled_becomes_its_repr() -> None:
    value = lambda left: left  # noqa: E731
    error = ConfigError("message", setting="learning_rate", value=value)
    again = pickle.loads(pickle.dumps(error))
    assert error.value is value
    assert (again.setting, again.value) == ("learning_rate", repr(value))


def test_without_attributes_there_is_nothing_to_read() -> None:
    error = DecisionMambaError("message")
    assert (error.setting, error.value, error.choices) == (None, None, ())
