"""Data-parallel training with torch.distributed.

:func:`join_processes` finds the processes, and :func:`train_together` makes the updates of an
:class:`~sb3_dmamba.training.updater.Updater` theirs. Rank 0, the leader, logs and saves.
"""

from __future__ import annotations

import atexit
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import BackendError, ConfigError, DecisionMambaError, DistributedError
from sb3_dmamba.training.updater import Updater

Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)  # of the other processes, while rank 0 evaluates or saves
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
# In messages of Gloo and NCCL after the other end of a connection has gone.
_LOST = re.compile(
    "closed by peer|reset by peer|Broken pipe|Connection refused|Connection reset|Socket"
    "|[Tt]imed out|timeout|ncclRemoteError"
)
_STOP, _GO_ON, _COLLECT = 0, 1, 2  # commands of rank 0


class Processes:
    """The processes that train one model; by default this one alone."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._control = control

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that logs, prints, evaluates and saves."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return this process's rows of every batch."""
        share, rest = divmod(batch_size, self.size)
        if rest:
            nearest = [n * self.size for n in (share, share + 1) if n]
            message = (
                f"batch_size={batch_size} cannot be split evenly among {self.size} processes: set "
                f"batch_size={' or '.join(map(str, nearest))}, or start another number of them"
            )
            raise ConfigError(message, setting="batch_size", value=batch_size)
        return slice(self.rank * share, (self.rank + 1) * share)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run a block in one process per machine first, which downloads files for the others."""
        comes_first = self.rank == 0 or os.environ.get("LOCAL_RANK") == "0"
        if not comes_first:
            self._wait()
        yield
        if comes_first:
            self._wait()

    def from_leader(self, value: Value) -> Value:
        """Return rank 0's value; it must be small and picklable."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Check that values are the same in every process.

        Raises DistributedError: a value differs; names the first one.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(facts), group=self._control)
        for rank, theirs in enumerate(found):
            for name, value in found[0].items():
                if theirs[name] != value:
                    message = (
                        f"{name} is {value!r} in process 0 and {theirs[name]!r} in process {rank}: "
                        f"every process must train the same model on the same data; start them all "
                        f"with one command line"
                    )
                    raise DistributedError(message, setting=name, value=theirs[name])

    def tell(self, command: int) -> int:
        """Send rank 0's command to the others, or receive it; return it."""
        if self.size == 1:
            return command
        box = torch.tensor(command)
        dist.broadcast(box, src=0, group=self._control)
        return int(box)

    def join_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Concatenate the rows of all processes in order; every process must call this."""
        if self.size == 1:
            return dict(tensors)
        joined = {}
        for name, rows in tensors.items():
            raw = rows.detach().cpu().contiguous()
            parts = [torch.empty_like(raw) for _ in range(self.size)]
            # As bytes: Gloo does not support every dtype.
            as_bytes = [part.view(torch.uint8) for part in parts]
            dist.all_gather(as_bytes, raw.view(torch.uint8), group=self._control)
            joined[name] = torch.cat(parts)
        return joined

    def _wait(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Find the processes that this one trains with.

    They are those of ``torch.distributed``'s default group if the caller has initialised it, or
    those started together by torchrun. If the block fails, the other processes get an error
    instead of waiting for this one.
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
        # Closes the connections, which wakes processes that wait at their other ends.
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group(control)


def _is_launched() -> bool:
    """Whether torchrun, or a launcher like it, started this process together with others."""
    return all(os.environ.get(name) for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _start(device: torch.device) -> bool:
    """Initialise the default group if needed; return whether there are several processes."""
    if not dist.is_available():
        return False
    if not dist.is_initialized():
        if not _is_launched():
            return False
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)  # before NCCL is initialised
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
    """Destroy the default group at exit, since torch warns if the interpreter does."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _explain_lost_contact(rank: int, size: int) -> Iterator[None]:
    """Convert the failure of a collective operation into an error with advice."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DecisionMambaError) or not _LOST.search(str(error)):
            raise
        raise DistributedError(
            f"process {rank} of {size} has lost contact with another one ({_first_line(error)}): "
            f"what happened there is in that one's output, or it was killed; start again, or go on "
            f"from the last checkpoint (dmamba train --resume CHECKPOINT)"
        ) from error


def _first_line(error: BaseException) -> str:
    """Return the first sentence of a message, without the source location in front of it."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).split(". ")[0].splitlines()[0])


def local_device(device: torch.device | str) -> torch.device | str:
    """Return this process's own GPU, if several processes were started on this machine."""
    _check_device(device)
    local_rank = os.environ.get("LOCAL_RANK")
    if not _is_launched() or local_rank is None:
        return device
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if str(device) not in ("auto", "cuda") or n_gpus == 0:
        return device
    if int(local_rank) >= n_gpus:
        message = (
            f"process {local_rank} of this machine has no GPU of its own, since there are "
            f"{n_gpus}: start torchrun with --nproc-per-node={n_gpus}, or train on device='cpu'"
        )
        raise ConfigError(message, setting="device", value=str(device))
    return f"cuda:{local_rank}"


