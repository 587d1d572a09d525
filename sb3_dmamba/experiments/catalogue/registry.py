"""From a name to an experiment."""

from __future__ import annotations

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.experiments.catalogue import (
    atari,
    channel_mixing,
    context_length,
    d4rl,
    efficiency,
    init,
    long_memory,
    memory,
    mixers,
    size,
    sparse,
    time_encoding,
)
from sb3_dmamba.experiments.catalogue.experiment import Experiment
from sb3_dmamba.experiments.measuring import Measurement

__all__ = ["get_experiment", "list_experiments", "list_measurements"]

_MODULES = (
    mixers,
    channel_mixing,
    time_encoding,
    context_length,
    init,
    memory,
    long_memory,
    sparse,
    size,
    d4rl,
    atari,
)


def list_experiments() -> list[Experiment]:
    """Return every experiment that trains."""
    return [module.EXPERIMENT for module in _MODULES]


def list_measurements() -> list[Measurement]:
    """Return every experiment that measures and trains nothing."""
    return [efficiency.MEASUREMENT]


def get_experiment(name: str) -> Experiment | Measurement:
    """Return an experiment by its name.

    Raises:
        ConfigError: There is none; suggests a close one.
    """
    everything: list[Experiment | Measurement] = [*list_experiments(), *list_measurements()]
    by_name = {each.name: each for each in everything}
    if name not in by_name:
        hint = did_you_mean(near_names(name, by_name)) or f"there are {', '.join(by_name)}"
        raise ConfigError(
            f"no experiment is called {name!r}: {hint}",
            setting="experiment",
            value=name,
            choices=by_name,
        )
    return by_name[name]
