"""Which backends of the operations work here, each run and compared with the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sb3_dmamba.ops import available_backends, causal_conv1d, explain_backends, selective_scan

__all__ = ["Backend", "check_backends"]

_TOLERANCE = 1e-4  # of sums of a few dozen numbers of size one, in float32
_BATCH, _STEPS, _CHANNELS, _STATES, _TAPS = 2, 33, 16, 8, 4
_REFERENCE = "reference"


@dataclass(frozen=True)
class Backend:
    """A backend on a kind of device.

    Args:
        name: Its name.
        device: ``"cpu"`` or ``"cuda"``.
        is_auto: Whether ``backend="auto"`` means it there.
        reason: Why it does not work there, and what to do; None where it works.
        max_error: How far its results were from the reference's; None where it did not run.
        is_broken: Whether it says that it works, and does not compute what the reference does.
    """

    name: str
    device: str
    is_auto: bool
    reason: str | None
    max_error: float | None
    is_broken: bool = False


def check_backends(device: str) -> list[Backend]:
    """Run every backend that works on a kind of device, forward and backward, on small input.

    Args:
        device: ``"cpu"`` or ``"cuda"``; there need not be one.

    Returns:
        All backends, the fastest first.
    """
    reasons = explain_backends(device)
    auto = available_backends(device)[0] if None in reasons.values() else None
    found = []
    for name, reason in reasons.items():
        error, is_broken = None, False
        if reason is None:
            try:
                error = _compare(name, device)
                is_broken = not error <= _TOLERANCE
                if is_broken:
                    reason = f"its results are off by {error:.1e}: use another backend, and report"
            except Exception as failure:  # a kernel may fail in any way; the others still count
                lines = str(failure).strip().splitlines() or [""]
                reason = f"it fails ({type(failure).__name__}: {lines[0]}): use another backend"
                is_broken = True
        found.append(Backend(name, device, name == auto, reason, error, is_broken))
    return found


def _compare(name: str, device: str) -> float:
    ours, theirs = _run(name, device), _run(_REFERENCE, device)
    differences = [(a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]
    return float(max(differences, key=lambda value: (value != value, value)))  # NaN is the worst


def _run(name: str, device: str) -> list[torch.Tensor]:
    """Return an output and a gradient of each operation."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u = draw(_BATCH, _STEPS, _CHANNELS).requires_grad_()
    weight = draw(_CHANNELS, _TAPS).requires_grad_()
    convolved = causal_conv1d(u, weight, activation="silu", backend=name)
    step = torch.nn.functional.softplus(draw(_BATCH, _STEPS, _CHANNELS))
    rates = -torch.exp(draw(_CHANNELS, _STATES))
    ins, outs = draw(_BATCH, _STEPS, _STATES), draw(_BATCH, _STEPS, _STATES)
    scanned = selective_scan(convolved, step, rates, ins, outs, backend=name)
    gradients = torch.autograd.grad(scanned.square().mean(), (u, weight))
    return [convolved.detach(), scanned.detach(), *gradients]
