"""Whether environments fit a policy."""

from __future__ import annotations

from typing import Any

from sb3_dmamba.data import flat_space
from sb3_dmamba.data.action_bounds import check_actions_fit
from sb3_dmamba.data.spaces import has_channels_last
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.evaluation.protocols import ActingPolicy

__all__ = ["check_envs"]


def check_envs(description: dict[str, Any], policy: ActingPolicy, n_envs: int) -> None:
    """Check that what ``make_env`` made are as many environments, with the policy's spaces.

    Args:
        description: What :meth:`~sb3_dmamba.evaluation.env_slice.EnvSlice.describe` returned.
        policy: The policy that is to act in them.
        n_envs: How many there should be.

    Raises:
        ConfigError: They are not environments, or one several times.
        SpaceError: The spaces are not the policy's.
    """
    if description["not_an_env"] is not None:
        raise ConfigError(
            f"make_env() returned {description['not_an_env']}: it must make a gymnasium.Env"
        )
    if description["n_distinct"] != n_envs:
        raise ConfigError(
            "make_env() returned one environment twice: it must make a new one at each call, "
            "as lambda: gymnasium.make(...) does"
        )
    shown = flat_space(description["observation_space"])
    expected = policy.observation_space
    if shown.shape != expected.shape and not has_channels_last(shown.shape, expected):
        raise SpaceError(
            f"the environment's observations have the flat shape {shown.shape} and the policy "
            f"takes {expected.shape}: evaluate in the environment it learned from"
        )
    check_actions_fit(description["action_space"], policy.action_space, "the environment")
