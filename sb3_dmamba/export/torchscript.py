"""A policy's step in TorchScript, and as an exported program."""

from __future__ import annotations

import functools
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sb3_dmamba.export.graph import PolicyGraph
from sb3_dmamba.ops.selective_scan.traceable import recurrence_as

__all__ = ["METADATA_FILE", "to_exported_program", "to_torchscript", "trace_to_torchscript"]

METADATA_FILE = "sb3_dmamba.json"

_EXAMPLE_ENVS = 2  # one would be taken for an axis that broadcasts


class ScriptedPolicy(nn.Module):
    """What a TorchScript file holds: the step, and the state it starts from.

    Args:
        step: The traced :class:`PolicyGraph`.
        blank: Its state before an episode, of one environment.
    """

    def __init__(self, step: torch.jit.ScriptModule, blank: dict[str, Tensor]) -> None:
        super().__init__()
        self.step = step
        self.blank = blank

    def forward(
        self, observation: Tensor, return_to_go: Tensor, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Act once; see :meth:`PolicyGraph.forward`."""
        result: tuple[dict[str, Tensor], dict[str, Tensor]] = self.step(
            observation, return_to_go, state
        )
        return result

    @torch.jit.export
    def initial_state(self, n_envs: int) -> dict[str, Tensor]:
        """Return the state of ``n_envs`` episodes that have not begun."""
        state: dict[str, Tensor] = {}
        for name, rows in self.blank.items():
            state[name] = torch.zeros_like(rows.expand([n_envs] + [-1] * (rows.dim() - 1)))
        return state


def to_torchscript(graph: PolicyGraph, metadata: dict[str, Any]) -> bytes:
    """Trace the step.

    Args:
        graph: The step.
        metadata: What the file says about itself.

    Returns:
        What ``torch.jit.load`` reads: a module with ``forward`` and ``initial_state``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in tracing
        traced = trace_to_torchscript(graph, graph.make_example(_EXAMPLE_ENVS))
        scripted = torch.jit.script(ScriptedPolicy(traced, graph.initial_state(1)).eval())
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def trace_to_torchscript(module: nn.Module, example: tuple[Any, ...]) -> torch.jit.ScriptModule:
    """Trace a module of ours whose scans are of the backend "traceable".

    Args:
        module: Takes and returns tensors, or dicts of them.
        example: Its inputs.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # That torch prefers torch.export is no concern of whoever wants TorchScript.
        warnings.simplefilter("ignore")
        with recurrence_as(_scripted_recurrence()):
            traced: torch.jit.ScriptModule = torch.jit.trace(
                module, example, strict=False, check_trace=False
            )
    return traced


def to_exported_program(graph: PolicyGraph, metadata: dict[str, Any]) -> bytes:
    """Export the step with ``torch.export``.

    Args:
        graph: The step.
        metadata: What the file says about itself.

    Returns:
        What ``torch.export.load`` reads; any number of environments, as ``graph`` takes them.
    """
    example = graph.make_example(_EXAMPLE_ENVS)
    rows = {0: torch.export.Dim("n_envs")}
    shapes = (rows, rows, dict.fromkeys(example[2], rows))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def _run_recurrence(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the selective scan's recurrence token by token, in what TorchScript understands."""
    decay = torch.exp(step.transpose(0, 1).unsqueeze(-1) * A)  # (L, B, D, N)
    inflow = (step * x).transpose(0, 1).unsqueeze(-1) * B.transpose(0, 1).unsqueeze(2)
    states = [state]
    for token in range(x.size(1)):
        state = torch.addcmul(inflow[token], decay[token], state)
        states.append(state)
    y = torch.matmul(torch.stack(states[1:], 1), C.unsqueeze(-1))  # (B, L, D, 1)
    return y.squeeze(-1), state


@functools.cache
def _scripted_recurrence() -> Callable[..., Any]:
    """Compile the loop, which a trace would otherwise repeat once a token."""
    scripted: Callable[..., Any] = torch.jit.script(_run_recurrence)
    return scripted
