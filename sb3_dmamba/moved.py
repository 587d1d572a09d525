"""Former module paths that users' files and the documentation of 0.1.0 name.

Pickles, environment specs and ``.d3`` files record paths of modules. Each former path is a module
whose attributes come from the module that has them now, loaded on first use. Code of this package
imports none of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# former module -> module that has its names now
MOVED = {
    "atari": "envs",
    "atari.game": "envs.atari",
    "atari.games": "envs",
    "data.collect": "data.recording",
    "data.info": "data.inspection",
    "data.inspection.oddities": "data.inspection",
    "data.inspection.report": "data.inspection",
    "data.mapping.pickling": "data.mapping",
    "data.summary": "data.returns",
    "data.windows": "data.samplers",
    "d3rlpy.config": "d3rlpy.algo",
    "environments": "context",
    "evaluation.protocols": "evaluation.actors",
    "evaluation.results": "evaluation.report",
    "evaluation.wrappers": "envs.return_to_go",
    "experiments.efficiency.gate": "experiments.efficiency",
    "experiments.efficiency.timing": "experiments.efficiency",
    "experiments.measuring": "experiments.catalogue",
    "experiments.planning": "experiments.plan",
    "experiments.run": "experiments.engines",
    "memory_tasks": "envs",
    "memory_tasks.tmaze": "envs.tmaze",
    "networks.state": "networks.memory",
    "tasks.task": "tasks",
    "training.callbacks": "training.loop",
    "training.optimizer": "training.updater",
    "training.schedule": "training.updater",
}


class _Moved(ModuleType):
    """A former module: attribute access loads the module that replaced it."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, f"Former path of :mod:`{target}`.")
        self.__path__: list[str] = []  # a package: former submodules are in sys.modules
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(self._target), name)


def install() -> None:
    """Make the former paths importable."""
    package = __name__.rpartition(".")[0]
    for former, target in MOVED.items():
        name = f"{package}.{former}"
        sys.modules.setdefault(name, _Moved(name, f"{package}.{target}"))
