"""Implementations without a loop over tokens, for tracing, compiling and exporting a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from sb3_dmamba.ops._shared import compute_dtype
from sb3_dmamba.ops.reference import (
    add_skip_and_gate,
    causal_conv1d,  # loops over its taps alone
    compute_step_size,
    mamba_step,  # loops over few tokens
)

__all__ = ["causal_conv1d", "mamba_step", "recurrence_as", "run_recurrence", "selective_scan"]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_weight: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    dtype = compute_dtype(u)
    x = u.to(dtype)
    step = compute_step_size(delta.to(dtype), delta_bias, delta_weight, delta_softplus)
    if initial_state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    else:
        state = initial_state.to(dtype)
    run = _recurrence.get()
    y, final_state = run(step, x, A.to(dtype), B.to(dtype), C.to(dtype), state)
    y = add_skip_and_gate(y, x, D, z).to(u.dtype)
    return y, final_state if return_final_state else None


def run_recurrence(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return every token's output (B, L, D), and the state (B, D, N) after the last.

    Source: Hillis and Steele 1986, "Data Parallel Algorithms", on the associative operator of
    Blelloch 1990, "Prefix Sums and Their Applications", section 1.4.1.
    """
    decay = torch.exp(step.unsqueeze(-1) * A)  # (B, L, D, N)
    inflow = (step * x).unsqueeze(-1) * B.unsqueeze(2)  # (B, L, D, N)
    length = x.shape[1]
    if length == 0:
        return torch.zeros_like(x), state
    carried = decay[:, :1] * state.unsqueeze(1)
    inflow = torch.cat([inflow[:, :1] + carried, inflow[:, 1:]], dim=1)
    states = _accumulate(decay, inflow, length)
    return (states * C.unsqueeze(2)).sum(-1), states[:, -1]


Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_recurrence: ContextVar[Recurrence] = ContextVar("_recurrence", default=run_recurrence)


@contextmanager
def recurrence_as(recurrence: Recurrence) -> Iterator[None]:
    """Use another function in place of :func:`run_recurrence` in what is traced within."""
    token = _recurrence.set(recurrence)
    try:
        yield
    finally:
        _recurrence.reset(token)


def _accumulate(decay: Tensor, inflow: Tensor, length: int) -> Tensor:
    """Return every ``h[t] = decay[t] * h[t - 1] + inflow[t]``, from ``h[-1] = 0``.

    Before the round of ``reach`` steps, ``states[t]`` holds what the last ``reach`` tokens brought
    and ``decay[t]`` is the decay over them.
    """
    states = inflow
    reach = 1
    while reach < length:
        earlier = decay[:, reach:] * states[:, :-reach]
        states = torch.cat([states[:, :reach], states[:, reach:] + earlier], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return states
