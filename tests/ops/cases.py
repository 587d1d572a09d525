"""Inputs, the comparison with the reference, and the one tolerance table of the operations.

A backend is named here with the device it runs on where that is not the CPU: ``"triton@cuda"``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import available_backends, causal_conv1d, resolve_backend, selective_scan

# Relative error (norm of the difference over the norm) against the reference in float64.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

Tensors = dict[str, Tensor]
Operation = Callable[..., tuple[Tensor, Tensor]]
Value = TypeVar("Value")

# Triton's kernels as Python runs them: right, and some thousand times slower. Tests give this one
# the smallest cases that still show what they are about.
INTERPRETED = "triton"
ON_CPU = [*available_backends("cpu"), INTERPRETED]
ON_GPU = ["triton@cuda", "reference@cuda"]
BACKENDS = [*ON_CPU, *ON_GPU]
FUSED = [name for name in BACKENDS if not name.startswith("reference")]
DRAWN = [name for name in ON_CPU if name != INTERPRETED]  # by Hypothesis: none of them skips


@functools.cache
def _why_not(name: str, device: str) -> str | None:
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device here"
    try:
        resolve_backend(name, device)
    except BackendError as error:
        return str(error)
    return None


def mark(backend: str, *values: object) -> Any:
    """Return a case of a test: skipped, or left to -m gpu, where its backend does not run."""
    marks: list[pytest.MarkDecorator] = []
    name, device = split(backend)
    if device == "cuda":
        marks.append(pytest.mark.gpu)
    reason = _why_not(name, device)
    if reason is not None:
        marks.append(pytest.mark.skip(reason=reason))
    if backend == INTERPRETED:  # NumPy warns of infinities that are meant
        meant = "(invalid value|overflow|divide by zero) encountered"
        marks.append(pytest.mark.filterwarnings(f"ignore:{meant}:RuntimeWarning"))
    return pytest.param(backend, *values, marks=marks, id="-".join(map(str, (backend, *values))))


def cases(
    backends: Iterable[str], values: Iterable[Value], interpreted: Iterable[Value]
) -> list[Any]:
    """Return every backend with every value, the interpreted one with its own."""
    values, interpreted = list(values), list(interpreted)
    return [
        mark(backend, value)
        for backend in backends
        for value in (interpreted if backend == INTERPRETED else values)
    ]


def small(backend: str, value: Value, interpreted: Value) -> Value:
    """Return the value, or the interpreted backend's own."""
    return interpreted if backend == INTERPRETED else value


def split(backend: str) -> tuple[str, str]:
    """Return the name that the operations know, and the device."""
    name, _, device = backend.partition("@")
    return name, device or "cpu"


def move(tensors: Tensors, device: str) -> Tensors:
    """Return the tensors on a device, differentiably."""
    return {name: x if x.device.type == device else x.to(device) for name, x in tensors.items()}


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
    return _run(selective_scan, tensors, backend, {"delta_softplus": True, **options})


def conv(tensors: Tensors, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Run the convolution with SiLU and final state."""
    return _run(causal_conv1d, tensors, backend, {"activation": "silu", **options})


def _run(
    operation: Any, tensors: Tensors, backend: str, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    name, device = split(backend)
    where = next(iter(tensors.values())).device
    moved = tensors if where.type == device else move(tensors, device)
    y, final = operation(**moved, return_final_state=True, backend=name, **options)
    return y.to(where), final.to(where)


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
    device = split(backend)[1]
    inputs = {
        name: _same_strides(x, dtype, device).requires_grad_(name in wanted)
        for name, x in tensors.items()
    }
    y, final = operation(inputs, backend, **options)
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(out.shape, generator=random).to(out) for out in (y, final)]
    loss = (y * weights[0]).double().sum() + (final * weights[1]).double().sum()
    loss.backward()
    results = {"y": y.detach().cpu(), "final": final.detach().cpu()}
    for name, x in inputs.items():
        if x.requires_grad:
            assert x.grad is not None, name
            assert x.grad.dtype == dtype
            results[f"d {name}"] = x.grad.cpu()
        else:
            assert x.grad is None, name
    return results


def _same_strides(x: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    # Views stay views, so that a kernel reads them as the mixer gives them.
    strided = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
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
