"""Memories of an acting policy: a window of past steps, or a recurrent state."""

from __future__ import annotations

import dataclasses
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
    """State of a policy that acts in several environments, whose episodes may differ in age.

    Every tensor has one row per environment, and a new episode is a row of zeros. Rows can be
    dropped, reordered, joined, pickled and moved to another device. Both memories have
    ``"timestep"``, the number of steps taken in the episode, and ``"action"``, the last action; if
    the environment took another action than the policy chose, set it with :meth:`with_action`.

    A state holds embedded observations (window) or recurrent states (stream), computed from the
    weights of that time. If the weights change, episodes that are under way keep the old ones.

    Args:
        memory: ``"window"`` or ``"stream"``.
        tensors: The rows, by name.
    """

    memory: Memory
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        """Return the number of environments."""
        return len(self.tensors["timestep"])

    def take(self, rows: ArrayLike) -> ActingState:
        """Select environments, in the given order.

        Args:
            rows: Integer indices, shape (m,); an index may repeat.
        """
        index = torch.as_tensor(np.array(rows, dtype=np.int64, order="C"), device=self._device)
        return self._replace({name: tensor[index] for name, tensor in self.tensors.items()})

    def reset(self, starts: ArrayLike) -> ActingState:
        """Start a new episode in some environments.

        Args:
            starts: Shape (n,), True where an episode starts.
        """
        flags = np.array(starts, dtype=bool, order="C")
        if not flags.any():
            return self
        index = torch.as_tensor(flags, device=self._device)
        cleared = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for tensor in cleared.values():
            tensor[index] = 0
        return self._replace(cleared)

    def with_action(self, actions: ArrayLike) -> ActingState:
        """Replace the last actions by those that the environments have taken.

        Args:
            actions: Shape (n, *action_space.shape), in the environment's units.

        Raises:
            ConditioningError: Their number or size is wrong.
        """
        chosen = self.tensors["action"]
        taken = torch.as_tensor(np.array(actions, order="C"), dtype=chosen.dtype)
        if len(self) != (len(taken) if taken.dim() else 0) or taken.numel() != chosen.numel():
            message = (
                f"actions of shape {tuple(taken.shape)} were given for {len(self)} environments "
                f"whose actions are {tuple(chosen.shape[1:])}: give one action for each"
            )
            raise ConditioningError(message, setting="action", value=tuple(taken.shape))
        action = taken.reshape(chosen.shape).to(chosen.device)
        return self._replace({**self.tensors, "action": action})

    def to(self, device: torch.device | str) -> ActingState:
        """Move the state to a device."""
        return self._replace({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def concatenate(states: Sequence[ActingState]) -> ActingState:
        """Join the environments of several states of one policy and memory, in order.

        Args:
            states: At least one; the result is on the device of the first.

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
        moved = [state.to(first._device) for state in states]
        return first._replace(
            {name: torch.cat([state.tensors[name] for state in moved]) for name in first.tensors}
        )

    def advance(self, actions: Tensor, remembered: dict[str, Tensor]) -> ActingState:
        """Return the state one step later.

        Args:
            actions: Actions taken, flat.
            remembered: Second result of the memory's ``encode``.
        """
        timestep = self.tensors["timestep"] + 1
        return self._replace({"timestep": timestep, "action": actions, **remembered})

    @property
    def _device(self) -> torch.device:
        return self.tensors["timestep"].device

    def _layout(self) -> tuple[str, dict[str, tuple[int, ...]]]:
        return self.memory, {name: tuple(rows.shape[1:]) for name, rows in self.tensors.items()}

    def _replace(self, tensors: dict[str, Tensor]) -> ActingState:
        return dataclasses.replace(self, tensors=tensors)


def _action_rows(space: spaces.Space[Any], *lead: int) -> Tensor:
    """Return zeros in the shape and dtype of stored actions."""
    if isinstance(space, spaces.Discrete):
        return torch.zeros(lead, dtype=torch.int64)
    assert isinstance(space, spaces.Box)
    return torch.zeros(*lead, math.prod(space.shape))


_PREVIOUS = "previous_return_to_go"


class StreamMemory:
    """Carry the recurrent state over the whole episode, at a constant cost per step."""

    def __init__(
        self, model: SequenceModel, action_space: spaces.Space[Any], uniform: bool = False
    ) -> None:
        self.model = model
        self.action_space = action_space
        self.uniform = uniform
        # The token of an action is modulated by the return-to-go of its own step.
        self._keeps_return_to_go = model.embedding.is_decoupled
        self._keys = [  # of each layer: (name in its state, name in ours)
            [(name, f"layer{index}.{name}") for name in layer]
            for index, layer in enumerate(model.initial_layers(0))
        ]

    def initial_state(self, n_envs: int) -> ActingState:
        """Return the state of ``n_envs`` episodes that have not begun."""
        layers = self.model.initial_layers(n_envs)
        device = layers[0][next(iter(layers[0]))].device
        tensors = {
            "timestep": torch.zeros(n_envs, dtype=torch.int64, device=device),
            "action": _action_rows(self.action_space, n_envs).to(device),
            **self._pack(layers),
        }
        if self._keeps_return_to_go:
            tensors[_PREVIOUS] = torch.zeros(n_envs, device=device)
        return ActingState("stream", tensors)

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
        if n_starts in (0, len(starts)):
            return self._encode(observations, returns_to_go, state.tensors, first=n_starts > 0)
        # An episode's first step has no action before it: encode rows of both kinds separately.
        results, places = [], []
        for is_first, rows in ((True, starts), (False, ~starts)):
            tensors = {name: tensor[rows] for name, tensor in state.tensors.items()}
            results.append(
                self._encode(observations[rows], returns_to_go[rows], tensors, first=is_first)
            )
            places.append(rows.nonzero().squeeze(1))
        order = torch.cat(places).argsort()
        predictions = torch.cat([prediction for prediction, _ in results])[order]
        names = results[0][1]
        return predictions, {
            name: torch.cat([remembered[name] for _, remembered in results])[order]
            for name in names
        }

    def _encode(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        tensors: dict[str, Tensor],
        *,
        first: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self._embed(observations, returns_to_go, tensors, first)
        prediction, layers = self.model.step(tokens, condition, self._unpack(tensors))
        return prediction, self._remember(layers, returns_to_go)

    def _embed(
        self, observations: Tensor, returns_to_go: Tensor, tensors: dict[str, Tensor], first: bool
    ) -> tuple[Tensor, Tensor | None]:
        action, previous = (None, None) if first else (tensors["action"], tensors.get(_PREVIOUS))
        timestep = tensors["timestep"]
        return self.model.embed_step(action, returns_to_go, observations, timestep, previous)

    def _encode_uniformly(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        tensors: dict[str, Tensor],
        starts: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a previous action in every row, and zero its effect in first steps."""
        tokens, condition = self._embed(observations, returns_to_go, tensors, first=False)
        of_action, of_step = (
            (None, None) if condition is None else (condition[:, :1], condition[:, 1:])
        )
        _, layers = self.model.step(tokens[:, :1], of_action, self._unpack(tensors))
        for layer in layers:
            for name, rows in layer.items():
                is_first = starts.view(-1, *([1] * (rows.dim() - 1)))
                layer[name] = torch.where(is_first, torch.zeros_like(rows), rows)
        prediction, layers = self.model.step(tokens[:, 1:], of_step, layers)
        return prediction, self._remember(layers, returns_to_go)

    def _remember(
        self, layers: list[dict[str, Tensor]], returns_to_go: Tensor
    ) -> dict[str, Tensor]:
        kept = {_PREVIOUS: returns_to_go} if self._keeps_return_to_go else {}
        return {**self._pack(layers), **kept}

    def _unpack(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{name: tensors[key] for name, key in names} for names in self._keys]

    def _pack(self, layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            key: layer[name]
            for names, layer in zip(self._keys, layers, strict=True)
            for name, key in names
        }


class WindowMemory:
    """Run the model over the last ``context_length`` steps at each step, as the paper does.

    An observation is embedded once, when it is new: time and position are added later, so the
    embedding does not change while the observation is in the window.
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
        # At a first step this writes a later action, which a causal model cannot see.
        window["actions"][row, (place - 1).clamp_min(0)] = state.tensors["action"]
        embedded = self.model.embedding.embed_observations(observations.unsqueeze(1)).squeeze(1)
        window["embedded_observations"][row, place] = embedded.float()
        window["returns_to_go"][row, place] = returns_to_go

        # Windows of different lengths are padded on the right, which a causal model cannot see.
        n_steps = self.context_length if self.uniform else int(place.max()) + 1
        offset = torch.arange(n_steps, device=timestep.device)
        returns_to_go = window["returns_to_go"][:, :n_steps]
        timesteps = (timestep - place)[:, None] + offset
        condition = self.model.embedding.condition(returns_to_go, timesteps)
        tokens = self.model.embedding.join(
            window["embedded_observations"][:, :n_steps],
            window["actions"][:, :n_steps],
            returns_to_go,
            timesteps,
        )
        state_tokens = self.model.mix(tokens, condition)[row, place]
        newest = None if condition is None else condition[row, place].unsqueeze(1)
        return self.model.predict(state_tokens.unsqueeze(1), newest).squeeze(1), window

    def _shift_full_windows(self, state: ActingState) -> dict[str, Tensor]:
        """Copy the windows, and drop the oldest step of full ones."""
        is_full = state.tensors["timestep"] >= self.context_length
        shifted = {}
        for name in ("embedded_observations", "actions", "returns_to_go"):
            rows = state.tensors[name]
            where = is_full.view(-1, *([1] * (rows.dim() - 1)))
            shifted[name] = torch.where(where, torch.roll(rows, -1, dims=1), rows)
        return shifted
