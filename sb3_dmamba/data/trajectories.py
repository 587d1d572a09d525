"""``Trajectories``: the container that every dataset becomes, and the writer of its store."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64, Int64, Num, Shaped
from numpy import ndarray
from typing_extensions import Self

from sb3_dmamba.checks import check_number
from sb3_dmamba.data.export import to_d3rlpy, to_minari
from sb3_dmamba.data.mapping import (
    as_array,
    from_pickled,
    is_mapped,
    iterate_rows,
    join_rows,
    to_pickled,
)
from sb3_dmamba.data.returns import (
    Spread,
    TrajectoriesSummary,
    compute_returns,
    compute_returns_to_go,
    iterate_groups,
    sum_episodes,
)
from sb3_dmamba.data.store import (
    NpyStream,
    check_checksums,
    check_place,
    make_temporary,
    move_into_place,
    read_store,
    row_types,
    write_header,
)
from sb3_dmamba.data.validation import (
    ARRAYS,
    STEP_ARRAYS,
    check_episodes,
    check_finite,
    check_flat,
    check_frame_stack,
    check_json,
    check_steps,
    find_episodes,
    iterate_chunks,
    rows_per_chunk,
    validate_arrays,
    within,
)
from sb3_dmamba.errors import ConfigError, DatasetError, SpaceError
from sb3_dmamba.spaces import (
    check_action_space,
    describe_bounds,
    find_columns,
    flat_space,
    suggest_bounds,
    write_box,
)

REWARD_MODES = ("dense", "delayed")


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
class Trajectories:
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
        checked: dict[str, Any] = {
            **validate_arrays(given, *spaces_, self.frame_stack),
            "frame_stack": int(self.frame_stack),
            "env_kwargs": check_json(self.env_kwargs),
        }
        self._set(checked)

    def _set(self, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

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
            observations=np.concatenate([as_array(part, "observations") for part in observations]),
            actions=np.concatenate([as_array(part, "actions") for part in actions]),
            rewards=np.concatenate([as_array(part, "rewards") for part in rewards]),
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
            return self._select(_find_episodes(index, len(self)))
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

    def _select(self, episodes: Int64[ndarray, "n"]) -> Trajectories:
        """Return episodes by number: views of those in a row, else copies (mapped where large)."""
        starts, lengths = self.episode_offsets[episodes], self.lengths[episodes]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        arrays = {name: getattr(self, name) for name in STEP_ARRAYS}
        if not (np.diff(episodes) != 1).any():
            steps = slice(int(starts[0]), int(starts[0] + offsets[-1]))
            chosen = {name: array[steps] for name, array in arrays.items()}
        elif any(map(is_mapped, arrays.values())):
            chosen = {name: _copy_ranges(a, starts, starts + lengths) for name, a in arrays.items()}
        else:
            rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
            chosen = {name: array[rows] for name, array in arrays.items()}
        ends = {name: getattr(self, name)[episodes] for name in ("terminated", "truncated")}
        return replace(self, **chosen, **ends, episode_offsets=offsets)

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

    @property
    def cut(self) -> Bool[ndarray, "E"]:
        """Per episode, whether collection stopped before it was terminated or truncated."""
        cut: Bool[ndarray, "E"] = ~(self.terminated | self.truncated)
        return cut

    def stack_frames(self, steps: Int64[ndarray, "M"]) -> Num[ndarray, "M *obs"]:
        """Return what the policy sees at given steps, in ``observation_space``.

        Args:
            steps: Flat indices, 0 to N - 1, in any order.

        Returns:
            The last ``frame_stack`` frames up to each step, oldest first, (M, frame_stack, *frame),
            zeros before the episode's start; with a ``frame_stack`` of 1, the observations.

        Raises:
            DatasetError: An index is not a step of the data; names the first.
        """
        steps = check_steps(steps, self.n_steps)
        frames = self.observations
        if self.frame_stack == 1:
            observations: Num[ndarray, "M *obs"] = frames[steps]
            return observations
        episodes = find_episodes(steps, self.episode_offsets)
        rows = steps[:, None] + np.arange(1 - self.frame_stack, 1)  # (M, frame_stack)
        before = rows < self.episode_offsets[episodes][:, None]
        rows[before] = steps[0]  # any that is needed anyway
        stacks = np.empty((*rows.shape, *frames.shape[1:]), dtype=frames.dtype)
        frames.take(rows, axis=0, out=stacks, mode="clip")  # "raise" would copy once more
        if before.any():
            stacks[before] = 0
        return stacks

    def summary(self) -> TrajectoriesSummary:
        """Describe the data; prints as text, and as a table in rich."""
        return TrajectoriesSummary(
            episodes=len(self),
            steps=self.n_steps,
            returns=Spread.of(self.returns),
            lengths=Spread.of(self.lengths),
            terminated=int(self.terminated.sum()),
            truncated=int(self.truncated.sum()),
            cut=int(self.cut.sum()),
            observation_space=str(self.observation_space),
            action_space=str(self.action_space),
            env_id=self.env_id,
            source=self.source,
        )

    def drop_cut_episodes(self) -> Trajectories:
        """Return the episodes that were terminated or truncated.

        Raises:
            DatasetError: None was.
        """
        return self if not self.cut.any() else self[~self.cut]

    def take_top(self, fraction: float) -> Trajectories:
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
        exact = fraction * len(self)  # 0.29 * 100 is 28.999999999999996
        count = max(1, math.floor(exact * (1 + 1e-12)))
        if count == len(self):
            return self
        best = np.sort(np.argsort(-self.returns, kind="stable")[:count])
        return self[best]._described(f"the best {100 * share:g}% of episodes")

    def with_delayed_rewards(self) -> Trajectories:
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
        return replace(self, rewards=delayed)._described("delayed rewards")

    def _described(self, change: str) -> Trajectories:
        """Note in ``source`` how the data was changed."""
        return replace(self, source=f"{self.source} ({change})" if self.source else change)

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
        with TrajectoriesWriter(folder, overwrite=overwrite, **metadata_of(self)) as writer:
            writer.append_all(self)
            writer.finish()

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
        """Open a store, memory-mapped: data larger than memory can be learnt from.

        Sizes, types and offsets are checked; no step is read. Selecting episodes that do not follow
        each other copies large data to temporary files.

        Args:
            folder: What :meth:`save` or a ``TrajectoriesWriter`` wrote.
            verify: Whether every value is looked at again, and its array's checksum compared.

        Raises:
            DatasetError: A file is missing, damaged or of a newer version; names it.
        """
        return load_store(folder, verify=verify)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a store as its place: neither read whole nor written once more."""
        return {name: to_pickled(value) for name, value in _fields_of(self).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._set({name: from_pickled(value) for name, value in state.items()})

    def to_d3rlpy(self) -> Any:
        """Return a ``d3rlpy.dataset.ReplayBuffer`` whose episodes are views of these.

        d3rlpy only knows terminated: cut episodes come back as truncated. Frames that are stacked
        when drawn get a channel, and the buffer d3rlpy's own frame stacking.

        Raises:
            DatasetError: No episode is left: d3rlpy holds none of one step that was not terminated,
                which are left out with a warning.
            SpaceError: The Discrete action space does not start at 0.
            MissingDependencyError: d3rlpy is not installed.
        """
        return to_d3rlpy(self)

    def to_minari(self, dataset_id: str, **metadata: Any) -> Any:
        """Write a dataset into Minari's folder, an episode at a time; return its MinariDataset.

        Minari also wants the observation after each episode's last step, which is not recorded: the
        last one is repeated, and the description says so. Frames are stored as the policy sees
        them.

        Args:
            dataset_id: ``"name-v0"``, with a namespace or without: ``"mine/hopper/medium-v0"``.
            metadata: ``algorithm_name``, ``author``, ``description`` and so on, as Minari has them.

        Raises:
            DatasetError: It exists already, or the id is none.
        """
        return to_minari(self, dataset_id, **metadata)


def metadata_of(trajectories: Trajectories) -> dict[str, Any]:
    """Return the fields that are not arrays."""
    return {name: value for name, value in _fields_of(trajectories).items() if name not in ARRAYS}


def _fields_of(trajectories: Trajectories) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(trajectories)]
    return {name: getattr(trajectories, name) for name in names}


