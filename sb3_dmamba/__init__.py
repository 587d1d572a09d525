"""Decision Mamba for offline reinforcement learning, in Stable-Baselines3's manner.

The public names load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_dmamba import envs, moved

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba as DecisionMamba
    from sb3_dmamba.config import DecisionMambaConfig as DecisionMambaConfig
    from sb3_dmamba.data import Trajectories as Trajectories
    from sb3_dmamba.data import load_trajectories as load_trajectories
    from sb3_dmamba.data.recording import collect as collect
    from sb3_dmamba.envs.return_to_go import ReturnToGo as ReturnToGo
    from sb3_dmamba.evaluation import EvaluationReport as EvaluationReport
    from sb3_dmamba.tasks import list_tasks as list_tasks

__version__ = "0.1.0"

_HOMES = {
    "DecisionMamba": "algorithm",
    "DecisionMambaConfig": "config",
    "EvaluationReport": "evaluation",
    "ReturnToGo": "evaluation",
    "Trajectories": "data",
    "collect": "data.recording",
    "list_tasks": "tasks",
    "load_trajectories": "data",
}

__all__ = [
    "DecisionMamba",
    "DecisionMambaConfig",
    "EvaluationReport",
    "ReturnToGo",
    "Trajectories",
    "__version__",
    "collect",
    "list_tasks",
    "load_trajectories",
]

moved.install()
envs.register_if_gymnasium_is_loaded()  # gymnasium.make("sb3_dmamba:...") expects to find the id


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
