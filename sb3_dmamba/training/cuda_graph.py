"""Updates as CUDA graphs, compared with the plain update before use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import WindowBatch
from sb3_dmamba.errors import BackendError
from sb3_dmamba.io import warn_caller
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.training.batches import Staged
from sb3_dmamba.training.carried_state import CarriedState

MAX_GRAPHS = 4  # each keeps its own activations; batches of further shapes run without one
_WARM_UPS = 3  # runs before recording: Triton compiles, libraries allocate workspaces
_NO_UPDATE = 2**62  # seeds the recording; no run reaches this number


class Snapshot(NamedTuple):
    """Copies of everything that an update changes."""

    weights: list[Tensor]
    moments: list[Tensor]
    carried: list[Tensor]
    averages: list[Tensor]


@dataclass
class _Graph:
    """A recorded update."""

    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    results: Tensor
    gradients: list[Tensor | None]
    places: tuple[Any, ...]


class UpdateGraphs:
    """Runs updates as CUDA graphs.

    A graph is used only if its first replay equals the plain update from the same weights, with
    another batch, seed and learning rate than it was recorded with. If it does not, or if recording
    fails, later updates are plain ones, after a warning; with ``cuda_graph="on"`` that is an error.
    """

    def __init__(
        self,
        policy: DecisionMambaPolicy,
        config: DecisionMambaConfig,
        carried: CarriedState,
        averages: list[Tensor],
        take_step: Callable[[WindowBatch], Tensor],
        seed: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        self.policy = policy
        self.config = config
        self.carried = carried
        self.averages = averages
        self.take_step = take_step
        self.seed = seed
        self.optimizer = policy.optimizer
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.learning_rate = torch.zeros((), device=policy.device)
        """Scalar that the optimiser reads the learning rate from."""
        self.ema_rate = torch.zeros((), device=policy.device)
        """Scalar that the average reads one minus its decay from."""
        self._graphs: dict[Hashable, _Graph] = {}
        self._failed = False

    @classmethod
    def create(
        cls, policy: DecisionMambaPolicy, config: DecisionMambaConfig, *rest: Any
    ) -> UpdateGraphs | None:
        """Build as the constructor does; None if updates are to be plain."""
        device = policy.device.type
        if config.cuda_graph == "off":
            return None
        if device in RECORDERS:
            return cls(policy, config, *rest)
        if config.cuda_graph == "on":
            message = (
                f'cuda_graph="on": graphs are recorded on CUDA devices and the model is on '
                f'{device!r}; use cuda_graph="auto"'
            )
            raise BackendError(message, setting="cuda_graph", value="on", choices=("auto", "off"))
        return None

    def clear(self) -> None:
        """Delete all graphs, and free their memory."""
        self._graphs.clear()

    def run(self, staged: Staged, n_done: int) -> Tensor:
        """Take one optimiser step."""
        if self._failed:
            return self._run_plainly(staged, n_done)
        places, graph = self._find_places(staged), self._graphs.get(staged.kind)
        if graph is not None and _are_same(graph.places, places):
            self._replay(graph, staged, n_done)
            return graph.results.clone()
        if graph is None and len(self._graphs) >= MAX_GRAPHS:
            return self._run_plainly(staged, n_done)
        self._graphs.pop(staged.kind, None)
        return self._make(staged, n_done)

    def _run_plainly(self, staged: Staged, n_done: int) -> Tensor:
        with self.seed(n_done):
            return self.take_step(staged.batch())

    def _replay(self, graph: _Graph, staged: Staged, n_done: int) -> None:
        for name, tensor in staged.tensors.items():
            graph.inputs[name].copy_(tensor, non_blocking=True)
        with self.seed(n_done):
            graph.replay()
        if self.parameters[0].grad is not graph.gradients[0]:
            for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
                parameter.grad = gradient

    def _make(self, staged: Staged, n_done: int) -> Tensor:
        """Take a plain step, record a graph, and compare its first replay with that step."""
        before = self._take_snapshot()
        results = self._run_plainly(staged, n_done)
        # A step that diverges cannot be compared; the training loop reports it.
        if not all(map(math.isfinite, results.tolist())):
            return results
        after = self._take_snapshot()
        try:
            graph = self._record(staged, before)
            self._put_back(before)
            self._replay(graph, staged, n_done)
            found = graph.results.clone()
            wrong = find_difference(
                before, (after, results), (self._take_snapshot(), found), self.config.precision
            )
        except Exception as error:  # whatever a driver, a library or a kernel raises
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            self._graphs[staged.kind] = graph
            return found
        self.optimizer.zero_grad(set_to_none=True)
        self._put_back(after)
        self._give_up(wrong)
        return results

    def _record(self, staged: Staged, before: Snapshot) -> _Graph:
        # Inputs of no real update: the comparison shows whether the graph depends on them.
        inputs = {name: t[:1].expand_as(t).clone() for name, t in staged.tensors.items()}
        wanted = self.learning_rate.clone(), self.ema_rate.clone()
        for scalar in (self.learning_rate, self.ema_rate):
            scalar.mul_(0.5)
        self._put_back(before)
        groups = self.optimizer.param_groups
        for group in groups:
            group["capturable"] = True  # required by torch; the fused kernels are the same
        try:
            with self.seed(_NO_UPDATE), warnings.catch_warnings():
                # Torch warns of steps that are not recorded, such as the warm-up runs.
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                replay, (results,) = RECORDERS[self.policy.device.type](
                    lambda: [self.take_step(staged.assemble(inputs))], self.policy.device
                )
        finally:
            for scalar, value in zip((self.learning_rate, self.ema_rate), wanted, strict=True):
                scalar.copy_(value)
            for group in groups:
                group["capturable"] = False
        gradients = [parameter.grad for parameter in self.parameters]
        return _Graph(inputs, replay, results, gradients, self._find_places(staged))

    def _give_up(self, reason: str) -> None:
        complaint = f"an update does not run as a graph here ({reason})"
        if self.config.cuda_graph == "on":
            message = f'cuda_graph="on": {complaint}; use cuda_graph="auto" or "off"'
            raise BackendError(message, setting="cuda_graph", value="on", choices=("auto", "off"))
        self._failed = True
        self.clear()
        warn_caller(f'{complaint}: updates are launched one by one; cuda_graph="off" asks for that')

    def _find_places(self, staged: Staged) -> tuple[Any, ...]:
        """Return objects and addresses that a graph is tied to; if they change it is invalid."""
        held: Any = None
        if self.config.carry_state:
            n_rows = len(next(iter(staged.tensors.values())))
            held = self.carried.hold(self.policy.model, n_rows)
        addresses = [each.data_ptr() for each in (*self.parameters, *self.averages)]
        # Loading a state gives the optimiser a new dictionary.
        return held, self.optimizer.state, [len(_renewed_generators), *addresses]

    def _changing(self) -> Snapshot:
        """Return the tensors that updates change, in place."""
        states = [self.optimizer.state.get(each, {}) for each in self.parameters]
        moments = [
            state[name] for name in ("step", "exp_avg", "exp_avg_sq") for state in states if state
        ]
        return Snapshot(list(self.parameters), moments, self.carried.held(), self.averages)

    def _take_snapshot(self) -> Snapshot:
        return Snapshot(*([t.detach().clone() for t in part] for part in self._changing()))

    @torch.no_grad()
    def _put_back(self, snapshot: Snapshot) -> None:
        """Copy a snapshot back in place; moments that it lacks become zero."""
        for places, values in zip(self._changing(), snapshot, strict=True):
            kept = values or [torch.zeros_like(place) for place in places]
            for place, value in zip(places, kept, strict=True):
                place.copy_(value)


def _are_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return first[0] is second[0] and first[1] is second[1] and first[2] == second[2]


Run = Callable[[], list[Tensor]]
Recorder = Callable[[Run, torch.device], tuple[Callable[[], None], list[Tensor]]]
"""Runs a function a few times, records it, and returns its replay and the tensors of its results.

