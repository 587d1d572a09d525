"""Inputs, the comparison with the reference, and the one tolerance table of the operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sb3_dmamba.ops import causal_conv1d, selective_scan

# Relative error (norm of the difference over the norm) against the reference in float64.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}

Tensors = dict[str, Tensor]
Operation = Callable[..., tuple[Tensor, Tensor]]


def scan_inputs(
    batch: int, length: int, channels: int, states: int, rank: int | None = None, seed: int = 0
) -> Tensors:
    """Make inputs as the mixer gives them: slices of bigger buffers. No rank: whole steps."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    xz = normal(batch, length, 2 * channels)
    width = 3 if rank is None else rank
    projected = normal(batch, length, width + 2 * states)
    tensors = {
        "u": xz[..., :channels],
        "delta": normal(batch, length, channels),
        "A": -4 * torch.rand(channels, states, generator=random),
        "B": projected[..., width : width + states],
        "C": projected[..., width + states :],
        "D": normal(channels),
        "z": xz[..., channels:],
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, states),
    }
    if rank is not None:
        tensors["delta"] = projected[..., :rank]
        tensors["delta_weight"] = normal(channels, rank)
    return tensors


def conv_inputs(batch: int, length: int, channels: int, taps: int, seed: int = 0) -> Tensors:
    """Make inputs as the mixer gives them: the sequence is a slice."""
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, length, 2 * channels, generator=random)[..., :channels],
        "weight": torch.randn(channels, taps, generator=random),
        "bias": torch.randn(channels, generator=random),
        "initial_state": torch.randn(batch, taps - 1, channels, generator=random),
    }


def scan(tensors: Tensors, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Run the scan with softplus and final state."""
    options = {"delta_softplus": True, **options}
    run: Any = selective_scan
    y, final_state = run(**tensors, return_final_state=True, backend=backend, **options)
    return y, final_state


def conv(tensors: Tensors, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Run the convolution with SiLU and final state."""
    options = {"activation": "silu", **options}
    run: Any = causal_conv1d
    y, final_state = run(**tensors, return_final_state=True, backend=backend, **options)
    return y, final_state


def evaluate(
    operation: Operation,
    tensors: Tensors,
    backend: str,
    dtype: torch.dtype,
    needs_gradient: set[str] | None = None,
    **options: Any,
) -> Tensors:
    """Return outputs and the gradients of a fixed random function of both outputs."""
    wanted = set(tensors) if needs_gradient is None else needs_gradient
    inputs = {
        name: _same_strides(x, dtype).requires_grad_(name in wanted) for name, x in tensors.items()
    }
    y, final = operation(inputs, backend, **options)
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(out.shape, generator=random).to(dtype) for out in (y, final)]
    loss = (y * weights[0]).double().sum() + (final * weights[1]).double().sum()
    loss.backward()
    results = {"y": y.detach(), "final": final.detach()}
    for name, x in inputs.items():
        if x.requires_grad:
            assert x.grad is not None, name
            assert x.grad.dtype == dtype
            results[f"d {name}"] = x.grad
        else:
            assert x.grad is None, name
    return results


def _same_strides(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Views stay views, so that a kernel reads them as the mixer gives them.
    strided = torch.empty_strided(x.shape, x.stride(), dtype=dtype)
    return strided.copy_(x).detach()


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    value, expected = value.double(), expected.double()
    if expected.numel() == 0:
        return 0.0
    scale = expected.norm()
    return float((value - expected).norm() / (scale if scale > 0 else 1.0))


def assert_same(results: Tensors, expected: Tensors, dtype: torch.dtype) -> None:
    """Compare every entry under the tolerance table."""
    for name, value in results.items():
        error = relative_error(value, expected[name])
        assert error < TOLERANCES[dtype], f"{name}: relative error {error:.2e} in {dtype}"
