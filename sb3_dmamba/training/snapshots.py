"""What an update changes, copied, put back, and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sb3_dmamba.training.updater import Updater

__all__ = ["Snapshot", "find_difference"]

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
