"""Episodes made of other episodes; what is large and mapped stays out of memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_number
from sb3_dmamba.data._checks import check_finite, rows_per_chunk
from sb3_dmamba.data.mapping import is_mapped, join_rows
from sb3_dmamba.data.returns import iterate_groups
from sb3_dmamba.errors import ConfigError

if TYPE_CHECKING:
    from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["REWARD_MODES", "Transforms", "assemble", "check_transform", "select", "transform"]

REWARD_MODES = ("dense", "delayed")


class Transforms:
    """What can be made of :class:`~sb3_dmamba.data.Trajectories`; one of its base classes."""

    def drop_cut_episodes(self: Trajectories) -> Trajectories:  # type: ignore[misc]
        """Return the episodes that were terminated or truncated.

        Raises:
            DatasetError: None was.
        """
        return self if not self.cut.any() else self[~self.cut]

    def take_top(self: Trajectories, fraction: float) -> Trajectories:  # type: ignore[misc]
        """Return the episodes with the largest returns, as BC% learns from, in their order here.

        Args:
            fraction: How much of the number of episodes, in (0, 1]; rounded down, but never none.
                Of episodes with the same return, the earlier are taken.

        Raises:
            ConfigError: ``fraction`` is out of its range.

        Source: Chen et al. 2021 (arXiv:2106.01345), "percentile behavior cloning", where the
        fraction is of steps.
        """
        share = _check_fraction("fraction", fraction)
        best = _find_best(self.returns, fraction)
        if len(best) == len(self):
            return self
        chosen = self[best]
        return replace(chosen, source=_describe(self, f"the best {100 * share:g}% of episodes"))

    def with_delayed_rewards(self: Trajectories) -> Trajectories:  # type: ignore[misc]
        """Return the episodes with each one's return as the reward of its last step, zeros before.

        The return-to-go is then the whole return at every step.

        Raises:
            DatasetError: A return is too large for float32.

        Source: Chen et al. 2021 (arXiv:2106.01345), section 5, on sparse rewards.
        """
        with np.errstate(over="ignore"):  # becomes infinite, which is named
            check_finite("returns", self.returns.astype(np.float32))
        pieces = _delay(self.rewards, self.episode_offsets)
        delayed = join_rows(pieces, self.rewards.dtype, self.rewards.shape, self.rewards)
        return replace(self, rewards=delayed, source=_describe(self, "delayed rewards"))


def check_transform(reward_mode: str, top_fraction: float | None) -> None:
    """Raise ConfigError unless :func:`transform` knows what to do."""
    if reward_mode not in REWARD_MODES:
        raise ConfigError(
            f"reward_mode={reward_mode!r}: choose 'dense' or 'delayed'",
            setting="reward_mode",
            value=reward_mode,
            choices=REWARD_MODES,
        )
    if top_fraction is not None:
        _check_fraction("top_fraction", top_fraction)


def transform(
    trajectories: Trajectories, reward_mode: str = "dense", top_fraction: float | None = None
) -> Trajectories:
    """Do to a dataset what the options of ``load_trajectories`` ask for."""
    if top_fraction is not None:
        trajectories = trajectories.take_top(top_fraction)
    return trajectories.with_delayed_rewards() if reward_mode == "delayed" else trajectories


def _check_fraction(name: str, fraction: float) -> float:
    return check_number(name, fraction, math.ulp(0.0), 1.0, "above 0 and up to 1")


def _find_best(returns: Float64[ndarray, "E"], fraction: float) -> Int64[ndarray, "n"]:
    exact = fraction * len(returns)  # 0.29 * 100 is 28.999999999999996
    count = max(1, math.floor(exact * (1 + 1e-12)))
    return np.sort(np.argsort(-returns, kind="stable")[:count])


def select(trajectories: Trajectories, episodes: Int64[ndarray, "n"]) -> Trajectories:
    """Return episodes by number, in the order of the numbers.

    Episodes that follow each other become views. Others are copied: from arrays in memory to
    arrays in memory, from large mapped ones to temporary files that are mapped.
    """
    starts, lengths = trajectories.episode_offsets[episodes], trajectories.lengths[episodes]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {name: getattr(trajectories, name) for name in ("observations", "actions", "rewards")}
    if not (np.diff(episodes) != 1).any():
        steps = slice(int(starts[0]), int(starts[0] + offsets[-1]))
        chosen = {name: array[steps] for name, array in arrays.items()}
    elif any(map(is_mapped, arrays.values())):
        chosen = {name: _copy_ranges(a, starts, starts + lengths) for name, a in arrays.items()}
    else:
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        chosen = {name: array[rows] for name, array in arrays.items()}
    return replace(
        trajectories,
        **chosen,
        terminated=trajectories.terminated[episodes],
        truncated=trajectories.truncated[episodes],
        episode_offsets=offsets,
    )


def _describe(trajectories: Trajectories, change: str) -> str:
    """Return the source of a dataset that was changed."""
    return f"{trajectories.source} ({change})" if trajectories.source else change


def replace(trajectories: Trajectories, **changes: Any) -> Trajectories:
    """Return a copy with fields that need no check, being made of checked ones."""
    names = [field.name for field in dataclasses.fields(trajectories)]
    fields = {name: getattr(trajectories, name) for name in names}
    return assemble(type(trajectories), {**fields, **changes})


def assemble(kind: type[Trajectories], fields: Mapping[str, Any]) -> Trajectories:
    """Make ``Trajectories`` of fields that were checked before, without looking at the steps."""
    names = {field.name for field in dataclasses.fields(kind)}
    assert set(fields) == names, names ^ set(fields)
    trajectories = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(trajectories, name, value)
    return trajectories


def _copy_ranges(array: ndarray, starts: Int64[ndarray, "n"], ends: Int64[ndarray, "n"]) -> ndarray:
    shape = (int((ends - starts).sum()), *array.shape[1:])
    most = rows_per_chunk(array)

    def pieces() -> Iterator[ndarray]:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for first in range(start, end, most):
                yield array[first : min(first + most, end)]

    return join_rows(pieces(), array.dtype, shape, array)


def _delay(rewards: ndarray, offsets: Int64[ndarray, "E+1"]) -> Iterator[ndarray]:
    for group, ends in iterate_groups(rewards, offsets):
        delayed = np.zeros_like(group)
        delayed[ends[1:] - 1] = np.add.reduceat(group, ends[:-1], dtype=np.float64)
        yield delayed
