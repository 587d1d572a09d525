"""The attributes of errors, which programs read, and their way between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from sb3_dmamba import errors
from sb3_dmamba.errors import (
    ConfigError,
    DatasetError,
    DecisionMambaError,
    MissingDependencyError,
    ModelFileError,
)


def every_error() -> list[type[DecisionMambaError]]:
    """Return every error type of the module, whatever its ``__all__`` says."""
    return [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, DecisionMambaError)
    ]


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
