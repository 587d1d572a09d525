"""The packages that register environments when they are imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from sb3_dmamba import atari
from sb3_dmamba.compatibility import import_shimmy, old_gym_arguments
from sb3_dmamba.errors import MissingDependencyError

__all__ = ["OLD_GYM", "is_known_elsewhere", "resolve"]

OLD_GYM = "gym:"
_ALE = "ALE/"
_DM_CONTROL = "dm_control/"


def is_known_elsewhere(name: str) -> bool:
    """Whether a name is an environment that a package registers: no dataset is meant."""
    is_dm_control = name.startswith(_DM_CONTROL) and name.count("/") == 1
    return name.startswith((_ALE, OLD_GYM)) or is_dm_control


def resolve(env_id: str, env_kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Import what registers an environment, and return what ``gymnasium.make`` takes for it.

    Args:
        env_id: A Gymnasium id, one of the Arcade Learning Environment (``"ALE/Pong-v5"``) or of
            dm_control (``"dm_control/cartpole-swingup-v0"``), or ``"gym:"`` and an id of the old
            gym.
        env_kwargs: Arguments of the environment.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    kwargs = dict(env_kwargs)
    if env_id == atari.ATARI_ID:
        atari.register()
    elif env_id.startswith(_ALE):
        _register_arcade()
    elif env_id.startswith(_DM_CONTROL):
        import_shimmy("dm_control")
    elif env_id.startswith(OLD_GYM):
        env_id, arguments = old_gym_arguments(env_id.removeprefix(OLD_GYM))
        if "make_kwargs" in arguments or kwargs:
            arguments["make_kwargs"] = {**arguments.get("make_kwargs", {}), **kwargs}
        return env_id, arguments
    return env_id, kwargs


def _register_arcade() -> None:
    import gymnasium

    try:
        ale_py = importlib.import_module("ale_py")
    except ImportError as error:
        raise MissingDependencyError("ale-py", "play Atari games", "atari") from error
    gymnasium.register_envs(ale_py)
