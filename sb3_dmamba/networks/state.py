"""What acting remembers from one step to the next, for a batch of environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConditioningError

__all__ = ["ActingState"]


@dataclass(frozen=True)
class ActingState:
    """Memory of a policy that acts in several environments of different ages.

    Every tensor has one row an environment, and a new episode is a row of zeros; so rows can be
    dropped, reordered, joined, pickled and moved without knowing what they hold. Both memories
    have ``"timestep"``, steps taken in the episode, and ``"action"``, the last action: a caller
    that took another one than the policy chose says so by :meth:`with_action`.

    A state belongs to the weights it was made with: a window holds embedded observations, a stream
    recurrent states. Episodes that go on while the weights change are not seen as the new weights
    would have seen them; those that begin afterwards are.

    Args:
        memory: Which of the two memories this is.
        tensors: The rows, by name.
    """

    memory: Memory
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        """Return the number of environments."""
        return len(self.tensors["timestep"])

    def take(self, rows: ArrayLike) -> ActingState:
        """Keep some environments, in the order given.

        Args:
            rows: Integer indices, shape (m,); an index may repeat.
        """
        index = torch.as_tensor(np.array(rows, dtype=np.int64, order="C"))
        index = index.to(self.tensors["timestep"].device)
        return self._replace({name: tensor[index] for name, tensor in self.tensors.items()})

    def reset(self, starts: ArrayLike) -> ActingState:
        """Start a new episode in some environments.

        Args:
            starts: Shape (n,), True where an episode starts.
        """
        flags = np.array(starts, dtype=bool, order="C")
        if not flags.any():
            return self
        index = torch.as_tensor(flags, device=self.tensors["timestep"].device)
        cleared = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for tensor in cleared.values():
            tensor[index] = 0
        return self._replace(cleared)

    def with_action(self, actions: ArrayLike) -> ActingState:
        """Remember other actions than the policy chose, which the environments have taken.

        Args:
            actions: Shape (n, *action_space.shape), as the environment takes them.

        Raises:
            ConditioningError: There are not as many, or they have another size.
        """
        chosen = self.tensors["action"]
        taken = torch.as_tensor(np.array(actions, order="C"), dtype=chosen.dtype)
        if len(self) != (len(taken) if taken.dim() else 0) or taken.numel() != chosen.numel():
            raise ConditioningError(
                f"actions of shape {tuple(taken.shape)} were given for {len(self)} environments "
                f"whose actions are {tuple(chosen.shape[1:])}: give one action for each",
                setting="action",
                value=tuple(taken.shape),
                choices=[(len(self), *chosen.shape[1:])],
            )
        action = taken.reshape(chosen.shape).to(chosen.device)
        return self._replace({**self.tensors, "action": action})

    def to(self, device: torch.device | str) -> ActingState:
        """Move every row to a device."""
        return self._replace({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def concatenate(states: Sequence[ActingState]) -> ActingState:
        """Join the environments of several states of one policy and memory, in order.

        Args:
            states: At least one; the joined state is on the first one's device.

        Raises:
            ConditioningError: There is none, or they are of different memories or policies.
        """
        if not states:
            raise ConditioningError(
                "there is no state to join: give at least one", setting="states"
            )
        first = states[0]
        for state in states[1:]:
            if state._layout() != first._layout():
                raise ConditioningError(
                    f"a state of memory={first.memory!r} and one of memory={state.memory!r}, or of "
                    f"two models, cannot be joined: join what predict returned with one model and "
                    f"memory",
                    setting="states",
                )
        device = first.tensors["timestep"].device
        moved = [state.to(device) for state in states]
        return first._replace(
            {name: torch.cat([state.tensors[name] for state in moved]) for name in first.tensors}
        )

    def _layout(self) -> tuple[str, dict[str, tuple[int, ...]]]:
        return self.memory, {name: tuple(rows.shape[1:]) for name, rows in self.tensors.items()}

    def _replace(self, tensors: dict[str, Tensor]) -> ActingState:
        return ActingState(self.memory, tensors)
