"""Batch loaders: device-resident, prefetching, synchronous.

:func:`make_feed` chooses one. Each gives the batches of its sampler, to the bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, Num, Shaped
from numpy import ndarray
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.mapping import iterate_rows
from sb3_dmamba.data.samplers import ConsecutiveSampler, WindowBatch, WindowSampler
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError

RESIDENT_SHARE = 0.5
"""Largest share of the device's free memory that ``data_device="auto"`` gives to the dataset."""

_INDEX_BLOCK = 64  # updates whose first steps are drawn and copied together
_AHEAD = 2  # batches prefetched while one is used
_BEFORE = "before."


def make_sampler(
    trajectories: Trajectories, config: DecisionMambaConfig, seed: int, rows: slice = slice(None)
) -> WindowSampler:
    """Return the sampler of training batches, or of some rows of them with several processes."""
    length, size = config.context_length, config.batch_size
    if config.carry_state:
        return ConsecutiveSampler(trajectories, length, size, seed, rows)
    balance = config.balance if config.resolved_sampling == "balanced" else 0.0
    return WindowSampler(trajectories, length, size, seed, config.burn_in, rows, balance)


def make_feed(
    sampler: WindowSampler,
    config: DecisionMambaConfig,
    device: torch.device,
    resident: ResidentWindows | None = None,
) -> Feed:
    """Choose the batch loader."""
    wanted, is_cuda = config.data_device, device.type == "cuda"
    if wanted == "device" or (wanted == "auto" and is_cuda):
        reason = None if resident is not None else _why_not_resident(sampler, device, wanted)
        if reason is None:
            return ResidentFeed(sampler, device, resident)
        if wanted == "device":
            message = f'data_device="device": {reason}; use data_device="auto"'
            raise ConfigError(
                message, setting="data_device", value="device", choices=("auto", "cpu")
            )
    return PrefetchingFeed(sampler, device) if is_cuda else HostFeed(sampler, device)


def _why_not_resident(sampler: WindowSampler, device: torch.device, wanted: str) -> str | None:
    """Return the reason why a dataset cannot be kept on the device; None if it can."""
    if type(sampler).sample is not WindowSampler.sample:
        name = type(sampler).__name__
        return f"{name} draws batches in its own way, which is not known on the device"
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = RESIDENT_SHARE if wanted == "auto" else 1.0
    needed = count_resident_bytes(sampler.trajectories)
    if needed <= share * free:
        return None
    return f"the dataset takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device}"


@dataclass(frozen=True)
class Staged:
    """Input of one update on the device, from which the batch is assembled there."""

    kind: Hashable
    tensors: dict[str, Tensor]
    assemble: Callable[[Mapping[str, Tensor]], WindowBatch]

    def batch(self) -> WindowBatch:
        """Assemble the batch."""
        return self.assemble(self.tensors)


class Feed(Protocol):
    """Batch loader: moves the batches of a sampler to the device."""

    sampler: WindowSampler

    def stage(self, update: int) -> Staged:
        """Return the input of an update."""


class HostFeed:
    """Synchronous loader: draws a batch when it is needed, and copies it to the device."""

    def __init__(self, sampler: WindowSampler, device: torch.device) -> None:
        self.sampler = sampler
        self.device = device

    def stage(self, update: int) -> Staged:
        """Return the input of an update."""
        return _stage(self.sampler.sample(update).to(self.device))


class PrefetchingFeed:
    """Prefetching loader: a thread draws batches, and copies them on a CUDA stream of its own.

    For datasets that do not fit on the device. On the CPU batches are only drawn ahead.
    """

    def __init__(self, sampler: WindowSampler, device: torch.device) -> None:
        self.sampler = sampler
        self.device = device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="dmamba-batches")
        self._coming: dict[int, Future[tuple[WindowBatch, Any]]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def stage(self, update: int) -> Staged:
        """Return the input of an update, and prefetch the next ones."""
        wanted = range(update, update + 1 + _AHEAD)
        for number in [n for n in self._coming if n not in wanted]:
            self._coming.pop(number).cancel()
        for number in wanted:
            if number not in self._coming:
                self._coming[number] = self._worker.submit(self._fetch, number)
        batch, arrived = self._coming.pop(update).result()
        staged = _stage(batch)
        if arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrived)
            for tensor in staged.tensors.values():
                tensor.record_stream(current)
        return staged

    def _fetch(self, update: int) -> tuple[WindowBatch, Any]:
        batch = self.sampler.sample(update)
        if self._stream is None:
            return batch.to(self.device), None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return moved, arrived


