"""A d3rlpy replay buffer over our trajectories and window sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch.distributed as dist
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import (
    BasicTrajectorySlicer,
    BasicTransitionPicker,
    DatasetInfo,
    Episode,
    FrameStackTrajectorySlicer,
    FrameStackTransitionPicker,
    ReplayBufferBase,
    Signature,
    TrajectoryMiniBatch,
    TransitionMiniBatch,
)
from d3rlpy.dataset.io import dump
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data import Trajectories, WindowBatch, WindowSampler, load_trajectories
from sb3_dmamba.errors import DatasetError, SpaceError


def as_replay_buffer(
    source: Any, *, seed: int = 0, first_batch: int | None = None, **options: Any
) -> WindowReplayBuffer:
    """Load a dataset for d3rlpy's ``fit``, with the windows that our ``fit`` would draw.

    Args:
        source: Anything :func:`~sb3_dmamba.load_trajectories` takes.
        seed: Seed of the windows: that of ``DecisionMamba(seed=...)`` draws the same ones. Give
            every process of a data-parallel run the same seed; each draws its own windows from it.
        first_batch: Number of the first batch. None: each ``fit`` goes on after the algorithm's
            updates so far, so that a run that was saved and loaded continues exactly.
        **options: Options of :func:`~sb3_dmamba.load_trajectories` for the source.

    Returns:
        A replay buffer whose batches are a function of seed and number, and in a data-parallel
        run of the process's rank and the number of processes.

    Raises:
        DatasetError: The dataset cannot be read, or has no transition as d3rlpy counts them.
        SpaceError: The Discrete action space does not start at 0.
    """
    return WindowReplayBuffer(load_trajectories(source, **options), seed, first_batch)


class _Episodes(Sequence[Any]):
    """The trajectories as d3rlpy's episodes, each made on access."""

    def __init__(self, trajectories: Trajectories) -> None:
        self._trajectories = trajectories

    def __len__(self) -> int:
        return len(self._trajectories)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        data = self._trajectories
        part = data[index]
        actions = part.actions[:, None] if part.actions.ndim == 1 else part.actions
        return Episode(
            observations=part.observations[:, None] if data.frame_stack > 1 else part.observations,
            actions=actions,
            rewards=part.rewards[:, None],
            terminated=part.terminated,
        )


