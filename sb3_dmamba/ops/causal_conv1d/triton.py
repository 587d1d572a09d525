"""The causal depthwise convolution on NVIDIA GPUs, with bias and SiLU, in Triton.

Computes in float32 (float64 for float64 input), whatever the dtype of what it reads and writes.
Nothing is added up in memory by several programs at once: the same call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops._shared import compute_dtype, make_differentiable, wants_gradient
from sb3_dmamba.ops.causal_conv1d import _triton_kernels

BLOCK_L = 16  # tokens of a tile; with BLOCK_D channels and WARPS 8 elements a thread
BLOCK_D = 64
WARPS = 4
# A program takes several tiles, which leaves fewer partial sums, up to this many and while there
# are this many programs for each multiprocessor.
MAX_TILES = 16
PROGRAMS_A_MULTIPROCESSOR = 16


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`."""
    tensors = (x, weight, bias, initial_state)
    if wants_gradient(tensors):
        return _convolve(silu, return_final_state, *tensors)
    y, final, _ = _forward(silu, return_final_state, False, tensors)
    return y, final


def _forward(
    silu: bool, return_final_state: bool, save: bool, inputs: Sequence[Any]
) -> tuple[Tensor, Tensor | None, None]:
    y, final = _forward_operator(*inputs, silu, return_final_state)
    return y, final if return_final_state else None, None


def _backward(
    silu: bool, inputs: Sequence[Any], saved: object, grad_y: Tensor, grad_final: Tensor | None
) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _backward_operator(*inputs, grad_y, grad_final, silu)
    return gradients


_convolve = make_differentiable(_forward, _backward)


class _Cut(NamedTuple):
    """Divide the places of all sequences among programs."""

    grid: tuple[int, int]  # blocks of channels of all sequences, spans of a sequence
    span: int  # places of a program

    @classmethod
    def of(cls, x: Tensor, places: int) -> _Cut:
        """Divide by sizes and device alone."""
        programs = x.shape[0] * -(-x.shape[2] // BLOCK_D)
        n_tiles = max(-(-places // BLOCK_L), 1)
        enough = PROGRAMS_A_MULTIPROCESSOR * _triton.n_multiprocessors(x.device)
        tiles = max(1, min(MAX_TILES, n_tiles, programs * n_tiles // enough))
        return cls((programs, -(-n_tiles // tiles)), tiles * BLOCK_L)


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    y, final = _allocate_forward(*arguments)
    x, weight, bias, initial, silu, return_final_state = arguments
    x = _triton.rows(x)
    grid, span = _Cut.of(x, x.shape[1])
    _triton.launch(
        *(_triton_kernels.conv_forward, grid, WARPS),
        *(x, *map(_triton.whole, (weight, bias, initial)), y),
        *(final if return_final_state else None, x.shape[1], span, x.shape[2]),
        *_triton.strides(x),
        **_constants(x, weight, silu),
    )
    return y, final


def _constants(x: Tensor, weight: Tensor, silu: bool) -> dict[str, Any]:
    """Return what both kernels know at compile time."""
    sizes = {"TAPS": weight.shape[1], "BLOCK_L": BLOCK_L, "BLOCK_D": BLOCK_D}
    return {**sizes, "SILU": silu, "DOUBLE": _triton.is_double(x)}


def _allocate_forward(
    x: Tensor, weight: Tensor, bias: object, initial: object, silu: bool, return_final_state: bool
) -> tuple[Tensor, Tensor]:
    """Allocate the results of :func:`_run_forward`; what is not asked for is empty."""
    y = _triton.empty(*x.shape, like=x)
    if not return_final_state:
        return y, _triton.absent(x)
    return y, _triton.empty(x.shape[0], weight.shape[1] - 1, x.shape[2], like=x)


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    d_x, d_weight, d_bias, d_initial = gradients = _allocate_backward(*arguments)
    x, weight, bias, initial, grad_y, grad_final, silu = arguments
    x, grad_y = _triton.rows(x), _triton.rows(grad_y)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    grid, span = _Cut.of(x, length + taps - 1)
    dtype = compute_dtype(x)
    d_taps = _triton.empty(batch, grid[1], taps + 1, channels, like=x, dtype=dtype)
    _triton.launch(
        *(_triton_kernels.conv_backward, grid, WARPS),
        *(x, *map(_triton.whole, (weight, bias, initial)), grad_y, _triton.whole(grad_final)),
        *(d_x, None if initial is None else d_initial, d_taps, length, span, channels),
        *_triton.strides(x, grad_y),
        **_constants(x, weight, silu),
        BLOCK_T=_triton.power_of_two(taps + 1),
    )
    total = d_taps.sum((0, 1))
    d_weight.copy_(total[:taps].t())
    if bias is not None:
        d_bias.copy_(total[taps])
    return gradients


def _allocate_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Allocate the results of :func:`_run_backward`; those of what is absent are empty."""
    return _triton.empty_gradients(*arguments[:4])


_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial"
_forward_operator = _triton.define_operator(
    "causal_conv1d_forward",
    f"({_INPUTS}, bool silu, bool final) -> (Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_backward_operator = _triton.define_operator(
    "causal_conv1d_backward",
    f"({_INPUTS}, Tensor grad_y, Tensor? grad_final, bool silu)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
