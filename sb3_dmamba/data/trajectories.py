"""The one container that every dataset becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64, Int64, Num, Shaped
from numpy import ndarray

from sb3_dmamba.data._selection import check_steps, select_episodes
from sb3_dmamba.data._validation import ARRAYS, check_episodes, check_json, validate_arrays
from sb3_dmamba.data.export import Exports
from sb3_dmamba.data.frames import gather_stacks
from sb3_dmamba.data.mapping import read_state, write_state
from sb3_dmamba.data.returns import compute_returns, compute_returns_to_go
from sb3_dmamba.data.summary import TrajectoriesSummary
from sb3_dmamba.data.transforms import Transforms, select

__all__ = ["Episode", "Trajectories"]


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode: views of a :class:`Trajectories`' arrays.

    Args:
        observations: What each action was chosen on, (T, *obs); single frames where they are
            stacked when drawn.
        actions: The actions, (T, A) float32 or (T,) int64.
        rewards: What each action earned, (T,) float32, in the environment's units.
        terminated: Whether the environment ended it.
        truncated: Whether a limit (of time, mostly) ended it.
        return_: The sum of the rewards, accumulated in float64.
    """

    observations: Num[ndarray, "T *obs"]
    actions: Num[ndarray, "T *action"]
    rewards: Float32[ndarray, "T"]
    terminated: bool
    truncated: bool
    return_: float

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        return f"Episode({len(self)} steps, return {self.return_:.4g})"


