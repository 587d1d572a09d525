"""What acting carries from step to step: a window of steps, or a recurrent state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Num
from numpy.typing import ArrayLike
from torch import Tensor

from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConditioningError
from sb3_dmamba.networks.model import SequenceModel


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


def _action_rows(space: spaces.Space[Any], *lead: int) -> Tensor:
    """Zeros in the shape and type that actions are stored and encoded in."""
    if isinstance(space, spaces.Discrete):
        return torch.zeros(lead, dtype=torch.int64)
    assert isinstance(space, spaces.Box)
    return torch.zeros(*lead, math.prod(space.shape))


class StreamMemory:
    """Carry the recurrent state over the whole episode, at a constant cost a step.

    Args:
        model: The model that acts.
        action_space: Its action space.
        uniform: Whether rows of every age take the same way through the model, whatever their
            number: what an exported graph needs, and a little slower.
    """

    def __init__(
        self, model: SequenceModel, action_space: spaces.Space[Any], uniform: bool = False
    ) -> None:
        self.model = model
        self.action_space = action_space
        self.uniform = uniform
        self._keys = [  # of each layer: (name in its state, name in ours)
            [(name, f"layer{index}.{name}") for name in layer]
            for index, layer in enumerate(model.initial_layers(0))
        ]

    def initial_state(self, n_envs: int) -> ActingState:
        """Return the state of ``n_envs`` episodes that have not begun."""
        layers = self.model.initial_layers(n_envs)
        device = layers[0][next(iter(layers[0]))].device
        return ActingState(
            "stream",
            {
                "timestep": torch.zeros(n_envs, dtype=torch.int64, device=device),
                "action": _action_rows(self.action_space, n_envs).to(device),
                **self._pack(layers),
            },
        )

    def encode(
        self,
        observations: Num[Tensor, "B *obs"],
        returns_to_go: Float[Tensor, " B"],
        state: ActingState,
    ) -> tuple[Float[Tensor, "B A"], dict[str, Tensor]]:
        """Predict at the newest step; return the prediction and the tensors to remember."""
        starts = state.tensors["timestep"] == 0
        if self.uniform:
            return self._encode_uniformly(observations, returns_to_go, state.tensors, starts)
        n_starts = int(starts.sum())
        if n_starts == 0 or n_starts == len(starts):
            return self._encode(observations, returns_to_go, state.tensors, first=n_starts > 0)
        # An episode's first step has no action before it: rows of both kinds go separately.
        predictions: Tensor | None = None
        remembered: dict[str, Tensor] = {}
        for rows, first in ((starts, True), (~starts, False)):
            tensors = {name: tensor[rows] for name, tensor in state.tensors.items()}
            some, new = self._encode(observations[rows], returns_to_go[rows], tensors, first=first)
            if predictions is None:
                predictions = some.new_zeros(len(starts), *some.shape[1:])
                remembered = {
                    name: part.new_zeros(len(starts), *part.shape[1:]) for name, part in new.items()
                }
            predictions[rows] = some
            for name, part in new.items():
                remembered[name][rows] = part
        assert predictions is not None
        return predictions, remembered

    def _encode(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        tensors: dict[str, Tensor],
        *,
        first: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        previous_actions = None if first else tensors["action"]
        tokens = self.model.embed_step(
            previous_actions, returns_to_go, observations, tensors["timestep"]
        )
        prediction, layers = self.model.step(tokens, self._unpack(tensors))
        return prediction, self._pack(layers)

    def _encode_uniformly(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        tensors: dict[str, Tensor],
        starts: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a previous action in every row, and forget it where there was none."""
        tokens = self.model.embed_step(
            tensors["action"], returns_to_go, observations, tensors["timestep"]
        )
        _, layers = self.model.step(tokens[:, :1], self._unpack(tensors))
        for layer in layers:
            for name, rows in layer.items():
                forget = starts.view(-1, *([1] * (rows.dim() - 1)))
                layer[name] = torch.where(forget, torch.zeros_like(rows), rows)
        prediction, layers = self.model.step(tokens[:, 1:], layers)
        return prediction, self._pack(layers)

    def _unpack(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{name: tensors[key] for name, key in names} for names in self._keys]

    def _pack(self, layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            key: layer[name]
            for names, layer in zip(self._keys, layers, strict=True)
            for name, key in names
        }

    def remember_action(
        self, actions: Tensor, state: ActingState, remembered: dict[str, Tensor]
    ) -> ActingState:
        """Return the state after ``actions`` were taken."""
        timestep = state.tensors["timestep"] + 1
        return ActingState("stream", {"timestep": timestep, "action": actions, **remembered})


