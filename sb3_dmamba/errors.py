"""The package's exceptions: each message names the value that is wrong and the fix.

Every one is a :class:`DecisionMambaError`, and also the built-in exception that a caller who does
not know this package would expect to catch.
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
    "SpaceError",
    "StepError",
    "UnknownTaskError",
]


class DecisionMambaError(Exception):
    """Base class of everything this package raises on purpose.

    The attributes are for programs and tests; the message says the same in words. They survive
    pickling, since worker processes send their errors.

    Args:
        message: What was expected, what was given, and the fix.
        setting: Name of the argument, config field or option that is wrong; None where the error
            is about none.
        value: What was given for it; None where there is nothing to show. Pickling replaces a
            value that cannot be pickled by its ``repr``.
        choices: The accepted values, where they can be listed; the known names (or those of them
            that are spelled alike) where a name is unknown.
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
        path: The dataset's file or folder, as a text; None where there is none.
        episode: Index of the episode that is wrong.
        index: Index along the first axis of the entry that is wrong; of most arrays, a step.
        setting: As in :class:`DecisionMambaError`; here also the name of an array.
        value: As in :class:`DecisionMambaError`.
        choices: As in :class:`DecisionMambaError`.
    """

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        episode: int | None = None,
        index: int | None = None,
        setting: str | None = None,
        value: Any = None,
        choices: Iterable[Any] = (),
    ) -> None:
        super().__init__(message, setting=setting, value=value, choices=choices)
        self.path = _as_path(path)
        self.episode = episode
        self.index = index


class SpaceError(DecisionMambaError, ValueError):
    """An observation or action space is unsupported, or does not match the model's."""


class UnknownTaskError(DecisionMambaError, ValueError):
    """A name is neither a known task nor anything that could be one.

    ``value`` is the name, ``choices`` are the known names like it.
    """


class ConditioningError(DecisionMambaError, ValueError):
    """An observation came without the return still to go."""


class DistributedError(DecisionMambaError, RuntimeError):
    """Processes that train together were started unlike each other, or one of them is gone."""


class EvaluationError(DecisionMambaError, RuntimeError):
    """An evaluation could not be finished: an environment or a worker process failed."""


class StepError(DatasetError, EvaluationError, ConditioningError):
    """An environment's ``step`` returned something else than Gymnasium's five values.

    ``setting`` names the one that is wrong ("step", "reward", "terminated", "truncated" or
    "info"), ``value`` is what was returned, ``index`` the environment's place among several.
    It is the error that ``collect``, ``evaluate`` and ``ReturnToGo`` raise for a non-finite reward.
    """

    def located(self, where: str) -> StepError:
        """Return the same error with where it happened in front of its message."""
        attributes = {"setting": self.setting, "value": self.value, "index": self.index}
        return StepError(f"{where}, {self}", **attributes)


class ExperimentError(DecisionMambaError, RuntimeError):
    """A cell of an experiment failed, or what is left of an earlier run does not fit."""


class ModelFileError(DecisionMambaError, ValueError):
    """A saved model is missing, truncated, tampered with or of a newer format.

    Args:
        message: What was expected, what was found, and the fix.
        path: The file, as a text; None for a stream.
        setting: As in :class:`DecisionMambaError`; here a field or tensor of the file.
        value: As in :class:`DecisionMambaError`.
        choices: As in :class:`DecisionMambaError`.
    """

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        setting: str | None = None,
        value: Any = None,
        choices: Iterable[Any] = (),
    ) -> None:
        super().__init__(message, setting=setting, value=value, choices=choices)
        self.path = _as_path(path)


class BackendError(DecisionMambaError, RuntimeError):
    """An implementation that was asked for by name does not work here."""


class NotFittedError(DecisionMambaError, RuntimeError):
    """A model was asked to act or to be saved before it was fitted or loaded."""


class DivergenceError(DecisionMambaError, ArithmeticError):
    """Training produced a loss that is not finite."""


class ExportError(DecisionMambaError, RuntimeError):
    """An exported policy does not act as the model does."""


class CheckoutError(DecisionMambaError, RuntimeError):
    """Something needs the repository's files, which the installed package does not have."""


class MissingDependencyError(DecisionMambaError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: The package that could not be imported.
        purpose: What it is needed for, as the end of "... is needed to".
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