@dataclass(frozen=True, eq=False)
class Trajectories(Transforms, Exports):
    """Recorded episodes: flat arrays of steps, cut into episodes by offsets.

    ``len()`` counts episodes; an integer index gives an :class:`Episode` of views, a slice or an
    array of indices or of booleans another ``Trajectories``. An episode that was neither
    terminated nor truncated was cut when collection stopped; it is kept, and counted in
    :meth:`summary`.

    Args:
        observations: What each action was chosen on, (N, *obs), flat view: float32, or uint8
            where the space holds frames of bytes. May be memory-mapped.
        actions: (N, A) float32 for a Box, (N,) int64 for Discrete, in the environment's own
            numbers (a Discrete space may start anywhere).
        rewards: What each action earned, (N,) float32, in the environment's units.
        terminated: Per episode, whether the environment ended it, (E,).
        truncated: Per episode, whether a limit ended it, (E,).
        episode_offsets: First step of each episode, and at the end N: (E+1,) int64.
        observation_space: The flat view of the environment's observation space.
        action_space: The environment's action space.
        env_id: What ``gymnasium.make`` takes, where it is known.
        env_kwargs: Its other arguments, which JSON can hold.
        source: Where the data came from, for people.
        frame_stack: Frames in one observation. Where more than 1, ``observations`` holds single
            frames once, (N, *frame) uint8, ``observation_space`` is what the policy sees,
            (frame_stack, *frame), and :meth:`stack_frames` makes the one from the other.

    Raises:
        DatasetError: The data is empty, has mismatched lengths, wrong shapes or dtypes, values
            that are not finite or actions outside their space. Names the first bad index.
        SpaceError: The action space cannot be learnt, or the observation space is not a Box.
    """

    observations: Num[ndarray, "N *obs"]
    actions: Num[ndarray, "N *action"]
    rewards: Float32[ndarray, "N"]
    terminated: Bool[ndarray, "E"]
    truncated: Bool[ndarray, "E"]
    episode_offsets: Int64[ndarray, "E+1"]
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    frame_stack: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ARRAYS}
        spaces_ = self.observation_space, self.action_space
        stored = validate_arrays(given, *spaces_, self.frame_stack)
        for name, array in stored.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "frame_stack", int(self.frame_stack))
        object.__setattr__(self, "env_kwargs", check_json(self.env_kwargs))

    @classmethod
    def from_episodes(
        cls,
        observations: Sequence[Num[ndarray, "T *obs"]],
        actions: Sequence[Num[ndarray, "T *action"]],
        rewards: Sequence[Num[ndarray, "T"]],
        terminated: Sequence[bool] | Bool[ndarray, "E"],
        truncated: Sequence[bool] | Bool[ndarray, "E"],
        *,
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        source: str = "",
        frame_stack: int = 1,
    ) -> Trajectories:
        """Join one array per episode; every argument is as the class has it.

        Raises:
            DatasetError: As the class, or the lists or the arrays of an episode differ in length.
            SpaceError: As the class.
        """
        check_episodes(observations, actions, rewards, len(terminated))
        return cls(
            observations=np.concatenate([np.asarray(part) for part in observations]),
            actions=np.concatenate([np.asarray(part) for part in actions]),
            rewards=np.concatenate([np.asarray(part) for part in rewards]),
            terminated=np.asarray(terminated),
            truncated=np.asarray(truncated),
            episode_offsets=np.concatenate([[0], np.cumsum([len(part) for part in rewards])]),
            observation_space=observation_space,
            action_space=action_space,
            env_id=env_id,
            env_kwargs=env_kwargs or {},
            source=source,
            frame_stack=frame_stack,
        )

    def __len__(self) -> int:
        return len(self.episode_offsets) - 1

    def __iter__(self) -> Iterator[Episode]:
        return (self[episode] for episode in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a store as its place: neither read whole nor written once more."""
        return write_state(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        read_state(self, state)

    def __repr__(self) -> str:
        return f"Trajectories({len(self)} episodes, {self.n_steps} steps, source={self.source!r})"

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Episode: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Shaped[ndarray, "n"]) -> Trajectories: ...

    def __getitem__(
        self, index: int | np.integer[Any] | slice | Sequence[int] | Shaped[ndarray, "n"]
    ) -> Episode | Trajectories:
        """Return an episode, or the selected episodes in the order asked for.

        Raises:
            DatasetError: The selection is empty or of a wrong type.
            IndexError: There is no such episode.
        """
        if not isinstance(index, (int, np.integer)):
            return select(self, select_episodes(index, len(self)))
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index}: there are {len(self)}")
        episode = int(index) % len(self)
        steps = slice(self.episode_offsets[episode], self.episode_offsets[episode + 1])
        return Episode(
            observations=self.observations[steps],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=bool(self.terminated[episode]),
            truncated=bool(self.truncated[episode]),
            return_=float(self.returns[episode]),
        )

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes."""
        return len(self.rewards)

    @cached_property
    def lengths(self) -> Int64[ndarray, "E"]:
        """Steps of each episode."""
        return np.diff(self.episode_offsets)

    @cached_property
    def returns(self) -> Float64[ndarray, "E"]:
        """Return of each episode, in the environment's units."""
        return compute_returns(self.rewards, self.episode_offsets)

    @cached_property
    def returns_to_go(self) -> Float32[ndarray, "N"]:
        """Rewards still to come at each step, its own included, in the environment's units."""
        return compute_returns_to_go(self.rewards, self.episode_offsets)

    def stack_frames(self, steps: Int64[ndarray, "M"]) -> Num[ndarray, "M *obs"]:
        """Return what the policy sees at given steps, in ``observation_space``.

        Args:
            steps: Flat indices, 0 to N - 1, in any order.

        Returns:
            The last ``frame_stack`` frames up to each step, oldest first, (M, frame_stack, *frame);
            zeros before the episode's start. With a ``frame_stack`` of 1, the observations.

        Raises:
            DatasetError: An index is not a step of the data; names the first.

        Source: Dopamine's replay buffer and Stable-Baselines3's ``VecFrameStack`` pad alike.
        """
        steps = check_steps(steps, self.n_steps)
        if self.frame_stack == 1:
            observations: Num[ndarray, "M *obs"] = self.observations[steps]
            return observations
        episodes = np.searchsorted(self.episode_offsets, steps, side="right") - 1
        return gather_stacks(
            self.observations, steps, self.episode_offsets[episodes], self.frame_stack
        )

    @property
    def cut(self) -> Bool[ndarray, "E"]:
        """Per episode, whether collection stopped before it was terminated or truncated."""
        cut: Bool[ndarray, "E"] = ~(self.terminated | self.truncated)
        return cut

    def summary(self) -> TrajectoriesSummary:
        """Describe the data; prints as text, and as a table in rich."""
        return TrajectoriesSummary.from_arrays(
            returns=self.returns,
            lengths=self.lengths,
            terminated=self.terminated,
            truncated=self.truncated,
            observation_space=str(self.observation_space),
            action_space=str(self.action_space),
            env_id=self.env_id,
            source=self.source,
        )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a store: a folder of ``.npy`` files and a JSON, which :meth:`open` maps.

        It is written under a temporary name and renamed, so it is there whole or not at all.

        Args:
            folder: Where; folders on the way are made.
            overwrite: Whether a store that is there already is replaced. Nothing else ever is.

        Raises:
            DatasetError: ``folder`` exists and may not be replaced.
            OSError: It cannot be written, or the disk is full.
        """
        from sb3_dmamba.data.store import save_store

        save_store(self, folder, overwrite)

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
        """Open a store, memory-mapped: data larger than memory can be learnt from.

        Sizes, types and offsets are checked and no step is read; values were checked when they
        were written. Windows are then read as they are drawn. Selecting episodes that do not
        follow each other copies large data to temporary files.

        Args:
            folder: What :meth:`save` or a ``TrajectoriesWriter`` wrote.
            verify: Whether every value is looked at again.

        Raises:
            DatasetError: A file is missing, damaged or of a newer version; names it.
        """
        from sb3_dmamba.data.store import load_store

        return load_store(folder, verify=verify)
