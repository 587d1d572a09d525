"""The VecNormalize among an environment's wrappers, of which there may be several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_dmamba.errors import ConditioningError

__all__ = ["check_returns_unscaled", "find_normalizers", "statistics_kept"]


def find_normalizers(env: Any) -> list[VecNormalize]:
    """Return every VecNormalize among an environment's wrappers, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def check_returns_unscaled(env: Any) -> None:
    """Check that no VecNormalize scales the return-to-go with the observations.

    Args:
        env: A ``VecEnv`` whose observations carry a return-to-go.

    Raises:
        ConditioningError: One does; says how to leave it out.
    """
    for each in find_normalizers(env):
        if each.norm_obs and "return_to_go" in (each.norm_obs_keys or ()):
            raise ConditioningError(
                "a VecNormalize outside of ReturnToGo scales the return-to-go as if it were an "
                'observation: write VecNormalize(env, norm_obs_keys=["observation"]), or wrap the '
                "other way round, ReturnToGo(VecNormalize(env), target_return)"
            )


@contextlib.contextmanager
def statistics_kept(env: Any) -> Iterator[None]:
    """Let every VecNormalize normalise by what it knows, and learn nothing."""
    before = [(each, each.training) for each in find_normalizers(env)]
    for each, _ in before:
        each.training = False
    try:
        yield
    finally:
        for each, training in before:
            each.training = training
