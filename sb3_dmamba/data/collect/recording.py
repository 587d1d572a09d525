"""Where recorded steps go, and the loop that records them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.data.collect.envs import Stepped
from sb3_dmamba.data.collect.opening import Opened
from sb3_dmamba.data.collect.policies import Act, check_actions
from sb3_dmamba.data.frames import check_frame_stack, frame_shape
from sb3_dmamba.data.spaces import flat_space, flatten_observation, observation_dtype
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import DatasetError

__all__ = ["MemorySink", "Recorder", "Sink"]


class Sink(Protocol):
    """Where episodes go: a store's writer, or memory."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def append(
        self,
        observations: ndarray,
        actions: ndarray,
        rewards: ndarray,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Take an episode."""

    def finish(self) -> Trajectories:
        """Return all of them."""


class MemorySink:
    """Arrays that are made once; pages that nothing was written to yet cost no memory."""

    def __init__(self, n_steps: int, described: dict[str, Any]) -> None:
        flat, space = described["observation_space"], described["action_space"]
        stack = check_frame_stack(described["frame_stack"], flat)
        shape, kind = frame_shape(flat, stack), observation_dtype(flat)
        is_box = isinstance(space, spaces.Box)
        self._arrays: dict[str, Any] = {
            "observations": np.empty((n_steps, *shape), dtype=kind),
            "actions": np.empty((n_steps, *space.shape), dtype=np.float32 if is_box else np.int64),
            "rewards": np.empty(n_steps, dtype=np.float32),
        }
        self._described = described
        self._offsets = [0]
        self._ends: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass

    def append(
        self,
        observations: ndarray,
        actions: ndarray,
        rewards: ndarray,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Take an episode."""
        start = self._offsets[-1]
        steps = slice(start, start + len(rewards))
        for name, values in (
            ("observations", observations),
            ("actions", actions),
            ("rewards", rewards),
        ):
            self._arrays[name][steps] = values
        self._offsets.append(steps.stop)
        self._ends.append((terminated, truncated))

    def finish(self) -> Trajectories:
        """Return all of them."""
        ends = np.array(self._ends, dtype=bool)
        return Trajectories(
            **self._arrays,
            terminated=ends[:, 0],
            truncated=ends[:, 1],
            episode_offsets=np.array(self._offsets),
            **self._described,
        )


class Recorder:
    """Steps environments and keeps the episodes that are still running."""

    def __init__(self, sink: Sink, opened: Opened, frame_stack: int, n_steps: int) -> None:
        self._sink = sink
        self._opened = opened
        self._frame_stack = frame_stack
        self._dtype = observation_dtype(flat_space(opened.recorded_space))
        self._limit = n_steps
        self._n_steps = 0
        n = opened.envs.n
        self._running: list[list[tuple[ndarray, ndarray, float]]] = [[] for _ in range(n)]
        self._last_stacks: list[ndarray | None] = [None] * n

    def run(self, act: Act, seed: int | None) -> Iterator[int]:
        """Record until there are enough steps; yields how many more there are."""
        envs = self._opened.envs
        observations = envs.reset(seed)
        rewards, starts = np.zeros(envs.n), np.ones(envs.n, dtype=bool)
        resets = np.zeros(envs.n, dtype=bool)
        while self._n_steps < self._limit:
            actions = check_actions(
                act(observations, rewards, starts, resets),
                envs.action_space,  # type: ignore[arg-type]  # checked by the caller
                ~resets,
                self._n_steps,
            )
            shown = self._copy(observations)
            stepped = envs.step(actions.copy())  # which they may overwrite
            yield self._add(shown, actions, stepped, ~resets)
            ended = stepped.terminated | stepped.truncated
            starts = resets | (ended & ~stepped.resets)
            observations, rewards, resets = stepped.observations, stepped.rewards, stepped.resets
        for env in range(envs.n):
            self._end(env, terminated=False, truncated=False)

    def _copy(self, observations: Any) -> ndarray:
        """Return what is to be recorded of a batch, which the environments may overwrite."""
        space = self._opened.recorded_space
        flat = flatten_observation(space, self._opened.read(observations), batch=True)
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is named
            shown = np.array(flat, dtype=self._dtype)
        if shown.dtype.kind == "f" and not np.isfinite(shown).all():
            raise DatasetError(
                f"at step {self._n_steps} the environment showed {shown[~np.isfinite(shown)][0]}: "
                f"every observation must be finite"
            )
        return shown

    def _add(self, shown: ndarray, actions: ndarray, stepped: Stepped, is_live: ndarray) -> int:
        rewards = stepped.rewards
        if not np.isfinite(rewards[is_live]).all():
            raise DatasetError(
                f"at step {self._n_steps} the environment paid "
                f"{rewards[is_live & ~np.isfinite(rewards)][0]}: every reward must be finite"
            )
        live = np.flatnonzero(is_live)[: self._limit - self._n_steps].tolist()
        for env in live:  # copies: a view would keep all environments' rows in memory
            row = shown[env]
            frame = row.copy() if self._frame_stack == 1 else self._newest(env, row)
            self._running[env].append((frame, actions[env].copy(), rewards[env]))
            terminated, truncated = bool(stepped.terminated[env]), bool(stepped.truncated[env])
            if terminated or truncated:
                self._end(env, terminated, truncated)
        self._n_steps += len(live)
        return len(live)

    def _end(self, env: int, terminated: bool, truncated: bool) -> None:
        steps, self._running[env], self._last_stacks[env] = self._running[env], [], None
        if steps:
            observations, actions, rewards = (np.stack(part) for part in zip(*steps, strict=True))
            self._sink.append(
                observations, actions, rewards, terminated=terminated, truncated=truncated
            )

    def _newest(self, env: int, stack: ndarray) -> ndarray:
        """Return the last frame of a stack, whose others must be those before it."""
        last = self._last_stacks[env]
        before = np.zeros_like(stack[1:]) if last is None else last[1:]
        if not np.array_equal(stack[:-1], before):
            raise DatasetError(
                f"at step {self._n_steps} the observation is not a stack of the last "
                f"{self._frame_stack} frames, oldest first, with zeros before the episode's start "
                f"(gymnasium's FrameStackObservation needs padding_type='zero'): pass frame_stack=1"
            )
        self._last_stacks[env] = stack
        newest: ndarray = stack[-1]
        return newest.copy()
