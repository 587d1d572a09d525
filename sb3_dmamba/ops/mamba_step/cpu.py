"""A Mamba mixer's next few tokens on the CPU, fused and compiled by Numba.

A unit of work takes a few environments through the whole mixer, so what lies between two of its
parts never leaves the first-level cache; the weights are laid out in the order in which the kernel
reads them. Computes in the dtype of the weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sb3_dmamba.ops import _cpu, _threads
from sb3_dmamba.ops.mamba_step import MambaWeights

ROWS = 12  # tokens in a unit of work: their activations take some 100 KB at a width of 128
PANEL = 4  # vectors of a matrix product's output that are accumulated together


class _Prepared(NamedTuple):
    tensors: tuple[Tensor, ...]  # the owners of the addresses
    arguments: tuple[int, ...]  # sizes and addresses, in the kernel's order
    bits: int
    products: int  # multiplications for one token
    scratch: int  # bytes for one token


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    prepared: _Prepared | None = weights.prepared.get("cpu")
    if prepared is None:
        prepared = weights.prepared["cpu"] = _prepare(weights)
    dtype = prepared.tensors[0].dtype
    before: list[Any] = [tokens, convolution_state, scan_state]
    _cpu.prepare(before, 0, dtype)
    batch, length, _ = tokens.shape
    # Not empty_like: its tensors would be slower to make.
    after = [_cpu.empty(*x.shape, dtype=dtype) for x in before]
    group = max(1, ROWS // max(length, 1))
    _threads.call_kernel(
        _cpu.load_kernel("mamba_step._kernel", "build_step", prepared.bits),
        (
            *(0, batch, length, group, *prepared.arguments),
            *(x.data_ptr() for x in before),
            *(x.data_ptr() for x in after),
        ),
        group * length * prepared.scratch,
        -(-batch // group),
        batch * length * prepared.products,
    )
    mixed, new_convolution_state, new_scan_state = (
        new if new.dtype is old.dtype else new.to(old.dtype)
        for new, old in zip(after, (tokens, convolution_state, scan_state), strict=True)
    )
    return mixed, new_convolution_state, new_scan_state


def _prepare(weights: MambaWeights) -> _Prepared:
    dtype = _cpu.compute_dtype(weights.in_proj)
    bits = _cpu.float_bits(dtype)
    lanes = 512 // bits
    (inner, n_taps), n_states = weights.conv1d.shape, weights.A.shape[1]
    width, rank = weights.in_proj.shape[1], weights.dt_proj.shape[1]
    weight_in, weight_gate = weights.in_proj.to(dtype).chunk(2)

    def pad(x: Tensor, multiple: int) -> Tensor:
        padded: Tensor = torch.nn.functional.pad(x.to(dtype), (0, -x.shape[-1] % multiple))
        return padded

    def pack(weight: Tensor) -> Tensor:
        """(outputs, inputs) to panels of outputs, each (inputs, PANEL * lanes)."""
        columns = pad(weight.t(), PANEL * lanes)
        panels: Tensor = columns.unflatten(1, (-1, PANEL * lanes))
        return panels.transpose(0, 1).contiguous()

    bias = weights.conv1d_bias
    tensors = tuple(
        x.detach().contiguous()
        for x in (
            torch.cat([pack(weight_in), pack(weight_gate)]),
            pad(weights.conv1d.t(), PANEL * lanes),
            pad(torch.zeros(inner) if bias is None else bias, PANEL * lanes),
            pack(weights.x_proj),
            pad(weights.dt_proj.t(), PANEL * lanes),
            pad(weights.dt_bias, PANEL * lanes),
            pad(weights.A * math.log2(math.e), lanes),  # the kernel raises 2 to it
            pad(weights.D, PANEL * lanes),
            pack(weights.out_proj),
        )
    )
    sizes = (width, inner, n_states, n_taps, rank)
    n_panels = [-(-size // (PANEL * lanes)) for size in (inner, rank + 2 * n_states, width)]
    return _Prepared(
        tensors,
        (*sizes, *n_panels, *(x.data_ptr() for x in tensors)),
        bits,
        sum(x.numel() for x in (weights.in_proj, weights.x_proj, weights.out_proj, weights.A)),
        64 * PANEL * (5 * n_panels[0] + n_panels[1] + n_panels[2]),
    )