def replace(trajectories: Trajectories, **changes: Any) -> Trajectories:
    """Return a copy with fields that need no check, being made of checked ones."""
    return _assemble({**_fields_of(trajectories), **changes})


def _assemble(fields: Mapping[str, Any]) -> Trajectories:
    """Make ``Trajectories`` of fields that were checked before, without looking at the steps."""
    names = {field.name for field in dataclasses.fields(Trajectories)}
    assert set(fields) == names, names ^ set(fields)
    trajectories = object.__new__(Trajectories)
    trajectories._set(fields)
    return trajectories


def load_store(folder: str | os.PathLike[str], *, verify: bool = False) -> Trajectories:
    """See :meth:`Trajectories.open`."""
    path = Path(folder).expanduser()
    fields = read_store(path)
    if not verify:
        return _assemble(fields)
    try:
        data = Trajectories(**fields)
    except DatasetError as error:
        raise within(error, f"the store {path} holds what was never written", path=path) from error
    check_checksums(path, fields)
    return data


def check_transform(reward_mode: str, top_fraction: float | None) -> None:
    """Raise ConfigError unless :func:`transform` takes these options."""
    if reward_mode not in REWARD_MODES:
        problem = f"reward_mode={reward_mode!r}: choose 'dense' or 'delayed'"
        raise ConfigError(problem, setting="reward_mode", value=reward_mode, choices=REWARD_MODES)
    if top_fraction is not None:
        _check_fraction("top_fraction", top_fraction)


