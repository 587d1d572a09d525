"""The VecNormalize among an environment's wrappers, of which there may be several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

__all__ = ["find_normalizers", "statistics_kept"]


def find_normalizers(env: Any) -> list[VecNormalize]:
    """Return every VecNormalize among an environment's wrappers, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


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