class WindowReplayBuffer(ReplayBufferBase):
    """A view of recorded episodes that draws windows as ``sb3_dmamba.DecisionMamba.fit`` does.

    The n-th batch is a function of the seed and n alone; d3rlpy's own buffers draw from NumPy's
    global generator. Where torch's default process group is initialised, as for ``enable_ddp``,
    each process draws its own rows of a batch ``world_size`` times as large; together they draw
    what one process with the larger batch would. Nothing is copied, so memory-mapped data stays on
    disk. Made by :func:`as_replay_buffer`.

    Args:
        trajectories: The episodes.
        seed: Seed of the windows, the same in every process.
        first_batch: Number of the first batch; None is the algorithm's number of updates.

    Attributes:
        n_batches: Number of the next batch.

    Raises:
        DatasetError: No episode has a transition as d3rlpy counts them.
        SpaceError: The Discrete action space does not start at 0.
    """

    def __init__(
        self, trajectories: Trajectories, seed: int, first_batch: int | None = None
    ) -> None:
        self.trajectories = trajectories
        self.n_batches = first_batch or 0
        self._follows_updates = first_batch is None
        self._seed = seed
        self._samplers: dict[tuple[int, ...], WindowSampler] = {}
        self._episodes = _Episodes(trajectories)
        # As d3rlpy counts: the last step of an episode that was not terminated is not a transition.
        counts = trajectories.lengths - ~trajectories.terminated
        self._last_transitions = np.cumsum(counts)
        if not self.transition_count:
            raise DatasetError(
                "every episode has one step and was not terminated, and d3rlpy's fit draws a "
                "transition, which none of them has",
                setting="terminated",
            )
        self._transition_picker = BasicTransitionPicker()
        self._trajectory_slicer = BasicTrajectorySlicer()
        if trajectories.frame_stack > 1:
            self._transition_picker = FrameStackTransitionPicker(trajectories.frame_stack)
            self._trajectory_slicer = FrameStackTrajectorySlicer(trajectories.frame_stack)
        self._dataset_info = _describe(trajectories, self._episodes[0])

    def follow(self, n_updates: int) -> None:
        """Go on with the batch of an algorithm's next update, unless ``first_batch`` was given."""
        if self._follows_updates:
            self.n_batches = n_updates

    def sample_trajectory_batch(self, batch_size: int, length: int) -> TrajectoryMiniBatch:
        """Draw the next ``batch_size`` windows of ``length`` steps, padded on the left."""
        sampler = self._find_sampler(batch_size, length)
        first_steps = sampler.draw_first_steps(self.n_batches)
        windows = sampler.window_at(first_steps)
        rewards, terminals = self._outcomes(first_steps, windows.padding_mask.numpy())
        self.n_batches += 1
        return _to_d3rlpy(windows, rewards, terminals)

    def _find_sampler(self, batch_size: int, length: int) -> WindowSampler:
        """Return the sampler of this process's rows of the batch of all processes."""
        rank, size = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, size = dist.get_rank(), dist.get_world_size()
        key = (batch_size, length, rank, size)
        if key not in self._samplers:
            self._samplers[key] = WindowSampler(
                self.trajectories,
                length,
                batch_size * size,
                self._seed,
                rows=slice(rank * batch_size, (rank + 1) * batch_size),
            )
        return self._samplers[key]

    def _outcomes(self, first_steps: ndarray, real: ndarray) -> tuple[ndarray, ndarray]:
        """Return rewards and terminal flags (B, K) of windows, which ``WindowBatch`` lacks."""
        data = self.trajectories
        steps = np.minimum(first_steps[:, None] + np.arange(real.shape[1]), data.n_steps - 1)
        episodes = np.searchsorted(data.episode_offsets, first_steps, side="right") - 1
        is_last = steps + 1 == data.episode_offsets[episodes + 1][:, None]
        terminals = real & is_last & data.terminated[episodes][:, None]
        return np.where(real, data.rewards[steps], 0.0), terminals

    def sample_trajectory(self, length: int) -> Any:
        """Draw one window with d3rlpy's own slicer and NumPy's global generator."""
        return self._trajectory_slicer(*self._draw_transition(), length)

    def sample_transition(self) -> Any:
        """Draw one transition, as d3rlpy's buffers do."""
        return self._transition_picker(*self._draw_transition())

    def sample_transition_batch(self, batch_size: int) -> TransitionMiniBatch:
        """Draw transitions, as d3rlpy's buffers do."""
        return TransitionMiniBatch.from_transitions(
            [self.sample_transition() for _ in range(batch_size)]
        )

    def _draw_transition(self) -> tuple[Any, int]:
        return self[int(np.random.randint(self.transition_count))]  # noqa: NPY002  # as d3rlpy

    def __getitem__(self, index: int) -> tuple[Any, int]:
        episode = int(np.searchsorted(self._last_transitions, index, side="right"))
        before = int(self._last_transitions[episode - 1]) if episode > 0 else 0
        return self._episodes[episode], index - before

    def __len__(self) -> int:
        return self.transition_count

    @property
    def episodes(self) -> Sequence[Any]:
        """d3rlpy's episodes, each made on access."""
        return self._episodes

    def size(self) -> int:
        """Return the number of episodes."""
        return len(self._episodes)

    @property
    def transition_count(self) -> int:
        """Number of transitions, as d3rlpy counts them."""
        return int(self._last_transitions[-1])

    @property
    def buffer(self) -> WindowReplayBuffer:
        """The container of episodes, which is this object."""
        return self

    @property
    def transition_picker(self) -> Any:
        """d3rlpy's picker of transitions."""
        return self._transition_picker

    @property
    def trajectory_slicer(self) -> Any:
        """d3rlpy's slicer of windows; scalers are fitted through it."""
        return self._trajectory_slicer

    @property
    def dataset_info(self) -> DatasetInfo:
        """Shapes, types and the kind of actions."""
        return self._dataset_info

    def dump(self, f: BinaryIO) -> None:
        """Write d3rlpy's HDF5 file of the episodes."""
        dump(list(self._episodes), f)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise a DatasetError: this buffer is a view and cannot be written to."""
        raise DatasetError(
            "this buffer is a view of recorded episodes and cannot be written to: use "
            "trajectories.to_d3rlpy(), which copies them into d3rlpy's own"
        )

    append = append_episode = clip_episode = from_episode_generator = load


def _to_d3rlpy(windows: WindowBatch, rewards: ndarray, terminals: ndarray) -> TrajectoryMiniBatch:
    """Move padding from the right to the left, and count timesteps from 1."""
    real = windows.padding_mask.numpy()
    length = real.shape[1]
    row = np.arange(len(real))[:, None]
    order = (np.arange(length) - (length - real.sum(axis=1))[:, None]) % length  # (B, K)

    def move(values: ndarray) -> ndarray:
        moved: ndarray = values[row, order].astype(np.float32)
        return moved

    actions = windows.actions.numpy()
    timesteps = np.where(real, windows.timesteps.numpy() + 1, 0)
    return TrajectoryMiniBatch(
        observations=move(windows.observations.numpy()),
        actions=move(actions[..., None] if actions.ndim == 2 else actions),
        rewards=move(rewards)[..., None],
        returns_to_go=move(windows.returns_to_go.numpy())[..., None],
        terminals=move(terminals)[..., None],
        timesteps=move(timesteps),
        masks=move(real),
        length=length,
    )


def _describe(trajectories: Trajectories, episode: Any) -> DatasetInfo:
    space = trajectories.action_space
    is_discrete = isinstance(space, spaces.Discrete)
    if isinstance(space, spaces.Discrete) and space.start != 0:
        message = (
            f"the action space {space} starts at {space.start}, and d3rlpy counts actions from 0: "
            f"wrap the environment so that its actions do, and subtract {space.start} from the data"
        )
        raise SpaceError(message, setting="action_space", value=space)
    return DatasetInfo(
        observation_signature=episode.observation_signature,
        action_signature=episode.action_signature,
        reward_signature=Signature(dtype=[np.dtype(np.float32)], shape=[(1,)]),
        action_space=ActionSpace.DISCRETE if is_discrete else ActionSpace.CONTINUOUS,
        action_size=int(space.n) if isinstance(space, spaces.Discrete) else space.shape[0],
    )
