"""Data-parallel training with torch.distributed."""

from __future__ import annotations

import atexit
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import BackendError, ConfigError, DecisionMambaError, DistributedError

if TYPE_CHECKING:
    from sb3_dmamba.training.updater import Updater


Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)  # of the others, while the first one evaluates or saves
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# What Gloo and NCCL say when the other end of a connection is gone.
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "Connection reset",
    "Socket",
    "Timed out",
    "timed out",
    "timeout",
    "ncclRemoteError",
)


class Processes:
    """The processes that train one model; by default this one alone.

    Args:
        rank: This process's number, from 0.
        size: How many there are.
        control: The group in which they talk about everything but the gradients, CPU to CPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._control = control

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that logs, prints, evaluates and saves."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return this process's rows of every batch.

        Raises:
            ConfigError: The batch cannot be split evenly.
        """
        share, rest = divmod(batch_size, self.size)
        if rest:
            nearest = [n * self.size for n in (share, share + 1) if n]
            raise ConfigError(
                f"batch_size={batch_size} cannot be split evenly among {self.size} processes: "
                f"set batch_size={' or '.join(map(str, nearest))}, or start another number of them",
                setting="batch_size",
                value=batch_size,
                choices=nearest,
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run a block in one process of each machine, and then in the others.

        What the first one downloads or converts, the others find.
        """
        comes_first = self.rank == 0 or os.environ.get("LOCAL_RANK") == "0"
        if not comes_first:
            self._wait()
        yield
        if comes_first:
            self._wait()

    def from_leader(self, value: Value) -> Value:
        """Return the leader's value of something small."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Check that every process was started in the same way.

        Args:
            facts: Whatever must not differ, by name.

        Raises:
            DistributedError: Something differs; names the first such thing and its values.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(facts), group=self._control)
        for rank, theirs in enumerate(found):
            for name, value in found[0].items():
                if theirs[name] != value:
                    raise DistributedError(
                        f"{name} is {value!r} in process 0 and {theirs[name]!r} in process {rank}: "
                        f"every process must train the same model on the same data; start them "
                        f"all with one command line",
                        setting=name,
                        value=theirs[name],
                        choices=[value],
                    )

    def tell(self, command: int) -> int:
        """Send the leader's command to the others, or wait for it; return it."""
        if self.size == 1:
            return command
        box = torch.tensor(command)
        dist.broadcast(box, src=0, group=self._control)
        return int(box)

    def join_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put each process's rows together, in order; all of them must call.

        Args:
            tensors: Named alike and of the same shapes in every process.

        Returns:
            The same names, in every process; the tensors are on the CPU.
        """
        if self.size == 1:
            return dict(tensors)
        joined = {}
        for name, rows in tensors.items():
            raw = rows.detach().cpu().contiguous()
            parts = [torch.empty_like(raw) for _ in range(self.size)]
            # As bytes: Gloo does not know every number format.
            as_bytes = [part.view(torch.uint8) for part in parts]
            dist.all_gather(as_bytes, raw.view(torch.uint8), group=self._control)
            joined[name] = torch.cat(parts)
        return joined

    def _wait(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Find the processes that this one trains with, if there are any.

    They are those of ``torch.distributed``'s default group where the caller has made one, and
    those that torchrun has started together where its environment variables are set. However the
    block ends, nobody goes on waiting for this process: the others get an error.

    Args:
        device: Where this process trains: NCCL joins GPUs, Gloo CPUs.

    Yields:
        The processes; this one alone where there are no others.

    Raises:
        DistributedError: They cannot be reached, or one of them has gone.
    """
    if not _start(device):
        yield Processes()
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    control: Any = None
    try:
        with _explain_lost_contact(rank, size):
            control = dist.new_group(backend="gloo", timeout=_PATIENCE)
            yield Processes(rank, size, control)
    finally:
        # Closes its connections, which wakes whoever waits at the other end of one.
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group(control)


def local_device(device: torch.device | str) -> torch.device | str:
    """Return the GPU that is this process's own, where several were started on a machine.

    Args:
        device: ``"auto"`` and ``"cuda"`` become ``"cuda:LOCAL_RANK"`` there (``"auto"`` only where
            there is a GPU); anything else, and everything in a single process, stays as it is.

    Raises:
        ConfigError: There is no such device, or there are more processes than GPUs.
    """
    _check_device(device)
    local_rank = os.environ.get("LOCAL_RANK")
    if not _is_launched() or local_rank is None:
        return device
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if str(device) not in ("auto", "cuda") or n_gpus == 0:
        return device
    if int(local_rank) >= n_gpus:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, since there are "
            f"{n_gpus}: start torchrun with --nproc-per-node={n_gpus}, or train on device='cpu'",
            setting="device",
            value=str(device),
        )
    return f"cuda:{local_rank}"


def _check_device(device: torch.device | str) -> None:
    if str(device) == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(
            f"device={device!r}: torch knows no such device; give 'auto', 'cpu' or 'cuda'",
            setting="device",
            value=str(device),
            choices=("auto", "cpu", "cuda"),
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        warnings.warn(
            f"device={str(device)!r} and torch sees no GPU: the CPU is used, as in "
            f"Stable-Baselines3 (`dmamba doctor` says what is missing)",
            stacklevel=4,
        )


def _is_launched() -> bool:
    """Whether torchrun, or something like it, started this process together with others."""
    return all(os.environ.get(name) for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _start(device: torch.device) -> bool:
    """Make sure of the default group where there are several processes; say whether there are."""
    if not dist.is_available():
        return False
    if not dist.is_initialized():
        if not _is_launched():
            return False
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)  # NCCL's, before anything else of it
        try:
            dist.init_process_group("nccl" if on_gpu and dist.is_nccl_available() else "gloo")
        except (RuntimeError, ValueError) as error:
            variables = ", ".join(f"{name}={os.environ[name]}" for name in _LAUNCHED)
            raise DistributedError(
                f"the other processes cannot be reached ({_first_line(error)}): {variables} were "
                f"set; start with torchrun, or unset them to train in one process"
            ) from error
        atexit.register(_leave)
    return dist.get_world_size() > 1


def _leave() -> None:
    """Leave the default group, which torch warns about where it is left to the interpreter."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _explain_lost_contact(rank: int, size: int) -> Iterator[None]:
    """Turn a collective operation's failure into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        is_ours = isinstance(error, DecisionMambaError)
        if is_ours or not any(words in str(error) for words in _LOST):
            raise
        raise DistributedError(
            f"process {rank} of {size} has lost contact with another one ({_first_line(error)}): "
            f"what happened there is in that one's output, or it was killed; start again, or go on "
            f"from the last checkpoint (dmamba train --resume CHECKPOINT)"
        ) from error


def _first_line(error: BaseException) -> str:
    """Return the first sentence of a message, without the place in the source that says it."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).split(". ")[0].splitlines()[0])


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