class WindowMemory:
    """Run the model over the last ``context_length`` steps at each step, as the paper does.

    An observation is embedded once, when it is new: time and position are added later, so its
    embedding stays the same for as long as it is in the window. A state is therefore of the weights
    that it was made with, as a stream's is.

    Args:
        model: The model that acts.
        action_space: Its action space.
        context_length: Steps to look back on, the current one included.
        uniform: As for :class:`StreamMemory`.
    """

    def __init__(
        self,
        model: SequenceModel,
        action_space: spaces.Space[Any],
        context_length: int,
        uniform: bool = False,
    ) -> None:
        self.model = model
        self.action_space = action_space
        self.context_length = context_length
        self.uniform = uniform

    def initial_state(self, n_envs: int) -> ActingState:
        """Return the state of ``n_envs`` episodes that have not begun."""
        device = next(self.model.parameters()).device
        shape = (n_envs, self.context_length)
        tensors = {
            "timestep": torch.zeros(n_envs, dtype=torch.int64),
            "action": _action_rows(self.action_space, n_envs),
            "embedded_observations": torch.zeros(*shape, self.model.hidden_size),
            "actions": _action_rows(self.action_space, *shape),
            "returns_to_go": torch.zeros(shape),
        }
        return ActingState("window", {name: rows.to(device) for name, rows in tensors.items()})

    def encode(
        self,
        observations: Num[Tensor, "B *obs"],
        returns_to_go: Float[Tensor, " B"],
        state: ActingState,
    ) -> tuple[Float[Tensor, "B A"], dict[str, Tensor]]:
        """Predict at the newest step; return the prediction and the tensors to remember."""
        timestep = state.tensors["timestep"]
        place = timestep.clamp_max(self.context_length - 1)  # of the newest step in its window
        window = self._shift_full_windows(state)
        row = torch.arange(timestep.shape[0], device=timestep.device)
        # At a first step this writes the action that comes later, which nothing sees.
        window["actions"][row, (place - 1).clamp_min(0)] = state.tensors["action"]
        embedded = self.model.embedding.embed_observations(observations.unsqueeze(1)).squeeze(1)
        window["embedded_observations"][row, place] = embedded.float()
        window["returns_to_go"][row, place] = returns_to_go

        # Rows of different ages are padded on the right, where a causal model cannot see it.
        n_steps = self.context_length if self.uniform else int(place.max()) + 1
        offset = torch.arange(n_steps, device=timestep.device)
        tokens = self.model.embedding.join(
            window["embedded_observations"][:, :n_steps],
            window["actions"][:, :n_steps],
            window["returns_to_go"][:, :n_steps],
            (timestep - place)[:, None] + offset,
        )
        state_tokens = self.model.mix(tokens)[row, place]
        return self.model.predict(state_tokens), window

    def remember_action(
        self, actions: Tensor, state: ActingState, remembered: dict[str, Tensor]
    ) -> ActingState:
        """Return the state after ``actions`` were taken."""
        timestep = state.tensors["timestep"] + 1
        return ActingState("window", {"timestep": timestep, "action": actions, **remembered})

    def _shift_full_windows(self, state: ActingState) -> dict[str, Tensor]:
        """Copy the windows, those that are full without their oldest step."""
        names = ("embedded_observations", "actions", "returns_to_go")
        full = state.tensors["timestep"] >= self.context_length
        shifted = {}
        for name in names:
            rows = state.tensors[name]
            moved = torch.roll(rows, -1, dims=1)
            where = full.view(-1, *([1] * (rows.dim() - 1)))
            shifted[name] = torch.where(where, moved, rows)
        return shifted
