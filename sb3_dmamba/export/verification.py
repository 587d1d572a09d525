"""Whether an exported step does what the policy does."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sb3_dmamba.errors import ExportError
from sb3_dmamba.export.graph import PolicyGraph, make_memory
from sb3_dmamba.export.onnx import NEXT, STATE
from sb3_dmamba.networks import ActingState, DecisionMambaPolicy

__all__ = ["can_run", "measure_error"]

_N_STEPS = 3
_TOLERANCE = 1e-3  # of the largest number in a tensor; rounding makes some 1e-6

Tensors = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Tensors], tuple[Tensors, Tensors]]


def can_run(suffix: str) -> bool:
    """Whether what is needed to run the format is installed."""
    return suffix != ".onnx" or importlib.util.find_spec("onnxruntime") is not None


def measure_error(
    policy: DecisionMambaPolicy, graph: PolicyGraph, content: bytes, suffix: str
) -> float:
    """Run an exported step beside the policy, on random inputs, for rows of different ages.

    Args:
        policy: The policy, with its own backend on its own device.
        graph: What was exported.
        content: The file.
        suffix: Its format.

    Returns:
        The largest difference, relative to the largest number of its tensor (or to 1).

    Raises:
        ExportError: They differ by more than rounding; names the tensor.
    """
    step = _open(content, suffix, graph)
    policy.set_training_mode(False)
    memory = make_memory(policy, policy.model, graph.memory_name, uniform=False)
    ages = [0, 1, policy.config.context_length + 2]
    state = memory.initial_state(len(ages))
    state.tensors["timestep"] += torch.tensor(ages, device=policy.device)
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(_N_STEPS):
        observation, return_to_go = _draw_inputs(policy, graph, len(ages), rng)
        expected, after = _act(policy, memory, observation, return_to_go, state)
        given = {name: rows.to(graph.device) for name, rows in state.tensors.items()}
        outputs, new_state = step(observation, return_to_go, given)
        if "logits" in expected:  # two logits may be alike, and then either action is right
            outputs["action"] = expected["action"]
            new_state["action"] = after.tensors["action"]
        for found, wanted in ((outputs, expected), (new_state, after.tensors)):
            for name, rows in wanted.items():
                worst = max(worst, _compare(name, found[name], rows))
        state = after
    return worst


def _act(
    policy: DecisionMambaPolicy,
    memory: Any,
    observation: Tensor,
    return_to_go: Tensor,
    state: ActingState,
) -> tuple[Tensors, ActingState]:
    device = policy.device
    with torch.inference_mode():
        prediction, remembered = memory.encode(
            observation.to(device), return_to_go.to(device), state
        )
        action = policy.model.head.act(prediction, deterministic=True)
    taken = action.flatten(1) if action.dim() > 1 else action
    outputs = {"action": action}
    if not action.is_floating_point():
        outputs["logits"] = prediction
    return outputs, memory.remember_action(taken, state, remembered)


def _draw_inputs(
    policy: DecisionMambaPolicy, graph: PolicyGraph, n_envs: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    blank, _, _ = graph.make_example(n_envs)
    if blank.dtype == torch.uint8:
        observation = torch.as_tensor(rng.integers(0, 256, blank.shape, dtype=np.uint8))
    else:
        observation = torch.as_tensor(rng.normal(size=blank.shape).astype(np.float32))
    returns_to_go = (policy.config.return_scale * rng.normal(size=n_envs)).astype(np.float32)
    return observation.to(graph.device), torch.as_tensor(returns_to_go).to(graph.device)


def _compare(name: str, found: Tensor, wanted: Tensor) -> float:
    first, second = found.cpu().double(), wanted.cpu().double()
    alike = found.dtype == wanted.dtype and first.shape == second.shape
    scale = max(1.0, float(second.abs().max())) if second.numel() else 1.0
    error = float((first - second).abs().max()) / scale if alike and second.numel() else 0.0
    if not alike or not error <= _TOLERANCE:
        raise ExportError(
            f"the exported policy does not act as the model does: {name} is "
            f"{found.dtype} of shape {tuple(found.shape)} and differs by {error:.2g}; nothing was "
            f"written. Please report this with your versions of torch and onnx."
        )
    return error


def _open(content: bytes, suffix: str, graph: PolicyGraph) -> Step:
    if suffix == ".onnx":
        return _open_onnx(content, graph)
    module: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in writing
        if suffix == ".pt":
            module = torch.jit.load(io.BytesIO(content), map_location=graph.device)
        else:
            module = torch.export.load(io.BytesIO(content)).module()

    def step(observation: Tensor, return_to_go: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            outputs, after = module(observation, return_to_go, state)
        return dict(outputs), dict(after)

    return step


def _open_onnx(content: bytes, graph: PolicyGraph) -> Step:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def step(observation: Tensor, return_to_go: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        feed = {"observation": observation, "return_to_go": return_to_go}
        feed |= {STATE + name: rows for name, rows in state.items()}
        arrays = {name: rows.numpy() for name, rows in feed.items()}
        found = dict(zip(names, map(torch.as_tensor, session.run(None, arrays)), strict=True))
        outputs = {name: found[name] for name in graph.output_names}
        return outputs, {name: found[NEXT + STATE + name] for name in state}

    return step
