"""One step of a policy as a pure function of tensors, which is what a graph can hold."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sb3_dmamba.config import Memory
from sb3_dmamba.networks import (
    ActingState,
    ConvolutionMixer,
    DecisionMambaPolicy,
    MambaMixer,
    SequenceModel,
)
from sb3_dmamba.networks.memory import StreamMemory, WindowMemory
from sb3_dmamba.networks.model import DiscreteHead, Dropout, Modulation

EXAMPLE_ENVS = 2  # rows of the inputs to trace with: a single one would be taken to broadcast

Tensors = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Tensors], tuple[Tensors, Tensors]]
"""A function that acts once: the signature of :meth:`PolicyGraph.forward`."""


def make_traceable(model: SequenceModel) -> None:
    """Let a network run its operations in tensor code without loops over tokens.

    A trace would take the results of a kernel for constants, and unroll the reference's loops.
    """
    for module in model.modules():
        if isinstance(module, (MambaMixer, ConvolutionMixer, Modulation, Dropout)):
            module.backend = "traceable"


def copy_traceable(model: SequenceModel) -> SequenceModel:
    """Return a traceable copy of a network, in evaluation mode and without gradients."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    make_traceable(copied)
    return copied


def make_memory(
    policy: DecisionMambaPolicy, model: SequenceModel, memory: Memory, uniform: bool
) -> StreamMemory | WindowMemory:
    """Return one of a policy's two memories, over a model of its spaces."""
    if memory == "stream":
        return StreamMemory(model, policy.action_space, uniform)
    return WindowMemory(model, policy.action_space, policy.config.context_length, uniform)


def act_once(
    model: SequenceModel,
    memory: StreamMemory | WindowMemory,
    observation: Tensor,
    return_to_go: Tensor,
    state: ActingState,
) -> tuple[Tensors, ActingState]:
    """Take one deterministic step."""
    prediction, remembered = memory.encode(observation, return_to_go, state)
    action: Tensor = model.head.act(prediction, deterministic=True)
    outputs = {"action": action}
    if isinstance(model.head, DiscreteHead):
        outputs["logits"] = prediction
    # A copy: an action of one dimension would be an output of the graph twice.
    taken = action.flatten(1) if action.dim() > 1 else action.clone()
    return outputs, state.advance(taken, remembered)


class PolicyGraph(nn.Module):
    """A policy's step: observation, return-to-go and state in, action and next state out.

    Normalisation, return scaling and the bounds of the actions are inside, and every row takes the
    same operations whatever its age, so that one graph serves any number of environments. A state
    of zeros is an episode that has not begun.
    """

    def __init__(
        self, policy: DecisionMambaPolicy, memory: Memory, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        policy.initial_state(0, memory)  # raises where the memory cannot be used
        self.model = copy_traceable(policy.model).to(device)
        self.memory_name: Memory = memory
        self.memory = make_memory(policy, self.model, memory, uniform=True)
        self.device = torch.device(device)
        is_discrete = isinstance(self.model.head, DiscreteHead)
        self.output_names = ["action", "logits"] if is_discrete else ["action"]
        self._observation_shape = policy.flat_space.shape
        is_bytes = policy.flat_space.dtype == np.uint8
        self._observation_dtype = torch.uint8 if is_bytes else torch.float32

    def initial_state(self, n_envs: int) -> Tensors:
        """Return the state of ``n_envs`` episodes that have not begun."""
        return self.memory.initial_state(n_envs).tensors

    def make_example(self, n_envs: int) -> tuple[Tensor, Tensor, Tensors]:
        """Return inputs of :meth:`forward`, all zeros."""
        observation = torch.zeros(n_envs, *self._observation_shape, dtype=self._observation_dtype)
        return_to_go = torch.zeros(n_envs)
        inputs = observation.to(self.device), return_to_go.to(self.device)
        return *inputs, self.initial_state(n_envs)

    def forward(
        self, observation: Tensor, return_to_go: Tensor, state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Act once.

        Shapes: ``observation`` (B, *obs), ``return_to_go`` (B,). Returns ``"action"``, shape (B,
        *act), float32 or int64, and for discrete ones ``"logits"``, shape (B, n); and the next
        state, under the names of ``state``.
        """
        given = ActingState(self.memory_name, dict(state))
        outputs, after = act_once(self.model, self.memory, observation, return_to_go, given)
        return outputs, {name: after.tensors[name] for name in state}
