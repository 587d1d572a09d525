"""The package's exceptions: each message names the value that is wrong and the fix.

Every one is a :class:`DecisionMambaError`, and also the built-in exception that a caller who does
not know this package would expect to catch.
"""

from __future__ import annotations

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
    "UnknownTaskError",
]


class DecisionMambaError(Exception):
    """Base class of everything this package raises on purpose."""


class ConfigError(DecisionMambaError, ValueError):
    """A setting has a value, or a combination of values, that cannot work."""


class DatasetError(DecisionMambaError, ValueError):
    """A dataset is missing, malformed, empty or not finite."""


class SpaceError(DecisionMambaError, ValueError):
    """An observation or action space is unsupported, or does not match the model's."""


class UnknownTaskError(DecisionMambaError, ValueError):
    """A name is neither a known task nor anything that could be one."""


class ConditioningError(DecisionMambaError, ValueError):
    """An observation came without the return still to go."""


class DistributedError(DecisionMambaError, RuntimeError):
    """Processes that train together were started unlike each other, or one of them is gone."""


class EvaluationError(DecisionMambaError, RuntimeError):
    """An evaluation could not be finished: an environment or a worker process failed."""


class ExperimentError(DecisionMambaError, RuntimeError):
    """A cell of an experiment failed, or what is left of an earlier run does not fit."""


class ModelFileError(DecisionMambaError, ValueError):
    """A saved model is missing, truncated, tampered with or of a newer format."""


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
