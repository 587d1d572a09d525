"""One update by several processes: each does its rows, all end with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import BackendError
from sb3_dmamba.training.distributed import Processes

if TYPE_CHECKING:
    from sb3_dmamba.training.updater import Updater

__all__ = ["DataParallel", "train_together"]

_STOP, _GO_ON, _COLLECT = 0, 1, 2  # the leader's commands


class _Loss(nn.Module):
    """A loss as the ``forward`` of a module, which is what DistributedDataParallel takes.

    It has the policy's parameters and not its buffers: those are constants of the data, and
    would be sent around at every update.
    """

    def __init__(self, policy: nn.Module, compute: Callable[[WindowBatch], Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(policy.parameters())
        self.compute = compute

    def forward(self, batch: WindowBatch) -> Tensor:
        return self.compute(batch)


class DataParallel:
    """The part of an update that several processes do together.

    ``DistributedDataParallel`` averages gradients over processes. A loss is the mean over the real
    steps of the whole batch, and the rows of one process may have fewer than those of another, so
    each loss is weighted by its share of the steps: the sum is what one process would compute.

    Args:
        updater: What this process updates; its weights and moments become the leader's.
        compute: The mean loss of a batch, as one process computes it.
        processes: More than one.
    """

    def __init__(
        self, updater: Updater, compute: Callable[[WindowBatch], Tensor], processes: Processes
    ) -> None:
        self.processes = processes
        self._updater = updater
        self._loss = DistributedDataParallel(_Loss(updater.policy, compute))
        self._share_moments()

    @property
    def streams(self) -> tuple[int, ...]:
        """What tells this process's dropout from that of the others, and of a single one."""
        return () if self.processes.is_leader else (self.processes.rank,)

    def compute_loss(self, batch: WindowBatch) -> Tensor:
        """Return the loss of the whole batch.

        Args:
            batch: This process's rows, on its device.

        Returns:
            A scalar, the same in every process. The gradients of its parameters, which become
            those of the whole batch, are averaged over the processes as they are computed.
        """
        mean: Tensor = self._loss(batch)
        n_real = batch.padding_mask.sum()
        totals = torch.stack([mean.detach().float() * n_real, n_real.float()])
        dist.all_reduce(totals)  # two numbers; a GPU's stay there, and nobody waits for them
        loss, n_real_everywhere = totals[0] / totals[1], totals[1]
        weighted = mean * (n_real * self.processes.size / n_real_everywhere)
        whole: Tensor = weighted - weighted.detach() + loss  # this value, those gradients
        return whole

    def agree(self, keep_going: bool) -> bool:
        """Wait for the leader, and do what it decides.

        Args:
            keep_going: Whether to go on; the leader's counts.

        Returns:
            The leader's.
        """
        command = self.processes.tell(_GO_ON if keep_going else _STOP)
        while command == _COLLECT:
            self._join_carried()
            command = self.processes.tell(command)
        return command == _GO_ON

    def collect_carried(self) -> dict[str, Tensor]:
        """Return the carried state of the whole batch; the leader's to call, as it saves."""
        if not self._updater.config.carry_state:
            return {}
        self.processes.tell(_COLLECT)  # the others wait in agree
        return self._join_carried()

    def leave(self) -> None:
        """Make this process's carried state the whole batch's; all of them must call."""
        carried = self._join_carried()
        self._updater.carried.restore(self._updater.policy.model, carried)

    def _join_carried(self) -> dict[str, Tensor]:
        return self.processes.join_rows(self._updater.carried.state())

    def _share_moments(self) -> None:
        """Give every process the leader's moments, as DistributedDataParallel does the weights."""
        optimizer = self._updater.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = [optimizer.state.get(parameter, {}) for parameter in parameters]
        tensors = [state[name] for state in states for name in sorted(state)]
        self.processes.check_alike({"the number of the optimiser's moments": len(tensors)})
        for tensor in tensors:
            on_device = tensor.to(self._updater.policy.device)
            dist.broadcast(on_device, src=0)
            tensor.copy_(on_device)


@contextmanager
def train_together(updater: Updater, processes: Processes) -> Iterator[None]:
    """Let an updater's updates be those of several processes within the block.

    Before and after it every process has everything; within it, its rows of the carried state.

    Args:
        updater: What this process updates.
        processes: Who trains; with one nothing changes.

    Raises:
        ConfigError: The batch cannot be split evenly among them.
        BackendError: ``cuda_graph="on"``.
    """
    if processes.size == 1:
        yield
        return
    if updater.config.cuda_graph == "on":
        raise BackendError(
            f'cuda_graph="on" is for updates of one process, and {processes.size} processes train '
            f'here, whose gradients meet between kernels: set cuda_graph="auto"',
            setting="cuda_graph",
            value="on",
            choices=("auto", "off"),
        )
    rows = processes.rows(updater.config.batch_size)
    updater.carried.select(rows, updater.config.batch_size)
    updater.parallel = DataParallel(updater, updater.compute_loss, processes)
    try:
        yield
        updater.parallel.leave()
    finally:
        updater.parallel = None
