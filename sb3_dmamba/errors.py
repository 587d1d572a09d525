"""Exceptions of this package: each message names the wrong value and the fix.

Each is a :class:`DecisionMambaError` and also the built-in exception closest in meaning, such as
``ValueError``.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from typing import Any

__all__ = [
    "BackendError",
    "CheckoutError",
    "ConditioningError",
    "ConfigError",
    "DatasetError",
    "DecisionMambaError",
    "DistributedError",
    "DivergenceError",
    "EvaluationError",
    "ExperimentError",
    "ExportError",
    "MissingDependencyError",
    "ModelFileError",
    "NotFittedError",
    "ParametersError",
    "SpaceError",
    "StepError",
    "UnknownTaskError",
]


class DecisionMambaError(Exception):
    """Base class of every exception that this package raises on purpose.

    The attributes repeat the message for programs and tests. They survive pickling, since worker
    processes send their errors.

    Args:
        message: What was expected, what was given, and the fix.
        setting: Name of the wrong argument, config field or option; None if there is none.
        value: The value given for it, or None. Pickling replaces a value that cannot be pickled
            by its ``repr``.
        choices: The accepted values, where they can be listed; of an unknown name, the known
            names or the similar ones.
    """

    def __init__(
        self,
        message: str,
        *,
        setting: str | None = None,
        value: Any = None,
        choices: Iterable[Any] = (),
    ) -> None:
        super().__init__(message)
        self.setting = setting
        self.value = value
        self.choices = tuple(choices)

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = dict(self.__dict__)
        try:
            pickle.dumps(self.value)
        except Exception:  # whatever the value's own __reduce__ raises
            attributes["value"] = repr(self.value)
        return type(self), self.args, attributes


class ConfigError(DecisionMambaError, ValueError):
    """A setting has a value, or a combination of values, that cannot work."""


class DatasetError(DecisionMambaError, ValueError):
    """A dataset is missing, malformed, empty or not finite.

    Args:
        message: What was expected, what was given, and the fix.
        path: The dataset's file or folder; kept as a string, None if there is none.
        episode: Index of the wrong episode.
        index: Index of the wrong entry along the first axis; of most arrays, a step.
        **attributes: Those of :class:`DecisionMambaError`; ``setting`` may name an array.
    """

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        episode: int | None = None,
        index: int | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(message, **attributes)
        self.path = _as_path(path)
        self.episode = episode
        self.index = index


class SpaceError(DecisionMambaError, ValueError):
    """An observation or action space is unsupported, or does not match the model's."""


class UnknownTaskError(DecisionMambaError, ValueError):
    """A name is no known task, dataset or environment.

    ``value`` is the name, ``choices`` are the similar known names.
    """


class ConditioningError(DecisionMambaError, ValueError):
    """An observation has no valid return-to-go, or an acting state does not fit."""


class DistributedError(DecisionMambaError, RuntimeError):
    """Processes that train together differ in their settings or data, or one has failed."""


class EvaluationError(DecisionMambaError, RuntimeError):
    """An environment or worker process failed during an evaluation."""


class StepError(DatasetError, EvaluationError, ConditioningError):
    """An environment's ``step`` or ``reset`` returned something else than Gymnasium's values.

    ``setting`` names what is wrong ("step", "reset", "reward", "terminated", "truncated" or
    "info"), ``value`` is what was returned, ``index`` the environment's place among several.
    It is the error that ``collect``, ``evaluate`` and ``ReturnToGo`` raise for a non-finite reward.
    """

    def located(self, where: str) -> StepError:
        """Return the same error with where it happened in front of its message."""
        attributes = {"setting": self.setting, "value": self.value, "index": self.index}
        return StepError(f"{where}, {self}", **attributes)


class ExperimentError(DecisionMambaError, RuntimeError):
    """A run of an experiment failed, or files of an earlier run do not match it."""


class ModelFileError(DecisionMambaError, ValueError):
    """A saved model is missing, truncated, edited or of a newer format.

    Args:
        message: What was expected, what was found, and the fix.
        path: The file; kept as a string, None for a stream.
        **attributes: Those of :class:`DecisionMambaError`; ``setting`` is a field or tensor.
    """

    def __init__(self, message: str, *, path: object = None, **attributes: Any) -> None:
        super().__init__(message, **attributes)
        self.path = _as_path(path)


class ParametersError(ModelFileError, RuntimeError):
    """State dictionaries lack a tensor of the model, or hold one of another shape."""


class BackendError(DecisionMambaError, RuntimeError):
    """An implementation that was requested by name does not work on this machine."""


class NotFittedError(DecisionMambaError, RuntimeError, AttributeError):
    """A model has no weights yet: it was neither fitted nor loaded."""


class DivergenceError(DecisionMambaError, ArithmeticError):
    """A training loss or gradient is not finite."""


class ExportError(DecisionMambaError, RuntimeError):
    """An exported policy computes other actions than the model."""


class CheckoutError(DecisionMambaError, RuntimeError):
    """A command needs files of the repository that the installed package does not contain."""


class MissingDependencyError(DecisionMambaError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: The package that could not be imported.
        purpose: End of the sentence "<package> is needed to ...".
        extra: The extra of this distribution that installs it.
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed to {purpose} and is not installed: "
            f'pip install "sb3-dmamba[{extra}]"'
        )
        self.package = package
        self.purpose = purpose
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        _, _, attributes = super().__reduce__()
        return type(self), (self.package, self.purpose, self.extra), attributes


def _as_path(path: object) -> str | None:
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