def transform(
    trajectories: Trajectories, reward_mode: str = "dense", top_fraction: float | None = None
) -> Trajectories:
    """Apply the options of ``load_trajectories`` to a dataset."""
    if top_fraction is not None:
        trajectories = trajectories.take_top(top_fraction)
    return trajectories.with_delayed_rewards() if reward_mode == "delayed" else trajectories


def with_spaces(
    trajectories: Trajectories,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> Trajectories:
    """Return a dataset with other spaces, which must hold what it has; None keeps its own.

    Parts of observations are brought into the order of ``observation_space``.
    """
    if observation_space is action_space is None:
        return trajectories
    fields = _fields_of(trajectories)
    if observation_space is not None:
        space = fields["observation_space"] = flat_space(observation_space)
        columns = find_columns(trajectories.observation_space, space)
        if columns is not None:
            rows = trajectories.observations
            pieces = (piece[:, columns] for piece in iterate_rows(rows))
            fields["observations"] = join_rows(pieces, rows.dtype, rows.shape, rows)
    if action_space is not None:
        fields["action_space"] = action_space
    return Trajectories(**fields)


def check_action_bounds(trajectories: Trajectories) -> None:
    """Check that the actions of a dataset can be learnt between the bounds of their space.

    Raises:
        SpaceError: A bound is not finite, too wide for the actions, or leaves no room; ``choices``
            has the Box that the actions lie in.
    """
    space = trajectories.action_space
    if not isinstance(space, spaces.Box) or not describe_bounds(space):
        return
    chunks = [(rows.min(0), rows.max(0)) for _, rows in iterate_chunks(trajectories.actions)]
    low, high = np.min([c[0] for c in chunks], 0), np.max([c[1] for c in chunks], 0)
    problem = describe_bounds(space, np.maximum(np.abs(low), np.abs(high)))
    if problem:
        box = suggest_bounds(low, high)
        message = (
            f"the action space {space} has {problem}: pass action_space={write_box(box)}, in which "
            "the data's actions lie, to load_trajectories"
        )
        raise SpaceError(message, setting="action_space", value=space, choices=[box])


def _check_fraction(name: str, fraction: float) -> float:
    return check_number(name, fraction, math.ulp(0.0), 1.0, "above 0 and up to 1")


def _find_episodes(
    index: slice | Sequence[int] | Shaped[ndarray, "n"], n_episodes: int
) -> Int64[ndarray, "n"]:
    """Return the numbers of the episodes that an index selects, in its order."""
    if not isinstance(index, slice):
        index = np.asarray(index)
        if index.ndim != 1 or (len(index) and index.dtype.kind not in "biu"):
            problem = f"index={index!r}: give an integer, a slice, integers or booleans"
            raise DatasetError(problem, setting="index", value=index)
        index = index if len(index) else index.astype(np.int64)
    episodes: Int64[ndarray, "n"] = np.arange(n_episodes)[index]
    if not len(episodes):
        problem = f"{index!r} selects none of the {n_episodes} episodes"
        raise DatasetError(problem, setting="index", value=index)
    return episodes


def _copy_ranges(array: ndarray, starts: Int64[ndarray, "n"], ends: Int64[ndarray, "n"]) -> ndarray:
    shape = (int((ends - starts).sum()), *array.shape[1:])
    most = rows_per_chunk(array)
    pieces = (
        array[first : min(first + most, end)]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for first in range(start, end, most)
    )
    return join_rows(pieces, array.dtype, shape, array)


def _delay(rewards: ndarray, offsets: Int64[ndarray, "E+1"]) -> Iterator[ndarray]:
    for group, ends in iterate_groups(rewards, offsets):
        delayed = np.zeros_like(group)
        delayed[ends[1:] - 1] = sum_episodes(group, ends)
        yield delayed


class TrajectoriesWriter:
    """Writes a store episode by episode, in the memory of one episode.

    A context manager::

        with TrajectoriesWriter(folder, observation_space=..., action_space=...) as writer:
            for episode in episodes:
                writer.append(obs, actions, rewards, terminated=True, truncated=False)
            data = writer.finish()

    It is written under a temporary name and renamed by :meth:`finish`; without, or after an
    exception, ``folder`` is as it was before.

    Args:
        folder: Where the store will be; folders on the way are made.
        observation_space: As :class:`Trajectories` has it, and so the other fields.
        action_space: The environment's action space.
        env_id: What ``gymnasium.make`` takes, where it is known.
        env_kwargs: Its other arguments, which JSON can hold.
        source: Where the data came from, for people.
        frame_stack: Frames in an observation; where more than 1, single frames are appended.
        overwrite: Whether a store that is there already is replaced. Nothing else ever is.

    Raises:
        DatasetError: ``folder`` may not be replaced, or ``env_kwargs`` or ``frame_stack`` is wrong.
        SpaceError: The spaces cannot be learnt, or do not hold such stacks.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        source: str = "",
        frame_stack: int = 1,
        overwrite: bool = False,
    ) -> None:
        check_flat(observation_space)
        self._folder = Path(folder).expanduser().absolute()
        self._overwrite = overwrite
        check_place(self._folder, self._overwrite)
        self._fields: dict[str, Any] = {
            "observation_space": observation_space,
            "action_space": check_action_space(action_space),
            "env_id": env_id,
            "env_kwargs": check_json(env_kwargs or {}),
            "source": source,
            "frame_stack": check_frame_stack(frame_stack, observation_space),
        }
        self._terminated: list[bool] = []
        self._truncated: list[bool] = []
        self._offsets = [0]
        self._temporary: Path | None = None
        self._streams: dict[str, NpyStream] = {}

    def __enter__(self) -> Self:
        if self._temporary is not None:
            raise DatasetError(f"the writer of {self._folder} was entered before: make another")
        self._temporary, self._lock = make_temporary(self._folder)
        for name, (dtype, shape) in row_types(self._fields).items():
            self._streams[name] = NpyStream(self._temporary / f"{name}.npy", dtype, shape)
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        self._streams = {}
        if self._temporary is not None:
            self._lock.release()
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def n_episodes(self) -> int:
        """Episodes written so far."""
        return len(self._terminated)

    @property
    def n_steps(self) -> int:
        """Steps written so far."""
        return self._offsets[-1]

    def append(
        self,
        observations: Num[ndarray, "T *obs"],
        actions: Num[ndarray, "T *action"],
        rewards: Num[ndarray, "T"],
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Write one episode.

        Args:
            observations: Those that actions were chosen on, (T, *obs), or (T, *frame) to stack.
            actions: (T, A) for a Box, (T,) for Discrete.
            rewards: (T,), in the environment's units.
            terminated: Whether the environment ended the episode.
            truncated: Whether a limit ended it.

        Raises:
            DatasetError: The episode is not such as :class:`Trajectories` takes, or the writer is
                not open.
            OSError: The disk is full.
        """
        self._check_open()
        try:
            episode = Trajectories.from_episodes(
                [observations], [actions], [rewards], [terminated], [truncated], **self._fields
            )
        except DatasetError as error:
            number = self.n_episodes
            raise within(error, f"episode {number} to be written", episode=number) from error
        self.append_all(episode)

    def append_all(self, episodes: Trajectories) -> None:
        """Write all episodes of a dataset, which were checked when it was made.

        Raises:
            DatasetError: Their spaces or frame stack differ from the store's, or the writer is not
                open.
            OSError: The disk is full.
        """
        self._check_open()
        for name in ("observation_space", "action_space", "frame_stack"):
            theirs, ours = getattr(episodes, name), self._fields[name]
            if theirs != ours:
                problem = f"the episodes' {name} is {theirs}, and the store's {ours}"
                raise DatasetError(problem, setting=name, value=theirs, choices=[ours])
        try:
            for name, stream in self._streams.items():
                for rows in iterate_rows(getattr(episodes, name)):
                    stream.write(rows)
        except BaseException:
            self._abandon()  # the arrays differ in length now: nothing can be finished
            raise
        self._terminated += episodes.terminated.tolist()
        self._truncated += episodes.truncated.tolist()
        self._offsets += (self.n_steps + episodes.episode_offsets[1:]).tolist()

    def finish(self, *, source: str | None = None) -> Trajectories:
        """Put the store at its place and open it; ``source`` replaces the one given before.

        Raises:
            DatasetError: No episode was written, the writer is not open, or the place is taken.
            OSError: The disk is full.
        """
        self._check_open()
        if not self.n_episodes:
            raise DatasetError(f"no episode was written to {self._folder}: a store needs one")
        if source is not None:
            self._fields["source"] = source
        check_place(self._folder, self._overwrite)
        assert self._temporary is not None
        per_episode = {
            "terminated": np.array(self._terminated, np.bool_),
            "truncated": np.array(self._truncated, np.bool_),
            "episode_offsets": np.array(self._offsets, np.int64),
        }
        for name, array in per_episode.items():
            self._streams[name] = NpyStream(self._temporary / f"{name}.npy", array.dtype, ())
            self._streams[name].write(array)
        for stream in self._streams.values():
            stream.finish()
        described = {
            "n_episodes": self.n_episodes,
            "n_steps": self.n_steps,
            "crc32": {name: stream.crc32 for name, stream in self._streams.items()},
        }
        self._streams = {}
        write_header(self._temporary, self._fields, **described)
        move_into_place(self._temporary, self._folder)
        return load_store(self._folder)

    def _check_open(self) -> None:
        if not self._streams:
            raise DatasetError(
                f"the writer of {self._folder} is not open: write within "
                f"'with TrajectoriesWriter(...) as writer:' and before finish()"
            )
