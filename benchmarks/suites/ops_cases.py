"""Cases of the suite ``ops``: inputs, contenders, bytes moved, agreement."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sb3_dmamba.ops import (
    MambaWeights,
    available_backends,
    causal_conv1d,
    mamba_step,
    selective_scan,
)

WIDTH, CHANNELS, STATES, TAPS, RANK = 128, 256, 16, 4, 8  # the defaults of a Hopper network

# What a result may differ from the reference's in float64, relative to its norm. Wider than the
# tests' by the length: gradients of parameters are sums over thousands of tokens.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

Tensors = dict[str, Tensor]


class Contender(NamedTuple):
    """An implementation; ``channels_first`` takes and returns sequences as (B, D, L)."""

    run: Callable[[Tensors], Tensor]
    channels_first: bool = False

    def take(self, inputs: Tensors, dtype: torch.dtype | None, backward: bool) -> Tensors:
        """Return the inputs as leaves in the contender's own layout."""
        turned = {
            name: x.mT.contiguous() if self.channels_first and x.ndim == 3 else x
            for name, x in inputs.items()
        }
        return {
            name: x.detach().to(dtype or x.dtype).requires_grad_(backward)
            for name, x in turned.items()
        }

    def give(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return results in the common layout."""
        return tuple(x.mT if self.channels_first and x.ndim == 3 else x for x in results)


class Case(NamedTuple):
    """One operation at one size, and the bytes that the best algorithm reads and writes."""

    title: str
    batch: int
    length: int
    inputs: Tensors
    contenders: dict[str, Contender]
    reference: Contender
    forward_bytes: int
    both_bytes: int  # 0: it has no backward pass


def scan_case(
    batch: int, length: int, dtype: torch.dtype, device: torch.device, low_rank: bool
) -> Case:
    """Make the scan's case; with ``low_rank`` the step sizes come as the mixer gives them."""
    make = _Maker(dtype, device)
    gates = make.normal(batch, length, 2 * CHANNELS)
    projected = make.normal(batch, length, RANK + 2 * STATES)
    inputs = {
        "u": make.normal(batch, length, CHANNELS),
        "delta": projected[..., :RANK] if low_rank else make.normal(batch, length, CHANNELS),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(CHANNELS, 1),
        "B": projected[..., RANK : RANK + STATES],
        "C": projected[..., RANK + STATES :],
        "D": torch.ones(CHANNELS, device=device),
        "z": gates[..., CHANNELS:],
        "delta_bias": torch.full((CHANNELS,), -4.0, device=device),
    }
    if low_rank:
        inputs["delta_weight"] = make.normal(CHANNELS, RANK).float() * RANK**-0.5

    def on(backend: str) -> Contender:
        return Contender(_call(selective_scan, delta_softplus=True, backend=backend))

    contenders = {name: on(name) for name in _backends(device, length)}
    if not low_rank and device.type == "cpu":
        contenders["mambapy"] = Contender(_mambapy_scan)
    if not low_rank and "cuda" in contenders:
        contenders["selective_scan_cuda alone"] = Contender(_mamba_ssm_scan, channels_first=True)
    rows = 2 * CHANNELS + (RANK if low_rank else CHANNELS) + 2 * STATES  # u, z, delta, B and C
    size = dtype.itemsize * batch * length
    title = "selective_scan" + (", steps of low rank" if low_rank else "")
    forward = size * (rows + CHANNELS)
    both = forward + size * (2 * rows + CHANNELS)
    return Case(title, batch, length, inputs, contenders, on("reference"), forward, both)


def convolution_case(batch: int, length: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Make the convolution's case, with bias and SiLU."""
    make = _Maker(dtype, device)
    inputs = {
        "x": make.normal(batch, length, 2 * CHANNELS)[..., :CHANNELS],
        "weight": make.normal(CHANNELS, TAPS).float(),
        "bias": make.normal(CHANNELS).float(),
    }

    def on(backend: str) -> Contender:
        return Contender(_call(causal_conv1d, activation="silu", backend=backend))

    contenders = {name: on(name) for name in _backends(device, 1)}
    size = dtype.itemsize * batch * length * CHANNELS
    title = "causal_conv1d"
    return Case(title, batch, length, inputs, contenders, on("reference"), 2 * size, 5 * size)


def step_case(batch: int, device: torch.device) -> Case:
    """Make the case of acting: three tokens in each of ``batch`` environments."""
    make = _Maker(torch.float32, device)

    def weight(*shape: int) -> Tensor:
        scaled: Tensor = make.normal(*shape) * shape[-1] ** -0.5
        return scaled

    weights = MambaWeights(
        in_proj=weight(2 * CHANNELS, WIDTH),
        conv1d=weight(CHANNELS, TAPS),
        conv1d_bias=make.normal(CHANNELS),
        x_proj=weight(RANK + 2 * STATES, CHANNELS),
        dt_proj=weight(CHANNELS, RANK),
        dt_bias=torch.full((CHANNELS,), -4.0, device=device),
        A=-torch.arange(1.0, STATES + 1, device=device).repeat(CHANNELS, 1),
        D=torch.ones(CHANNELS, device=device),
        out_proj=weight(WIDTH, CHANNELS),
    )
    inputs = {
        "tokens": make.normal(batch, 3, WIDTH),
        "convolution_state": make.normal(batch, TAPS - 1, CHANNELS),
        "scan_state": make.normal(batch, CHANNELS, STATES),
    }

    def on(backend: str) -> Contender:
        step = _call(mamba_step, weights=weights, backend=backend)
        return Contender(lambda tensors: step(tensors)[0])

    matrices = (weights.in_proj, weights.x_proj, weights.dt_proj, weights.out_proj, weights.A)
    size = sum(x.numel() for x in matrices) + 2 * sum(x.numel() for x in inputs.values())
    contenders = {name: on(name) for name in _backends(device, 1)}
    return Case("mamba_step", batch, 3, inputs, contenders, on("reference"), 4 * size, 0)


def disagreement(case: Case, contender: Contender) -> float:
    """Return the largest relative error of outputs and gradients, on two sequences of the case."""
    few = {name: x[:2] if x.ndim == 3 else x for name, x in case.inputs.items()}
    double = None if case.title == "mamba_step" else torch.float64  # its weights are in float32
    value = _outputs(contender, few, None, case.both_bytes > 0)
    expected = _outputs(case.reference, few, double, case.both_bytes > 0)
    errors = [
        float((x.double() - y).norm() / y.norm().clamp_min(1e-30))
        for x, y in zip(value, expected, strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def gradient_weight(y: Tensor) -> Tensor:
    """Return a gradient for an output: the same numbers at the same places in every dtype."""
    places = torch.arange(y.numel(), device=y.device, dtype=torch.float64)
    return torch.cos(places).view(y.shape).to(y.dtype)


def _outputs(
    contender: Contender, inputs: Tensors, dtype: torch.dtype | None, backward: bool
) -> tuple[Tensor, ...]:
    leaves = contender.take(inputs, dtype, backward)
    y = contender.run(leaves)
    if not backward:
        return contender.give((y.detach(),))
    weight = gradient_weight(y.mT if contender.channels_first else y)
    weight = weight.mT if contender.channels_first else weight
    gradients = torch.autograd.grad(y, list(leaves.values()), weight)
    return contender.give((y.detach(), *gradients))


class _Maker:
    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._options: Any = {"generator": generator, "dtype": dtype, "device": device}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, **self._options)


def _call(operation: Any, **options: Any) -> Callable[[Tensors], Any]:
    return lambda tensors: operation(**tensors, **options)


def _backends(device: torch.device, length: int) -> list[str]:
    """Return those that work; the reference's loop on a GPU only while it is short."""
    left_out = {"traceable"}
    if device.type == "cuda" and length > 100:
        left_out.add("reference")
    return [name for name in available_backends(device) if name not in left_out]


def _mambapy_scan(tensors: Tensors) -> Tensor:
    """Compute the scan as mambapy 1.2 does, on its parallel scan."""
    from mambapy.pscan import pscan

    u, delta, A, B, C, D, z, bias = tensors.values()
    step = functional.softplus(delta + bias)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), (step * u).unsqueeze(-1) * B.unsqueeze(2))
    y: Tensor = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y * functional.silu(z)


def _mamba_ssm_scan(tensors: Tensors) -> Tensor:
    """Call mamba-ssm's kernel on sequences that are (B, D, L) already: its best case."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(*tensors.values(), delta_softplus=True)
    return y
