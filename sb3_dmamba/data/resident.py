"""A dataset on the device that learns from it: windows are gathered where they are used."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Bool, Int, Num, Shaped
from numpy import ndarray
from torch import Tensor

from sb3_dmamba.data.mapping import iterate_rows
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.data.windows import WindowBatch, WindowSampler

__all__ = ["ResidentWindows", "count_resident_bytes"]


def count_resident_bytes(trajectories: Trajectories) -> int:
    """Return how much memory :class:`ResidentWindows` takes on the device, in bytes."""
    arrays = (trajectories.observations, trajectories.actions, trajectories.episode_offsets)
    returns_to_go = 4 * trajectories.n_steps
    return returns_to_go + sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


class ResidentWindows:
    """All steps of a dataset on one device, and the windows that begin at given ones.

    The windows are those of :class:`~sb3_dmamba.data.WindowSampler`, to the last bit. Gathering
    them looks at no value on the host, and its shapes depend on nothing but its arguments', so it
    can be part of a CUDA graph.

    Args:
        trajectories: The episodes. Mapped arrays are read in pieces.
        context_length: Steps in a window, K.
        device: Where to keep them.
    """

    def __init__(
        self, trajectories: Trajectories, context_length: int, device: torch.device
    ) -> None:
        self.trajectories = trajectories
        self.context_length = context_length
        self.frame_stack = trajectories.frame_stack
        self.n_steps = trajectories.n_steps
        self.observations = _upload(trajectories.observations, device)
        self.actions = _upload(trajectories.actions, device)
        self.returns_to_go = _upload(trajectories.returns_to_go, device)
        self.offsets = _upload(trajectories.episode_offsets, device)

    def serve(self, sampler: WindowSampler) -> bool:
        """Whether a sampler's windows are windows of these."""
        same_data = sampler.trajectories is self.trajectories
        return same_data and sampler.context_length == self.context_length

    def gather(self, first_steps: Int[Tensor, " B"], n_before: int = 0) -> WindowBatch:
        """Return the windows that begin at given steps.

        Args:
            first_steps: (B,) int64 on the device, flat indices of steps.
            n_before: Steps to give as ``WindowBatch.before``; 0 is none.

        Returns:
            The batch, on the device; ``first_steps`` of it are None.
        """
        windows = self._gather_span(first_steps, 0, self.context_length)
        if n_before == 0:
            return windows
        before = self._gather_span(first_steps, -n_before, 0)
        return dataclasses.replace(windows, before=before)

    def _gather_span(self, first_steps: Tensor, begin: int, end: int) -> WindowBatch:
        """Gather the steps at distances from ``begin`` to ``end`` from each first step."""
        episodes = torch.searchsorted(self.offsets, first_steps, right=True) - 1
        starts = self.offsets[episodes].unsqueeze(1)
        ends = self.offsets[episodes + 1].unsqueeze(1)  # (B, 1)
        span = torch.arange(begin, end, device=first_steps.device)
        steps = first_steps.unsqueeze(1) + span  # (B, K)
        real = (steps >= starts) & (steps < ends)
        inside = steps.clamp(0, self.n_steps - 1)
        if self.frame_stack == 1:
            observations = self.observations[inside]
        else:
            observations = self._stack(inside, starts)
        return WindowBatch(
            observations=_keep(observations, real),
            actions=_keep(self.actions[inside], real),
            returns_to_go=_keep(self.returns_to_go[inside], real),
            timesteps=_keep(steps - starts, real),
            padding_mask=real,
        )

    def _stack(self, steps: Int[Tensor, "B K"], starts: Int[Tensor, "B 1"]) -> Tensor:
        """Stack the frames up to each step, zeros before its episode's start: (B, K, S, *frame)."""
        back = torch.arange(1 - self.frame_stack, 1, device=steps.device)
        rows = steps.unsqueeze(-1) + back  # (B, K, S)
        frames = self.observations[rows.clamp_min(0)]
        return _keep(frames, rows >= starts.unsqueeze(-1))


def _keep(values: Num[Tensor, "*lead rest"], where: Bool[Tensor, "*lead"]) -> Tensor:
    """Zero what is not real."""
    mask = where.view(*where.shape, *([1] * (values.dim() - where.dim())))
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _upload(array: Shaped[ndarray, "N *rest"], device: torch.device) -> Tensor:
    """Copy an array to the device, piece by piece, so that no second one is ever in memory."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, device=device)
    start = 0
    for rows in iterate_rows(array):
        # A copy of the piece: torch warns of arrays that are read-only.
        tensor[start : start + len(rows)] = torch.from_numpy(np.array(rows))
        start += len(rows)
    return tensor
