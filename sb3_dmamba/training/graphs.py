"""The update as a graph: recorded once for each shape of batch, checked, and then replayed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sb3_dmamba.data._warn import warn_caller
from sb3_dmamba.errors import BackendError
from sb3_dmamba.training.feeds import Staged
from sb3_dmamba.training.recording import RECORDERS, count_renewals, why_not_recorded
from sb3_dmamba.training.snapshots import Snapshot, find_difference

if TYPE_CHECKING:
    from sb3_dmamba.training.updater import Updater

__all__ = ["UpdateGraphs"]

MAX_GRAPHS = 4  # each keeps the activations of its own; batches of other shapes run without one

Seed = Callable[[], AbstractContextManager[None]]


@dataclass
class _Graph:
    """A recorded update.

    Args:
        inputs: Where it reads the batch.
        replay: Runs it.
        results: Where it writes loss and gradient norm.
        gradients: Where it writes the gradients.
        places: What else it reads and writes, as :meth:`UpdateGraphs._find_places`.
    """

    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    results: Tensor
    gradients: list[Tensor | None]
    places: tuple[Any, ...]


class UpdateGraphs:
    """Runs an updater's updates as graphs.

    A graph is used after its first replay has done what the plain update does, from the same
    weights, with a batch, a seed and a learning rate other than those it was recorded with. Where
    it does not, or cannot be recorded, updates are plain ones from then on, after a warning; with
    ``cuda_graph="on"`` that is an error.

    Args:
        updater: Whose updates.
    """

    def __init__(self, updater: Updater) -> None:
        self.updater = updater
        self.learning_rate = torch.zeros((), device=updater.policy.device)
        """Where the optimiser reads the learning rate."""
        self._graphs: dict[Hashable, _Graph] = {}
        self._failed = False

    @classmethod
    def create(cls, updater: Updater) -> UpdateGraphs | None:
        """Return what runs an updater's updates as graphs; None where they are to be plain.

        Raises:
            BackendError: ``cuda_graph="on"``, and there are no graphs here.
        """
        wanted = updater.config.cuda_graph
        if wanted == "off":
            return None
        reason = why_not_recorded(updater.policy.device)
        if reason is None:
            return cls(updater)
        if wanted == "on":
            raise BackendError(
                f'cuda_graph="on": {reason}; use cuda_graph="auto"',
                setting="cuda_graph",
                value="on",
                choices=("auto", "off"),
            )
        return None

    def clear(self) -> None:
        """Forget all graphs, and release the memory they keep."""
        self._graphs.clear()

    def run(self, staged: Staged, seed: Seed) -> Tensor:
        """Take one optimiser step.

        Args:
            staged: The batch.
            seed: Makes a context in which random numbers are this update's own.

        Returns:
            Loss and gradient norm, (2,), which later updates leave as they are.

        Raises:
            BackendError: There is no graph of it, and ``cuda_graph="on"``.
        """
        if self._failed:
            return self._run_plainly(staged, seed)
        places, graph = self._find_places(staged), self._graphs.get(staged.kind)
        if graph is not None and _are_same(graph.places, places):
            self._replay(graph, staged, seed)
            return graph.results.clone()
        if graph is None and len(self._graphs) >= MAX_GRAPHS:
            return self._run_plainly(staged, seed)
        self._graphs.pop(staged.kind, None)
        return self._make(staged, seed)

    def _run_plainly(self, staged: Staged, seed: Seed) -> Tensor:
        with seed():
            return self.updater.take_step(staged.batch())

    def _replay(self, graph: _Graph, staged: Staged, seed: Seed) -> None:
        for name, tensor in staged.tensors.items():
            graph.inputs[name].copy_(tensor, non_blocking=True)
        with seed():
            graph.replay()
        parameters = self.updater.parameters
        if parameters[0].grad is not graph.gradients[0]:
            for parameter, gradient in zip(parameters, graph.gradients, strict=True):
                parameter.grad = gradient

    def _make(self, staged: Staged, seed: Seed) -> Tensor:
        """Take a step plainly, record a graph, and compare what its first replay does."""
        updater = self.updater
        before = Snapshot.take(updater)
        results = self._run_plainly(staged, seed)
        # A step that spoils the weights tells nothing, and the log will tell of it.
        if not all(map(math.isfinite, results.tolist())):
            return results
        after = Snapshot.take(updater)
        try:
            graph = self._record(staged, before)
            before.put_back(updater)
            self._replay(graph, staged, seed)
            found = graph.results.clone()
            wrong = find_difference(
                before,
                (after, results),
                (Snapshot.take(updater), found),
                updater.config.precision,
            )
        except Exception as error:  # whatever a driver, a library or a kernel has to say
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            self._graphs[staged.kind] = graph
            return found
        updater.optimizer.zero_grad(set_to_none=True)
        after.put_back(updater)
        self._give_up(wrong)
        return results

    def _record(self, staged: Staged, before: Snapshot) -> _Graph:
        updater, device = self.updater, self.updater.policy.device
        # Values of no update's: whatever the graph holds fast of them, the comparison shows.
        inputs = {name: t[:1].expand_as(t).clone() for name, t in staged.tensors.items()}
        wanted = self.learning_rate.clone()
        self.learning_rate.mul_(0.5)
        before.put_back(updater)
        groups = updater.optimizer.param_groups
        for group in groups:
            group["capturable"] = True  # what torch asks for; the fused kernels are the same
        try:
            with updater.seed_locally(_NO_UPDATE), warnings.catch_warnings():
                # Of steps that are not recorded, which the first ones are.
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                replay, (results,) = RECORDERS[device.type](
                    lambda: [updater.take_step(staged.assemble(inputs))], device
                )
        finally:
            self.learning_rate.copy_(wanted)
            for group in groups:
                group["capturable"] = False
        gradients = [parameter.grad for parameter in updater.parameters]
        return _Graph(inputs, replay, results, gradients, self._find_places(staged))

    def _give_up(self, reason: str) -> None:
        complaint = f"an update does not run as a graph here ({reason})"
        if self.updater.config.cuda_graph == "on":
            raise BackendError(
                f'cuda_graph="on": {complaint}; use cuda_graph="auto" or "off"',
                setting="cuda_graph",
                value="on",
                choices=("auto", "off"),
            )
        self._failed = True
        self.clear()
        warn_caller(f'{complaint}: updates are launched one by one; cuda_graph="off" asks for that')

    def _find_places(self, staged: Staged) -> tuple[Any, ...]:
        """Return what tells whether a graph still reads and writes where the model is."""
        updater = self.updater
        held: Any = None
        if updater.config.carry_state:
            n_rows = len(next(iter(staged.tensors.values())))
            held = updater.carried.hold(updater.policy.model, n_rows)
        addresses = [parameter.data_ptr() for parameter in updater.parameters]
        # Loading a state gives an optimiser another dictionary.
        return held, updater.optimizer.state, [count_renewals(), *addresses]


_NO_UPDATE = 2**62  # a number that no run comes to


def _are_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return first[0] is second[0] and first[1] is second[1] and first[2] == second[2]