class ResidentFeed:
    """Resident loader: keeps the dataset on the device, and gathers windows there.

    The sampler draws the first steps of the windows on the host, for some updates at once; only
    these are copied.
    """

    def __init__(
        self, sampler: WindowSampler, device: torch.device, windows: ResidentWindows | None = None
    ) -> None:
        self.sampler = sampler
        self.device = device
        self.windows = windows or ResidentWindows(
            sampler.trajectories, sampler.context_length, device
        )
        self._start = 0  # first update of the block that is drawn
        self._first_steps: list[Int64[ndarray, "B"]] = []
        self._on_device: Tensor | None = None

    def stage(self, update: int) -> Staged:
        """Return the first steps of an update's windows, which are gathered from them."""
        if not self._start <= update < self._start + len(self._first_steps):
            self._draw(update)
        assert self._on_device is not None
        row = update - self._start
        n_before = self.sampler.count_before(self._first_steps[row])
        windows, is_consecutive = self.windows, self.sampler.is_consecutive

        def assemble(tensors: Mapping[str, Tensor]) -> WindowBatch:
            first_steps = tensors["first_steps"]
            batch = windows.gather(first_steps, n_before)
            if not is_consecutive:
                return batch
            return dataclasses.replace(batch, first_steps=first_steps)

        first_steps = self._on_device[row]
        kind = (len(first_steps), n_before, is_consecutive)
        return Staged(kind, {"first_steps": first_steps}, assemble)

    def _draw(self, update: int) -> None:
        updates = range(update, update + _INDEX_BLOCK)
        self._start = update
        self._first_steps = [self.sampler.draw_first_steps(number) for number in updates]
        block = torch.from_numpy(np.stack(self._first_steps))
        if self.device.type == "cuda":
            block = block.pin_memory()
        self._on_device = block.to(self.device, non_blocking=True)


def _stage(batch: WindowBatch) -> Staged:
    """Stage a batch that is on the device."""
    tensors = _flatten(batch)
    kind = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items())
    return Staged(kind, tensors, _unflatten)


def _flatten(batch: WindowBatch) -> dict[str, Tensor]:
    parts = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    before = parts.pop("before")
    flat = {name: part for name, part in parts.items() if part is not None}
    if before is not None:
        flat |= {f"{_BEFORE}{name}": part for name, part in _flatten(before).items()}
    return flat


def _unflatten(tensors: Mapping[str, Tensor]) -> WindowBatch:
    own = {name: part for name, part in tensors.items() if not name.startswith(_BEFORE)}
    before = {n.removeprefix(_BEFORE): p for n, p in tensors.items() if n.startswith(_BEFORE)}
    return WindowBatch(**own, before=_unflatten(before) if before else None)


def count_resident_bytes(trajectories: Trajectories) -> int:
    """Return the device memory that :class:`ResidentWindows` takes, in bytes."""
    arrays = (trajectories.observations, trajectories.actions, trajectories.episode_offsets)
    returns_to_go = 4 * trajectories.n_steps
    return returns_to_go + sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


class ResidentWindows:
    """All steps of a dataset on one device, from which windows are gathered there.

    The windows equal those of :class:`~sb3_dmamba.data.WindowSampler`, to the bit. Gathering does
    not synchronise with the host, and its shapes depend on its arguments' shapes alone, so it can
    be part of a CUDA graph.
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
        """Whether a sampler draws windows of this dataset and length."""
        same_data = sampler.trajectories is self.trajectories
        return same_data and sampler.context_length == self.context_length

    def gather(self, first_steps: Int[Tensor, " B"], n_before: int = 0) -> WindowBatch:
        """Return the windows that begin at given steps.

        Shapes: ``first_steps`` (B,).
        """
        windows = self._gather_span(first_steps, 0, self.context_length)
        if n_before == 0:
            return windows
        before = self._gather_span(first_steps, -n_before, 0)
        return dataclasses.replace(windows, before=before)

    def _gather_span(self, first_steps: Tensor, begin: int, end: int) -> WindowBatch:
        """Gather steps ``begin`` to ``end`` relative to each first step, (B, end - begin)."""
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
        """Stack the S frames up to each step, zeros before the episode: (B, K, S, *frame)."""
        back = torch.arange(1 - self.frame_stack, 1, device=steps.device)
        rows = steps.unsqueeze(-1) + back  # (B, K, S)
        frames = self.observations[rows.clamp_min(0)]
        return _keep(frames, rows >= starts.unsqueeze(-1))


def _keep(values: Num[Tensor, "*lead rest"], where: Bool[Tensor, "*lead"]) -> Tensor:
    """Set the padding to zero."""
    mask = where.view(*where.shape, *([1] * (values.dim() - where.dim())))
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _upload(array: Shaped[ndarray, "N *rest"], device: torch.device) -> Tensor:
    """Copy an array to the device piece by piece, without a second copy in host memory."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, device=device)
    start = 0
    for rows in iterate_rows(array):
        # A copy of the piece: torch warns of read-only arrays.
        tensor[start : start + len(rows)] = torch.from_numpy(np.array(rows))
        start += len(rows)
    return tensor
