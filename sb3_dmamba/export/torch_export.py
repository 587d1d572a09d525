"""A policy's step as a program of ``torch.export`` (``.pt2``): written, and opened again."""

from __future__ import annotations

import io
import json
import warnings
from typing import Any

import torch
from torch import Tensor

from sb3_dmamba.export.graph import PolicyGraph, Step, Tensors

__all__ = ["METADATA_FILE", "open_exported_program", "to_exported_program"]

METADATA_FILE = "sb3_dmamba.json"

_EXAMPLE_ENVS = 2  # one would be taken for an axis that broadcasts


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


def open_exported_program(content: bytes, graph: PolicyGraph) -> Step:
    """Open a file's content as a step on tensors.

    Args:
        content: What :func:`to_exported_program` returned.
        graph: What was exported.

    Returns:
        A function of observation, return-to-go and state, as :meth:`PolicyGraph.forward`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in writing
        module: Any = torch.export.load(io.BytesIO(content)).module()

    def step(observation: Tensor, return_to_go: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            outputs, after = module(observation, return_to_go, state)
        return dict(outputs), dict(after)

    return step
