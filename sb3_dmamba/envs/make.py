"""Make environments from ids: Gymnasium, ALE, dm_control and the old gym."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_dmamba.envs import register
from sb3_dmamba.errors import MissingDependencyError, UnknownTaskError

if TYPE_CHECKING:
    import gymnasium

HARMLESS_WRAPPERS = (
    *("CheckedEnv", "Monitor", "ReturnToGoEnv", "RecordEpisodeStatistics", "RecordVideo"),
)
"""Wrappers that leave observations, actions and rewards as they are, or that are undone here."""

_ALE = "ALE/"
_DM_CONTROL = "dm_control/"
_OLD_GYM = "gym:"


def make_environment(env_id: str, env_kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make an environment of a Gymnasium id, of ALE or dm_control, or "gym:" and an old id."""
    import gymnasium

    name, kwargs = _resolve(env_id, env_kwargs)
    try:
        with warnings.catch_warnings(), _silence_mujoco_deprecations(name):
            # Hopper-v4 and its siblings are asked for on purpose: v5 changes the rewards.
            warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
            return gymnasium.make(name, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco" in str(error) and "mujoco_py" not in str(error):
            raise MissingDependencyError("mujoco", f"make {env_id}", "mujoco") from error
        reason: Exception = error
        message = f"{env_id!r} cannot be made here: {error}"
    except gymnasium.error.Error as error:
        reason = error
        message = (
            f"Gymnasium cannot make {env_id!r}: {error} (a package that registers it can be named "
            'in front: "package:Name-v0")'
        )
    except ModuleNotFoundError as error:
        package, colon, _ = name.partition(":")
        missing = getattr(error.__cause__ or error, "name", None)
        if not colon or missing is None or not f"{package}.".startswith(f"{missing}."):
            raise  # something that the environment's package needs
        reason = error
        message = f"{env_id!r} needs {package!r}, which is not installed: pip install it"
    except Exception as error:
        if isinstance(error, ImportError) and not isinstance(error, MissingDependencyError):
            message = f"{env_id!r} cannot be made here: {error}"  # an id that moved elsewhere
        elif type(error).__module__ == "gym.error":
            message = f"gym cannot make {env_id!r}: {error}"
        else:
            raise
        reason = error
    raise UnknownTaskError(message, setting="env_id", value=env_id) from reason


def _warn_unless_deprecated(text: str) -> None:
    if "is deprecated" not in text:
        warnings.warn(text, stacklevel=2)


@contextmanager
def _silence_mujoco_deprecations(name: str) -> Iterator[None]:
    """Silence MuJoCo 4 about Gymnasium's model files, such as HalfCheetah's, for each one made."""
    import gymnasium

    spec = gymnasium.registry.get(name)
    if spec is None or "mujoco" not in str(spec.entry_point) or find_spec("mujoco") is None:
        yield
        return
    mujoco = importlib.import_module("mujoco")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_warn_unless_deprecated)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _resolve(env_id: str, env_kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Import what registers an environment, and return what ``gymnasium.make`` takes for it."""
    register()
    kwargs = dict(env_kwargs)
    if env_id.startswith(_ALE):
        _register_arcade()
    elif env_id.startswith(_DM_CONTROL):
        _import_shimmy("dm_control")
    elif env_id.startswith(_OLD_GYM):
        _import_shimmy("gym")
        version = importlib.import_module("gym").__version__.split(".")[:2]
        is_21 = tuple(map(int, version)) < (0, 26)
        # gym's own checker asks numpy 2 for a name that it no longer has
        make_kwargs = {} if is_21 else {"disable_env_checker": True}
        arguments: dict[str, Any] = {"env_id": env_id.removeprefix(_OLD_GYM)}
        if make_kwargs or kwargs:
            arguments["make_kwargs"] = {**make_kwargs, **kwargs}
        return f"GymV{21 if is_21 else 26}Environment-v0", arguments
    return env_id, kwargs


def _register_arcade() -> None:
    import gymnasium

    try:
        ale_py = importlib.import_module("ale_py")
    except ImportError as error:
        raise MissingDependencyError("ale-py", "play Atari games", "atari") from error
    gymnasium.register_envs(ale_py)


def _import_shimmy(needs: str | None = None) -> ModuleType:
    """Import Shimmy, which registers dm_control's environments and the old gym's."""
    for package in ("shimmy", needs):
        if package is not None and find_spec(package) is None:
            purpose = "act in environments of dm_control or the old gym"
            raise MissingDependencyError(package, purpose, "shimmy")
    return importlib.import_module("shimmy")


def as_gymnasium(environment: Any) -> Any:
    """Convert an environment of dm_control or the old gym; return anything else as it is."""
    packages = {kind.__module__.partition(".")[0] for kind in type(environment).__mro__}
    if "dm_control" in packages:
        return _import_shimmy().DmControlCompatibilityV0(environment)
    if "gym" in packages and "gymnasium" not in packages:
        if not hasattr(np, "bool8"):  # NumPy 2, where gym's own checker fails
            _remove_checker(environment)
        reset = inspect.signature(environment.unwrapped.reset).parameters
        name = "GymV26CompatibilityV0" if "seed" in reset else "GymV21CompatibilityV0"
        return getattr(_import_shimmy("gym"), name)(env=environment)
    return environment


def _remove_checker(environment: Any) -> None:
    while hasattr(environment, "env"):
        if type(environment.env).__name__ == "PassiveEnvChecker":
            environment.env = environment.env.env
        environment = environment.env


def make_gymnasium(make_env: Callable[..., Any], **kwargs: Any) -> Any:
    """Make an environment with a user's function, and convert it where that is needed."""
    return as_gymnasium(make_env(**kwargs))


def is_known_elsewhere(name: str) -> bool:
    """Whether a name is an environment that a package registers: no dataset is meant."""
    is_dm_control = name.startswith(_DM_CONTROL) and name.count("/") == 1
    return name.startswith((_ALE, _OLD_GYM)) or is_dm_control


def qualify_id(env_id: str, entry_point: Any) -> str:
    """Return what ``gymnasium.make`` takes: it imports the package named before a colon."""
    module = entry_point if isinstance(entry_point, str) else "gymnasium"
    package = module.partition(":")[0].partition(".")[0]
    return env_id if package == "gymnasium" or ":" in env_id else f"{package}:{env_id}"
