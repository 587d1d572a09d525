"""The causal depthwise convolution by causal-conv1d's own CUDA kernel, for who has built it."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import _cuda

TAPS = (2, 3, 4)  # what it is compiled for
CHANNELS_MULTIPLE = 8  # of the layout with channels innermost, ours


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`.

    Raises:
        BackendError: causal-conv1d's kernel cannot do what is asked.
    """
    (_, length, channels), taps = x.shape, weight.shape[1]
    cannot = None
    if taps not in TAPS:
        cannot = f"convolve with {taps} taps, only with {', '.join(map(str, TAPS))}"
    elif channels % CHANNELS_MULTIPLE:
        cannot = f"take {channels} channels, only multiples of {CHANNELS_MULTIPLE}"
    elif x.dtype is torch.float64:
        cannot = "compute in float64"
    elif x.numel() == 0:
        cannot = f"take a sequence of {length} tokens in a batch of {x.shape[0]}"
    if cannot is not None:
        raise BackendError(
            f"backend='cuda': causal-conv1d cannot {cannot}: use backend='triton' or 'auto'"
        )
    if any(stride % CHANNELS_MULTIPLE for stride in x.stride()[:2]) or x.stride(2) != 1:
        x = x.contiguous()
    state = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    results = _cuda.get_convolution()(
        x.transpose(1, 2),  # (B, D, L) with channels innermost, where it is
        weight,
        None if bias is None else bias.to(weight.dtype),
        initial_states=None if state is None else state.transpose(1, 2),
        return_final_states=return_final_state,
        activation="silu" if silu else None,
    )
    y, final = results if return_final_state else (results, None)
    return y.transpose(1, 2), None if final is None else final.transpose(1, 2)
