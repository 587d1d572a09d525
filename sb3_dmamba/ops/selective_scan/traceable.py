"""The selective scan without a loop over tokens, for what traces, compiles or exports a model.

A trace of the reference repeats its loop once a token: thousands of nodes, and minutes to export.
This one takes ``log2(L)`` rounds over all tokens at once; it holds every token's state in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_dmamba.ops.selective_scan.reference import add_skip_and_gate, compute_step_size


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`.

    Source: Hillis and Steele 1986, "Data Parallel Algorithms", on the associative operator of
    Blelloch 1990, "Prefix Sums and Their Applications", section 1.4.1.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x = u.to(dtype)
    step = compute_step_size(delta.to(dtype), delta_bias, delta_weight, delta_softplus)
    decay = torch.exp(step.unsqueeze(-1) * A.to(dtype))  # (B, L, D, N)
    inflow = (step * x).unsqueeze(-1) * B.to(dtype).unsqueeze(2)  # (B, L, D, N)
    length = u.shape[1]
    if initial_state is not None and length > 0:
        carried = decay[:, :1] * initial_state.to(dtype).unsqueeze(1)
        inflow = torch.cat([inflow[:, :1] + carried, inflow[:, 1:]], dim=1)
    states = _accumulate(decay, inflow, length)
    y = (states * C.to(dtype).unsqueeze(2)).sum(-1)  # (B, L, D)
    final_state = None
    if return_final_state:
        if length > 0:
            final_state = states[:, -1]
        elif initial_state is not None:
            final_state = initial_state.to(dtype)
        else:
            final_state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    return add_skip_and_gate(y, x, D, z).to(u.dtype), final_state


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
