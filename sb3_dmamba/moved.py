"""Former module paths that users' files and the documentation of 0.1.0 name.

Pickles, environment specs and ``.d3`` files record paths of modules. Each former path is a module
with the names below, taken from the module that has them now on first use. Code of this package
imports none of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# former module: (module that has its names now, the names)
MOVED = {
    "atari": ("envs", ""),
    "atari.game": ("envs.atari", "AtariGame"),
    "d3rlpy.config": ("d3rlpy.algo", "DecisionMambaConfig DiscreteDecisionMambaConfig"),
    "data.info": ("data.inspection", "DatasetInfo"),
    "data.inspection.oddities": ("data.inspection", "Oddity"),
    "data.inspection.report": ("data.inspection", "DatasetReport Histogram"),
    "data.mapping.pickling": ("data.mapping", "MappedReference"),
    "data.summary": ("data.returns", "Spread TrajectoriesSummary"),
    "evaluation.protocols": ("evaluation.actors", "ActingPolicy ActingState ReferenceScore"),
    "evaluation.results": ("evaluation.report", "TargetResult"),
    "experiments.efficiency.gate": ("experiments.efficiency", "check_variant"),
    "experiments.efficiency.timing": ("experiments.efficiency", "describe_clock measure_cost"),
    "experiments.measuring": ("experiments.catalogue", "Measurement MeasurementRequest"),
    "experiments.planning": ("experiments.plan", "Request"),
    "experiments.run": ("experiments.engines", "run_experiment"),
    "memory_tasks": ("envs", ""),
    "memory_tasks.tmaze": ("envs.tmaze", "DOWN FORWARD TMaze UP"),
    "networks.state": ("networks.memory", "ActingState"),
    "tasks.task": ("tasks", "Task"),
    "training.callbacks": (
        "training.loop",
        "Evaluations as_callbacks explain_missing_environment start_callbacks",
    ),
    "training.optimizer": ("training.updater", "make_optimizer set_learning_rate split_by_decay"),
    "training.schedule": ("training.updater", "compute_learning_rate plan_schedule"),
}


class _Moved(ModuleType):
    """A former module: asking for one of its names loads the module that has it now."""

    def __init__(self, name: str, target: str, names: list[str]) -> None:
        super().__init__(name, f"Former path of :mod:`{target}`.")
        self.__path__: list[str] = []  # a package: former submodules are in sys.modules
        self._target, self._names = target, names

    def __getattr__(self, name: str) -> Any:
        # Only these: pickle, for one, asks every module in sys.modules for names of its own.
        if name not in self.__dict__.get("_names", ()):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(self._target), name)


def install() -> None:
    """Make the former paths importable."""
    package = __name__.rpartition(".")[0]
    for former, (target, names) in MOVED.items():
        name = f"{package}.{former}"
        sys.modules.setdefault(name, _Moved(name, f"{package}.{target}", names.split()))
