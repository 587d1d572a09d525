"""Export of policies to files that run without this package: ONNX and torch.export.

Every file describes itself and was compared with the policy.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sb3_dmamba
from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConfigError, ExportError
from sb3_dmamba.export.graph import EXAMPLE_ENVS, PolicyGraph, Step, Tensors, act_once, make_memory
from sb3_dmamba.export.onnx import open_onnx, to_onnx
from sb3_dmamba.io import write_atomically
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.spaces import space_to_json

__all__ = ["FORMATS", "ExportedPolicy", "export_policy"]

METADATA_FILE = "sb3_dmamba.json"  #: inside a ``.pt2``

_FORMAT_VERSION = 1
_N_STEPS = 3
_TOLERANCE = 1e-3  # of the largest number in a tensor; rounding makes some 1e-6


@dataclass(frozen=True)
class ExportedPolicy:
    """A file that :func:`export_policy` wrote.

    Args:
        path: The file.
        metadata: The description that the file contains.
        max_error: Largest relative difference from the policy's outputs and states; None where
            it was not run.
    """

    path: Path
    metadata: dict[str, Any]
    max_error: float | None


def export_policy(
    policy: DecisionMambaPolicy,
    path: str | os.PathLike[str],
    *,
    memory: Memory | None = None,
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    verify: bool = True,
) -> ExportedPolicy:
    """Write a policy's step as a graph with the state going in and coming out.

    Args:
        policy: The policy; it stays as it is.
        path: File to write, atomically: ``.onnx`` or ``.pt2`` (``torch.export``).
        memory: ``"window"`` or ``"stream"``; None is the policy's own.
        about: Further metadata of the file, as JSON values.
        device: Where a ``.pt2`` is to run; ONNX decides that when it is opened.
        verify: Whether to run the result beside the policy before it is written.

    Returns:
        Path, metadata and largest difference of the file.

    Raises:
        ConfigError: The suffix is neither of these, or the memory cannot be used.
        MissingDependencyError: onnx is not installed.
        ExportError: The exported step does not act as the policy does.
        OSError: The file cannot be written; one that was there is as it was.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        gone = ", as TorchScript is no longer written" if suffix == ".pt" else ""
        message = f"path={os.fspath(path)!r}: end it in .onnx or .pt2 (torch.export){gone}"
        raise ConfigError(message, setting="path", value=os.fspath(path), choices=FORMATS)
    where = torch.device("cpu" if suffix == ".onnx" else device)
    graph = PolicyGraph(policy, policy.memory if memory is None else memory, where)
    metadata = _describe_policy(policy, graph, {} if about is None else about)
    content = FORMATS[suffix](graph, metadata)
    error = None
    if verify and (suffix != ".onnx" or importlib.util.find_spec("onnxruntime") is not None):
        open_content = open_onnx if suffix == ".onnx" else open_exported_program
        error = measure_error(policy, graph, open_content(content, graph))
    write_atomically(target, content)
    return ExportedPolicy(target, metadata, error)


def to_exported_program(graph: PolicyGraph, metadata: dict[str, Any]) -> bytes:
    """Export the step with ``torch.export``."""
    example = graph.make_example(EXAMPLE_ENVS)
    rows = {0: torch.export.Dim("n_envs")}
    shapes = (rows, rows, dict.fromkeys(example[2], rows))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def open_exported_program(content: bytes, graph: PolicyGraph) -> Step:
    """Open what :func:`to_exported_program` returned; ``graph`` is what was exported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in writing
        module: Any = torch.export.load(io.BytesIO(content)).module()

    def step(observation: Tensor, return_to_go: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            outputs, after = module(observation, return_to_go, state)
        return dict(outputs), dict(after)

    return step


FORMATS: dict[str, Callable[[PolicyGraph, dict[str, Any]], bytes]] = {
    ".onnx": to_onnx,
    ".pt2": to_exported_program,
}


def _describe_policy(
    policy: DecisionMambaPolicy, graph: PolicyGraph, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the file's metadata: spaces, memory, and the tensors that go in and come out."""
    config = policy.config
    observation, return_to_go, state = graph.make_example(1)

    def describe(tensors: Tensors) -> dict[str, Any]:
        """Return the type of each, and the shape of one environment's row."""
        return {
            name: {"dtype": str(rows.dtype).removeprefix("torch."), "shape": list(rows.shape[1:])}
            for name, rows in tensors.items()
        }

    return {
        "format_version": _FORMAT_VERSION,
        "memory": graph.memory_name,
        "context_length": config.context_length,
        "mixer": config.mixer,
        "observation_space": space_to_json(policy.flat_space),
        "action_space": space_to_json(policy.action_space),
        **about,
        "inputs": describe({"observation": observation, "return_to_go": return_to_go}),
        "state": describe(state),
        "outputs": graph.output_names,
        "versions": {"sb3_dmamba": sb3_dmamba.__version__, "torch": torch.__version__},
    }


def measure_error(policy: DecisionMambaPolicy, graph: PolicyGraph, step: Step) -> float:
    """Run an exported step beside the policy, on random inputs, for rows of different ages.

    Raises ExportError: they differ by more than rounding; names the tensor.
    """
    policy.set_training_mode(False)
    device = policy.device
    memory = make_memory(policy, policy.model, graph.memory_name, uniform=False)
    ages = [0, 1, policy.config.context_length + 2]
    state = memory.initial_state(len(ages))
    state.tensors["timestep"] += torch.tensor(ages, device=device)
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(_N_STEPS):
        inputs = _draw_inputs(policy, graph, len(ages), rng)
        with torch.inference_mode():
            moved = [each.to(device) for each in inputs]
            expected, after = act_once(policy.model, memory, moved[0], moved[1], state)
        given = {name: rows.to(graph.device) for name, rows in state.tensors.items()}
        outputs, new_state = step(*inputs, given)
        if "logits" in expected:  # two logits may be alike, and then either action is right
            outputs["action"] = expected["action"]
            new_state["action"] = after.tensors["action"]
        for found, wanted in ((outputs, expected), (new_state, after.tensors)):
            for name, rows in wanted.items():
                worst = max(worst, _compare(name, found[name], rows))
        state = after
    return worst


def _draw_inputs(
    policy: DecisionMambaPolicy, graph: PolicyGraph, n_envs: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    blank, _, _ = graph.make_example(n_envs)
    if blank.dtype == torch.uint8:
        observation = torch.as_tensor(rng.integers(0, 256, blank.shape, dtype=np.uint8))
    else:
        observation = torch.as_tensor(rng.normal(size=blank.shape).astype(np.float32))
    returns_to_go = (policy.config.resolved_return_scale * rng.normal(size=n_envs)).astype(
        np.float32
    )
    return observation.to(graph.device), torch.as_tensor(returns_to_go).to(graph.device)


def _compare(name: str, found: Tensor, wanted: Tensor) -> float:
    first, second = found.cpu().double(), wanted.cpu().double()
    alike = found.dtype == wanted.dtype and first.shape == second.shape
    scale = max(1.0, float(second.abs().max())) if second.numel() else 1.0
    error = float((first - second).abs().max()) / scale if alike and second.numel() else 0.0
    if not alike or not error <= _TOLERANCE:
        message = (
            f"the exported policy does not act as the model does: {name} is {found.dtype} of shape "
            f"{tuple(found.shape)} and differs by {error:.2g}; nothing was written. Please report "
            f"this with your versions of torch and onnx."
        )
        raise ExportError(message, setting=name, value=error)
    return error
