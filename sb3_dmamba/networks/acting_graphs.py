"""A step of acting as a graph: the kernels of a small network, launched at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data._warn import warn_caller
from sb3_dmamba.errors import BackendError
from sb3_dmamba.networks.acting import StreamMemory, WindowMemory
from sb3_dmamba.networks.mamba import forget_kept_weights
from sb3_dmamba.networks.recording import RECORDERS
from sb3_dmamba.networks.sequence_model import SequenceModel
from sb3_dmamba.networks.state import ActingState

__all__ = ["ActingGraphs"]

RECORD_AFTER = 8  # steps of a size: evaluations end with few steps of many sizes
_TOLERANCE = 1e-3  # of the largest value: rows are padded, and sums made in another order

Encode = Callable[[Tensor, Tensor, ActingState], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class _Graph:
    """A recorded step.

    Args:
        inputs: Where it reads observations, returns-to-go and state, by name.
        replay: Runs it.
        prediction: Where it writes the head's prediction.
        remembered: Where it writes what to remember.
        addresses: Where it reads the weights.
    """

    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    prediction: Tensor
    remembered: dict[str, Tensor]
    addresses: list[int]


class ActingGraphs:
    """Encodes steps as graphs, for any number of environments.

    A graph takes a power of two of environments; the rows that are too many are computed and
    dropped. Rows of every age take the same way through it. It is recorded once a size has been
    used some times, and used if its first replay does what the plain way does; otherwise every
    step is plain from then on, after a warning, or with ``cuda_graph="on"`` an error.

    Args:
        model: The model that acts.
        action_space: Its action space.
        config: ``context_length``, ``cuda_graph``.
    """

    def __init__(
        self,
        model: SequenceModel,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
    ) -> None:
        self.model = model
        self.wanted = config.cuda_graph
        self._memories: dict[str, StreamMemory | WindowMemory] = {
            "stream": StreamMemory(model, action_space, uniform=True),
            "window": WindowMemory(model, action_space, config.context_length, uniform=True),
        }
        self._graphs: dict[tuple[str, int], _Graph] = {}
        self._uses: dict[tuple[str, int], int] = {}
        self._failed = False

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what belongs to one place in memory."""
        return {**vars(self), "_graphs": {}, "_uses": {}}

    def encode(
        self, observations: Tensor, returns_to_go: Tensor, state: ActingState, plain: Encode
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict at the newest step; return the prediction and the tensors to remember.

        Args:
            observations: (B, *obs).
            returns_to_go: (B,).
            state: Memory before the step.
            plain: What encodes a step without a graph.

        Raises:
            BackendError: A step does not run as a graph, and ``cuda_graph="on"``.
        """
        n_rows, device = len(state), observations.device
        if self._failed or n_rows == 0 or self.wanted == "off" or device.type not in RECORDERS:
            return plain(observations, returns_to_go, state)
        key = state.memory, 1 << (n_rows - 1).bit_length()
        given = {_OBSERVATIONS: observations, _RETURNS: returns_to_go, **state.tensors}
        graph = self._graphs.get(key)
        if graph is not None and graph.addresses == self._find_weights():
            return _replay(graph, given, n_rows)
        self._graphs.pop(key, None)
        self._uses[key] = self._uses.get(key, 0) + 1
        expected = plain(observations, returns_to_go, state)
        if self._uses[key] >= RECORD_AFTER:
            self._make(key, given, n_rows, expected)
        return expected

    def _make(
        self,
        key: tuple[str, int],
        given: dict[str, Tensor],
        n_rows: int,
        expected: tuple[Tensor, dict[str, Tensor]],
    ) -> None:
        """Record a graph, and keep it if it does what was expected."""
        try:
            graph = self._record(*key, given)
            prediction, remembered = _replay(graph, given, n_rows)
            wrong = _find_difference(
                {"its prediction": expected[0], **expected[1]},
                {"its prediction": prediction, **remembered},
            )
        except Exception as error:  # whatever a driver, a library or a kernel has to say
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            self._graphs[key] = graph
            return
        self._failed = True
        self._graphs.clear()
        complaint = f"a step of acting does not run as a graph here ({wrong})"
        if self.wanted == "on":
            raise BackendError(f'cuda_graph="on": {complaint}; use cuda_graph="auto" or "off"')
        warn_caller(f'{complaint}: steps are launched one by one; cuda_graph="off" asks for that')

    def _record(self, name: str, n_rows: int, given: dict[str, Tensor]) -> _Graph:
        memory, device = self._memories[name], given[_OBSERVATIONS].device
        inputs = {each: t.new_zeros(n_rows, *t.shape[1:]) for each, t in given.items()}
        tensors = {each: t for each, t in inputs.items() if each not in (_OBSERVATIONS, _RETURNS)}
        state = ActingState(memory.initial_state(0).memory, tensors)
        names: list[str] = []

        def run() -> list[Tensor]:
            # What a mixer has kept of its weights would stay as it is now in every replay.
            forget_kept_weights(self.model)
            prediction, remembered = memory.encode(inputs[_OBSERVATIONS], inputs[_RETURNS], state)
            names[:] = remembered
            return [prediction, *remembered.values()]

        try:
            replay, (prediction, *values) = RECORDERS[device.type](run, device)
        finally:
            forget_kept_weights(self.model)  # which the graph would overwrite
        remembered = dict(zip(names, values, strict=True))
        return _Graph(inputs, replay, prediction, remembered, self._find_weights())

    def _find_weights(self) -> list[int]:
        weights = [*self.model.parameters(), *self.model.buffers()]
        return [weight.data_ptr() for weight in weights]


_OBSERVATIONS, _RETURNS = "step.observations", "step.returns_to_go"  # names that no state has


def _replay(
    graph: _Graph, given: dict[str, Tensor], n_rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    for name, tensor in given.items():
        graph.inputs[name][:n_rows].copy_(tensor)
    graph.replay()
    remembered = {name: rows[:n_rows].clone() for name, rows in graph.remembered.items()}
    return graph.prediction[:n_rows].clone(), remembered


def _find_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """Say what differs by more than rounding; None where nothing does."""
    for name, wanted in expected.items():
        apart = float((wanted.double() - found[name].double()).abs().max())
        largest = float(wanted.double().abs().max())
        if not apart <= _TOLERANCE * largest:
            return f"{name}, of up to {largest:g}, is {apart:g} away"
    return None
