"""Environments with another interface than Gymnasium's, through Shimmy.

Imports nothing but Gymnasium until such an environment turns up.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from sb3_dmamba.errors import MissingDependencyError

__all__ = ["as_gymnasium", "import_shimmy", "make_gymnasium", "old_gym_arguments"]

_PURPOSE = "act in environments of dm_control or the old gym"


def import_shimmy(needs: str | None = None) -> ModuleType:
    """Import Shimmy, which registers dm_control's environments and the old gym's.

    Args:
        needs: Another package that is needed, such as ``"dm_control"``.

    Raises:
        MissingDependencyError: One of the two is not installed.
    """
    for package in ("shimmy", needs):
        if package is not None and find_spec(package) is None:
            raise MissingDependencyError(package, _PURPOSE, "shimmy")
    return importlib.import_module("shimmy")


def old_gym_arguments(env_id: str) -> tuple[str, dict[str, Any]]:
    """Return what ``gymnasium.make`` takes for an environment of the old gym.

    Args:
        env_id: What ``gym.make`` takes.

    Returns:
        The id of Shimmy's converter, and its arguments.

    Raises:
        MissingDependencyError: Shimmy or gym is not installed.
    """
    import_shimmy("gym")
    version = tuple(int(part) for part in importlib.import_module("gym").__version__.split(".")[:2])
    if version < (0, 26):
        return "GymV21Environment-v0", {"env_id": env_id}
    # gym's own checker asks numpy 2 for a name that it no longer has
    make_kwargs = {"disable_env_checker": True}
    return "GymV26Environment-v0", {"env_id": env_id, "make_kwargs": make_kwargs}


def as_gymnasium(environment: Any) -> Any:
    """Convert an environment of dm_control or the old gym; return anything else as it is.

    Args:
        environment: Anything.

    Raises:
        MissingDependencyError: Shimmy is needed and not installed.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(environment).__mro__}
    if "dm_control" in packages:
        return import_shimmy().DmControlCompatibilityV0(environment)
    if "gym" in packages and "gymnasium" not in packages:
        reset = inspect.signature(environment.unwrapped.reset).parameters
        name = "GymV26CompatibilityV0" if "seed" in reset else "GymV21CompatibilityV0"
        return getattr(import_shimmy("gym"), name)(env=environment)
    return environment


def make_gymnasium(make_env: Callable[[], Any]) -> Any:
    """Make an environment with a user's function, and convert it where that is needed."""
    return as_gymnasium(make_env())