def _check_device(device: torch.device | str) -> None:
    if str(device) == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        message = f"device={device!r}: torch knows no such device; give 'auto', 'cpu' or 'cuda'"
        raise ConfigError(
            message, setting="device", value=str(device), choices=("auto", "cpu", "cuda")
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        warnings.warn(
            f"device={str(device)!r} and torch sees no GPU: the CPU is used, as in "
            f"Stable-Baselines3 (`dmamba doctor` says what is missing)",
            stacklevel=4,
        )


@contextmanager
def train_together(updater: Updater, processes: Processes) -> Iterator[Callable[[bool], bool]]:
    """Share the updates of an updater among processes within the block.

    Within the block each process holds its rows of the carried state, otherwise all rows.
    """
    if processes.size == 1:
        yield lambda keep_going: keep_going
        return
    if updater.config.cuda_graph == "on":
        message = (
            f'cuda_graph="on" is for updates of one process, and {processes.size} processes train '
            f'here, whose gradients meet between kernels: set cuda_graph="auto"'
        )
        raise BackendError(message, setting="cuda_graph", value="on", choices=("auto", "off"))
    rows = processes.rows(updater.config.batch_size)
    updater.carried.select(rows, updater.config.batch_size)
    updater.parallel = parallel = DataParallel(updater, updater.compute_loss, processes)
    try:
        yield parallel.agree
        parallel.leave()
    finally:
        updater.parallel = None


class _Loss(nn.Module):
    """A loss as the ``forward`` of a module, as DistributedDataParallel needs it.

    It has the policy's parameters but not its buffers, which are constants and would be sent at
    every update.
    """

    def __init__(self, policy: nn.Module, compute: Callable[[WindowBatch], Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(policy.parameters())
        self.compute = compute

    def forward(self, batch: WindowBatch) -> Tensor:
        return self.compute(batch)


class DataParallel:
    """The loss of a batch whose rows are split among processes.

    ``DistributedDataParallel`` averages gradients over processes, but the loss is the mean over
    the real steps of the whole batch, of which processes may have different numbers. Each loss is
    therefore weighted by its share of the steps, and the result equals that of one process.
    """

    def __init__(
        self, updater: Updater, compute: Callable[[WindowBatch], Tensor], processes: Processes
    ) -> None:
        self.processes = processes
        self._updater = updater
        self._loss = DistributedDataParallel(_Loss(updater.trained, compute))
        self._share_state()

    @property
    def streams(self) -> tuple[int, ...]:
        """Entropy that gives this process dropout of its own; rank 0 has a single process's."""
        return () if self.processes.is_leader else (self.processes.rank,)

    def compute_loss(self, batch: WindowBatch) -> Tensor:
        """Return the loss of the whole batch."""
        mean: Tensor = self._loss(batch)
        n_real = batch.padding_mask.sum()
        totals = torch.stack([mean.detach().float() * n_real, n_real.float()])
        dist.all_reduce(totals)  # two numbers; on a GPU without waiting for it
        loss, n_real_everywhere = totals[0] / totals[1], totals[1]
        weighted = mean * (n_real * self.processes.size / n_real_everywhere)
        whole: Tensor = weighted - weighted.detach() + loss  # value of loss, gradient of weighted
        return whole

    def agree(self, keep_going: bool) -> bool:
        """Return rank 0's ``keep_going``, and send it what it collects in between."""
        command = self.processes.tell(_GO_ON if keep_going else _STOP)
        while command == _COLLECT:
            self._join_carried()
            command = self.processes.tell(command)
        return command == _GO_ON

    def collect_carried(self) -> dict[str, Tensor]:
        """Return the carried state of the whole batch; called by rank 0 when it saves."""
        if not self._updater.config.carry_state:
            return {}
        self.processes.tell(_COLLECT)  # the others wait in agree
        return self._join_carried()

    def leave(self) -> None:
        """Give every process the carried state of the whole batch; every process must call."""
        carried = self._join_carried()
        self._updater.carried.restore(self._updater.policy.model, carried)

    def _join_carried(self) -> dict[str, Tensor]:
        return self.processes.join_rows(self._updater.carried.state())

    @torch.no_grad()
    def _share_state(self) -> None:
        """Give every process rank 0's moments and averages, as torch does the weights."""
        optimizer = self._updater.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = [optimizer.state.get(parameter, {}) for parameter in parameters]
        tensors = [state[name] for state in states for name in sorted(state)]
        self.processes.check_alike({"the number of the optimiser's moments": len(tensors)})
        for tensor in [*tensors, *self._updater.averages]:
            on_device = tensor.to(self._updater.policy.device)
            dist.broadcast(on_device, src=0)
            tensor.copy_(on_device)
