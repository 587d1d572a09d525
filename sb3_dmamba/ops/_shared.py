"""Shared by the operations: argument checks, the dtype to compute in, autograd functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def check_tensors(like: Tensor, *expected: tuple[str, Tensor | None, tuple[int, ...], str]) -> None:
    """Check an operation's arguments against the sizes, and the device, that its input implies.

    Raises ValueError: a shape, dtype or device is wrong; names the argument, expected and got.
    """
    dtype, device = like.dtype, like.device
    for name, tensor, shape, letters in expected:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {letters} = {tuple(shape)}"
            )
        if (tensor.dtype is not dtype or tensor is like) and not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating point one")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, expected {device} as the input")


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in, and to keep states in: float64 for float64, else float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records what is done with the tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


DROPOUT_LEVELS = 1 << 16  # a random int16 per element: probabilities are multiples of 1 / 65536


def count_tokens(length: int, n_steps: int) -> int:
    """Return the tokens of a step, of which the last step may have fewer."""
    n_steps = max(n_steps, 1)
    return (length + n_steps - 1) // n_steps  # ONNX divides towards zero


Forward = Callable[[Any, bool, bool, Sequence[Any]], tuple[Tensor, Tensor | None, Tensor | None]]
Backward = Callable[
    [Any, Sequence[Any], Tensor | None, Tensor, Tensor | None], Sequence[Tensor | None]
]


def make_differentiable(
    run_forward: Forward, run_backward: Backward
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Make an autograd function of an operation's forward and backward kernels.

    Returns a function of (setting, return_final_state, *inputs) that returns output and final
    state. Its gradients have no gradients.
    """

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, setting: Any, return_final_state: bool, *inputs: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            y, final, saved = run_forward(setting, return_final_state, True, inputs)
            ctx.save_for_backward(*inputs, saved)
            ctx.setting = setting
            ctx.set_materialize_grads(False)
            return y, final

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
            needed = ctx.needs_input_grad[2:]
            if grad_y is None and grad_final is None:
                return None, None, *(None for _ in needed)
            *inputs, saved = ctx.saved_tensors
            if grad_y is None:
                grad_y = torch.zeros_like(inputs[0])
            gradients = run_backward(ctx.setting, inputs, saved, grad_y, grad_final)
            wanted = zip(gradients, needed, strict=True)
            return None, None, *(gradient if need else None for gradient, need in wanted)

    # Profilers show the name of the operation's folder.
    named: Any = type(run_forward.__module__.split(".")[-2], (Operation,), {})
    apply: Callable[..., tuple[Tensor, Tensor | None]] = named.apply
    return apply
