"""The selective scan by mamba-ssm's own CUDA kernel, for who has built it.

It takes (B, D, L) and step sizes of full rank, so sequences are copied and ``delta`` is written
out. It starts from zero, and gives no gradient to the final state: what it cannot do is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import _cuda

MAX_STATES = 256
_INSTEAD = "use backend='triton' or 'auto'"


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

    Raises:
        BackendError: mamba-ssm's kernel cannot do what is asked.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    _check(u, A, tensors, initial_state, return_final_state)
    kind, channels_first = u.dtype, (0, 2, 1)
    if delta_weight is not None:
        with torch.autocast(u.device.type, enabled=False):
            delta = linear(delta.to(kind), delta_weight.to(kind))
    sequences = [
        None if x is None else x.to(kind).permute(channels_first).contiguous()
        for x in (u, delta, B, C, z)
    ]
    A, D, delta_bias = (None if x is None else x.float() for x in (A, D, delta_bias))  # type: ignore[assignment]
    results = _cuda.get_scan()(
        *(*sequences[:2], A, *sequences[2:4], D, sequences[4], delta_bias),
        delta_softplus=delta_softplus,
        return_last_state=return_final_state,
    )
    y, final = results if return_final_state else (results, None)
    return y.permute(channels_first), final


def _check(
    u: Tensor,
    A: Tensor,
    tensors: tuple[Tensor | None, ...],
    initial_state: Tensor | None,
    return_final_state: bool,
) -> None:
    cannot = None
    if initial_state is not None:
        cannot = "start from initial_state"
    elif u.dtype is torch.float64:
        cannot = "compute in float64"
    elif A.shape[1] > MAX_STATES:
        cannot = f"hold N = {A.shape[1]} states, more than {MAX_STATES},"
    elif u.numel() == 0:
        cannot = f"scan {u.shape[1]} tokens in a batch of {u.shape[0]}"
    elif return_final_state and torch.is_grad_enabled() and _any_requires_grad(tensors):
        cannot = "give gradients through the final state"
    if cannot is not None:
        raise BackendError(f"backend='cuda': mamba-ssm's scan cannot {cannot}: {_INSTEAD}")


def _any_requires_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)