A replay reads and writes the same addresses as the recorded run, and overwrites the results.
"""


def record_cuda_graph(run: Run, device: torch.device) -> tuple[Callable[[], None], list[Tensor]]:
    """Record a function as a CUDA graph; its random numbers come from the device's generator."""
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Work of other threads, such as prefetching, is not recorded.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = run()
        except Exception:
            torch.cuda.set_stream(current)  # which a failed recording does not restore
            _mend_generator(device)
            raise
    return graph.replay, results


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By type of device."""

_renewed_generators: list[int] = []  # devices; graphs recorded before still read the old state


def _mend_generator(device: torch.device) -> None:
    """Replace the state of the device's generator if a failed recording has left it unusable."""
    try:
        torch.rand(1, device=device)
    except RuntimeError:
        index = torch.cuda.current_device() if device.index is None else device.index
        state = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[index].graphsafe_set_state(state)
        _renewed_generators.append(index)


# Largest distance of two runs of one update, relative to the norm: sums may be made in another
# order, and half precision rounds them.
TOLERANCES = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 2e-2}
# Adam divides gradients by their size, so a parameter whose gradient is rounding error alone moves
# at random: weights are compared by the distance that all of them moved together.
_STEP_TOLERANCE = 0.2
_ROUNDING = 1e-6  # of weights, relative; a small learning rate moves them by no more
_SMALL_PART = 1e-3  # share of the whole norm below which a parameter is not compared by itself


def find_difference(
    before: Snapshot,
    expected: tuple[Snapshot, Tensor],
    found: tuple[Snapshot, Tensor],
    precision: str,
) -> str | None:
    """Compare two runs of one update."""
    tolerance = TOLERANCES[precision]
    (there, results), (here, other_results) = expected, found
    if _distances([results], [other_results])[0] > tolerance * float(results.norm()):
        return f"its loss and gradient norm are {other_results.tolist()}, not {results.tolist()}"
    for what, wanted, got in (
        ("moments", there.moments, here.moments),
        ("carried states", there.carried, here.carried),
    ):
        norms = _norms(wanted)
        whole = math.hypot(*norms)
        for norm, distance in zip(norms, _distances(wanted, got), strict=True):
            if not distance <= tolerance * max(norm, _SMALL_PART * whole):
                return f"{what} of norm {norm:g} are {distance:g} away"
    for what, start, wanted, got in (
        ("weights", before.weights, there.weights, here.weights),
        ("averaged weights", before.averages, there.averages, here.averages),
    ):
        moved = math.hypot(*_distances(start, wanted))
        apart = math.hypot(*_distances(wanted, got))
        if not apart <= _STEP_TOLERANCE * moved + _ROUNDING * math.hypot(*_norms(wanted)):
            return f"{what} that moved by {moved:g} are {apart:g} away"
    return None


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    if not tensors:
        return []
    norms: list[float] = torch.stack([tensor.double().norm() for tensor in tensors]).tolist()
    return norms


def _distances(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[float]:
    return _norms([a.double() - b.double() for a, b in zip(first, second, strict=True)])
