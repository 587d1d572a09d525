"""Files of the d3rlpy API: learnables, and policies as TorchScript or ONNX."""

from __future__ import annotations

import functools
import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from d3rlpy import __version__ as d3rlpy_version
from d3rlpy.algos.transformer.base import TransformerAlgoBase
from d3rlpy.algos.transformer.inputs import TorchTransformerInput
from d3rlpy.base import LearnableConfigWithShape
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import is_tuple_shape
from torch import Tensor, nn

from sb3_dmamba.d3rlpy.network import predict_newest
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.export.graph import copy_traceable
from sb3_dmamba.export.onnx import trace_to_onnx
from sb3_dmamba.io import write_atomically
from sb3_dmamba.ops.traceable import recurrence_as


class _ImportingText(str):
    """A text whose unpickling imports this module, and with it registers our configs.

    d3rlpy unpickles a file before it looks up the algorithm, so that its command line, and scripts
    that only call ``d3rlpy.load_learnable``, find ours.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return plain_text, (str(self),)


def plain_text(text: str) -> str:
    """Return the text; files record this function's module and name, which must stay."""
    return text


def save_learnable(algo: TransformerAlgoBase, path: str | os.PathLike[str]) -> None:
    """Write d3rlpy's file of an algorithm, atomically.

    Raises OSError: the file cannot be written; one that was there is as it was.
    """
    weights = io.BytesIO()
    algo.impl.save_model(weights)
    config = LearnableConfigWithShape(
        observation_shape=algo.impl.observation_shape,
        action_size=algo.impl.action_size,
        config=algo.config,
    )
    content = {
        "torch": weights.getvalue(),
        "config": _ImportingText(config.serialize()),
        "version": d3rlpy_version,
    }
    write_atomically(Path(path), pickle.dumps(content))


def export_policy(algo: TransformerAlgoBase, path: str | os.PathLike[str]) -> None:
    """Write the greedy policy; see ``save_policy`` of the algorithms."""
    target = Path(path)
    if target.suffix not in (".pt", ".onnx"):
        message = f"{os.fspath(path)!r}: give a file name that ends in .pt or .onnx"
        raise ConfigError(message, setting="fname", value=os.fspath(path), choices=[".pt", ".onnx"])
    example = _make_example(algo)
    graph = PolicyGraph(algo)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about TorchScript
        graph(*example)  # scalers make their tensors at the first call, and keep them
        content = (_to_onnx if target.suffix == ".onnx" else _to_torchscript)(graph, example)
    write_atomically(target, content)


class PolicyGraph(nn.Module):
    """The greedy policy as a function of the tensors of one window, without a batch axis."""

    def __init__(self, algo: TransformerAlgoBase) -> None:
        super().__init__()
        self.model = copy_traceable(algo.impl.model)
        self.scalers = {
            name: getattr(algo, f"{name}_scaler") for name in ("observation", "action", "reward")
        }
        self.is_discrete = algo.get_action_type() == ActionSpace.DISCRETE
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Choose the action of the newest step.

        Returns the action (A,), or its number.
        """
        *parts, actions, returns_to_go, timesteps = (each.unsqueeze(0) for each in inputs)
        window = TorchTransformerInput(
            observations=self._scale("observation", parts[0] if len(parts) == 1 else parts),
            actions=self._scale("action", actions),
            rewards=torch.zeros_like(returns_to_go),
            returns_to_go=self._scale("reward", returns_to_go),
            timesteps=timesteps,
            masks=torch.zeros_like(timesteps),
            length=timesteps.shape[1],
        )
        prediction = predict_newest(self.model, window, is_discrete=self.is_discrete)
        if self.is_discrete:
            return prediction.argmax()
        scaler = self.scalers["action"]
        return prediction if scaler is None else scaler.reverse_transform(prediction)

    def _scale(self, name: str, values: Any) -> Any:
        scaler = self.scalers[name]
        return values if scaler is None else scaler.transform(values)


def _make_example(algo: TransformerAlgoBase) -> tuple[Tensor, ...]:
    """Return inputs of a whole window; their values do not matter."""
    impl, n_steps = algo.impl, algo.config.context_size
    shape, device = impl.observation_shape, impl.device
    shapes = list(shape) if is_tuple_shape(shape) else [shape]
    width = 1 if algo.get_action_type() == ActionSpace.DISCRETE else impl.action_size
    return (
        *(torch.zeros(n_steps, *each, device=device) for each in shapes),
        torch.zeros(n_steps, width, device=device),
        torch.zeros(n_steps, 1, device=device),
        torch.arange(1, n_steps + 1, device=device),
    )


def _to_onnx(graph: PolicyGraph, example: tuple[Tensor, ...]) -> bytes:
    observations = [f"observation_{index}" for index in range(len(example) - 3)]
    inputs = [*observations, "action", "return_to_go", "timestep"]
    content: bytes = trace_to_onnx(graph, example, inputs, ["output_0"]).SerializeToString()
    return content


def _to_torchscript(graph: PolicyGraph, example: tuple[Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    with recurrence_as(_scripted_recurrence()):
        torch.jit.save(torch.jit.trace(graph, example, strict=False, check_trace=False), buffer)
    return buffer.getvalue()


@functools.cache
def _scripted_recurrence() -> Callable[..., Any]:
    """Compile the loop over tokens, which a trace would unroll."""
    scripted: Callable[..., Any] = torch.jit.script(_run_recurrence)
    return scripted


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
