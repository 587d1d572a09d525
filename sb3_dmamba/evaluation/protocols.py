"""What this room asks of a policy and of reference scores; the networks and tasks provide it."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["ActingPolicy", "ActingState", "ReferenceScore"]


class ActingState(Protocol):
    """What a policy remembers of ``n`` episodes, a row each."""

    def take(self, rows: Any) -> Any:
        """Return the state of the rows (int index array) alone, in that order."""

    def reset(self, mask: Any) -> Any:
        """Return the state with new episodes started where ``mask`` (n,) is True."""


class ActingPolicy(Protocol):
    """A policy that acts in ``n`` environments at once and remembers their episodes."""

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The flat observations."""

    @property
    def action_space(self) -> gym.Space[Any]:
        """Box or Discrete."""

    @property
    def memory(self) -> Any:
        """The default of ``initial_state``'s ``memory``."""

    def initial_state(self, n: int, memory: Any = ...) -> Any:
        """Return the state at the start of ``n`` episodes."""

    def act(
        self,
        observations: NDArray[Any],
        returns_to_go: NDArray[np.float32],
        state: Any,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], Any]:
        """Choose actions for observations (n, *obs) and unscaled returns-to-go (n,)."""


class ReferenceScore(Protocol):
    """The returns that the normalised scores 0 and 100 stand for, and where they are from."""

    @property
    def minimum(self) -> float:
        """The return of a random policy."""

    @property
    def maximum(self) -> float:
        """The return of an expert."""

    @property
    def source(self) -> str:
        """Who measured them."""
