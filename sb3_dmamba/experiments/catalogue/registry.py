"""From a name to an experiment."""

from __future__ import annotations

import difflib

from sb3_dmamba.errors import ConfigError
from sb3_dmamba.experiments.catalogue import (
    channel_mixing,
    context_length,
    init,
    memory,
    mixers,
    size,
    sparse,
)
from sb3_dmamba.experiments.catalogue.experiment import Experiment

__all__ = ["get_experiment", "list_experiments"]

_MODULES = (mixers, channel_mixing, context_length, init, memory, sparse, size)


def list_experiments() -> list[Experiment]:
    """Return every experiment."""
    return [module.EXPERIMENT for module in _MODULES]


def get_experiment(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        ConfigError: There is none; suggests a close one.
    """
    by_name = {experiment.name: experiment for experiment in list_experiments()}
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(by_name)}"
        raise ConfigError(f"no experiment is called {name!r}: {hint}")
    return by_name[name]
