"""The update as a CUDA graph, compared with the plain update before use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sb3_dmamba.console import warn_caller
from sb3_dmamba.errors import BackendError
from sb3_dmamba.training.batches import Staged

if TYPE_CHECKING:
    from sb3_dmamba.training.updater import Updater


_WARM_UPS = 3  # Triton's compilation, the libraries' workspaces and plans

Run = Callable[[], list[Tensor]]
Recorder = Callable[[Run, torch.device], tuple[Callable[[], None], list[Tensor]]]
"""Runs a function some times, records it, and returns what replays it and the tensors of results.

What the function reads and writes is fixed by address: a replay finds other values there, or none
it can see. The results are overwritten by each replay.
"""


def record_cuda_graph(run: Run, device: torch.device) -> tuple[Callable[[], None], list[Tensor]]:
    """Record a function as a CUDA graph; random numbers come from the device's own generator.

    Raises:
        RuntimeError: The function does what a graph cannot hold, such as waiting for the device.
    """
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which may be fetching the next batch, are none of the recording.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = run()
        except Exception:
            torch.cuda.set_stream(current)  # which a failed end of a recording does not
            _mend_generator(device)
            raise
    return graph.replay, results


def _mend_generator(device: torch.device) -> None:
    """Give the device's generator another state, where a failed recording has left it half-way."""
    try:
        torch.rand(1, device=device)
    except RuntimeError:
        index = torch.cuda.current_device() if device.index is None else device.index
        state = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[index].graphsafe_set_state(state)
        _renewals.append(index)


_renewals: list[int] = []


def count_renewals() -> int:
    """Return how often a generator was given another state: earlier graphs still read the old."""
    return len(_renewals)


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By type of device."""


def why_not_recorded(device: torch.device) -> str | None:
    """Say why work on a device cannot be recorded; None where it can."""
    if device.type in RECORDERS:
        return None
    return f"graphs are recorded on CUDA devices and the model is on {device.type!r}"


# How far two runs of one update may be apart, relative to the norm of what is compared: sums may be
# made in another order, which half precision rounds.
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
# Adam divides gradients by their size, so a parameter whose gradient is nothing but rounding moves
# by rounding's whim: weights are compared by how far all of them went.
_STEP_TOLERANCE = 0.2
_ROUNDING = 1e-6  # of weights, which a small learning rate moves by no more
_SMALL_PART = 1e-3  # of the whole norm, below which one parameter's own is not looked at alone


@dataclass(frozen=True)
class Snapshot:
    """Copies of all that updates change.

    Args:
        weights: Of each parameter.
        moments: The optimiser's, of each parameter; none before the first update.
        carried: The recurrent states that training carries, where they are held in place.
    """

    weights: list[Tensor]
    moments: list[Tensor]
    carried: list[Tensor]

    @classmethod
    def take(cls, updater: Updater) -> Snapshot:
        """Copy what there is now."""
        return cls(*([t.detach().clone() for t in part] for part in _changing(updater)))

    def put_back(self, updater: Updater) -> None:
        """Copy it back in place; moments that did not exist then become zero."""
        with torch.no_grad():
            weights, moments, carried = _changing(updater)
            for place, value in zip(weights, self.weights, strict=True):
                place.copy_(value)
            for place, value in zip(carried, self.carried, strict=True):
                place.copy_(value)
            if not self.moments:
                for place in moments:
                    place.zero_()
                return
            for place, value in zip(moments, self.moments, strict=True):
                place.copy_(value)


def _changing(updater: Updater) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    states = [updater.optimizer.state.get(each, {}) for each in updater.parameters]
    moments = [
        state[name] for name in ("step", "exp_avg", "exp_avg_sq") for state in states if state
    ]
    return list(updater.parameters), moments, updater.carried.held()


def find_difference(
    before: Snapshot,
    expected: tuple[Snapshot, Tensor],
    found: tuple[Snapshot, Tensor],
    precision: str,
) -> str | None:
    """Compare what two runs of one update did.

    Args:
        before: What both of them started from.
        expected: What one of them left, and its loss and gradient norm, (2,).
        found: The other's.
        precision: The config's.

    Returns:
        What differs, for people; None where nothing does by more than rounding.
    """
    tolerance = TOLERANCES[precision]
    (there, results), (here, other_results) = expected, found
    if _distances([results], [other_results])[0] > tolerance * float(results.norm()):
        return f"its loss and gradient norm are {other_results.tolist()}, not {results.tolist()}"
    for what, wanted, got in (
        ("moments", there.moments, here.moments),
        ("carried states", there.carried, here.carried),
    ):
        norms = _norms(wanted)
        whole = _norm_of(norms)
        for norm, distance in zip(norms, _distances(wanted, got), strict=True):
            if not distance <= tolerance * max(norm, _SMALL_PART * whole):
                return f"{what} of norm {norm:g} are {distance:g} away"
    moved = _norm_of(_distances(before.weights, there.weights))
    apart = _norm_of(_distances(there.weights, here.weights))
    if not apart <= _STEP_TOLERANCE * moved + _ROUNDING * _norm_of(_norms(there.weights)):
        return f"weights that moved by {moved:g} are {apart:g} away"
    return None


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    if not tensors:
        return []
    norms: list[float] = torch.stack([tensor.double().norm() for tensor in tensors]).tolist()
    return norms


def _distances(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[float]:
    return _norms([a.double() - b.double() for a, b in zip(first, second, strict=True)])


def _norm_of(norms: Sequence[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))


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
