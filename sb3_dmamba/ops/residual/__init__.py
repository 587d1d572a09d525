"""What surrounds a mixer: a modulated norm before it; dropout, gate and residual after it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from sb3_dmamba.ops._shared import check_tensors, count_tokens
from sb3_dmamba.ops.dispatch import get_implementation

__all__ = ["add_residual", "modulated_norm"]


def modulated_norm(
    x: Float[Tensor, "B L D"],
    modulation: Float[Tensor, "B K _"],
    width: int,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B K _"]]:
    """Normalise each token, then scale and shift it by its step's factors and shifts.

    Args:
        x: Input, shape (B, L, D); may be a strided view.
        modulation: D factors, D shifts and any number of others, shape (B, K, 2D or more). A step
            has ``ceil(L / K)`` tokens, the last one perhaps fewer.
        width: D, which a trace keeps as a constant.
        eps: Added to the variance.
        backend: ``"auto"``, or the name of the implementation to use.

    Returns:
        ``shift + factor * (x - mean(x)) / sqrt(var(x) + eps)``, and the others of ``modulation``,
        whose gradient then needs no concatenation. Both are differentiable.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit; names the argument.
        BackendError: The backend does not exist or does not work here.
    """
    _check_steps(x, modulation, 2 * width)
    check_tensors(x, ("x", x, (*x.shape[:2], width), "(B, L, D)"),
                  ("modulation", modulation, modulation.shape, "(B, K, _)"))  # fmt: skip
    implementation = get_implementation("modulated_norm", backend, x.device.type, "residual")
    y, rest = implementation(x, modulation, width, eps)
    return y, rest


def add_residual(
    x: Float[Tensor, "B L D"],
    residual: Float[Tensor, "B L D"] | None = None,
    gate: Float[Tensor, "B K D"] | None = None,
    *,
    levels: Int16[Tensor, "B L D"] | None = None,
    n_dropped: int = 0,
    backend: str = "auto",
) -> Float[Tensor, "B L D"]:
    """Return ``residual + gate * dropout(x)``, differentiable.

    Args:
        x: Input, shape (B, L, D); may be a strided view, as residual and gate.
        residual: Shape (B, L, D); None adds nothing.
        gate: Shape (B, K, D), a row for the ``ceil(L / K)`` tokens of a step; None is ones.
        levels: A random int16 for each element, contiguous; None drops none.
        n_dropped: How many of the 65,536 levels, the lowest, are dropped: their elements become
            zero and the others are scaled up.
        backend: ``"auto"``, or the name of the implementation to use.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit; names the argument.
        BackendError: The backend does not exist or does not work here.
    """
    _check_steps(x, x if gate is None else gate, x.shape[-1])
    of_gate = (x.shape[0], 0 if gate is None else gate.shape[1], x.shape[2])
    check_tensors(x, ("x", x, x.shape, "(B, L, D)"), ("residual", residual, x.shape, "(B, L, D)"),
                  ("gate", gate, of_gate, "(B, K, D)"))  # fmt: skip
    if levels is not None and not (
        levels.shape == x.shape and levels.dtype is torch.int16 and levels.is_contiguous()
    ):
        raise ValueError(
            f"levels has shape {tuple(levels.shape)}, dtype {levels.dtype} and strides "
            f"{levels.stride()}, expected contiguous int16 of shape {tuple(x.shape)}"
        )
    implementation = get_implementation("add_residual", backend, x.device.type, "residual")
    y: Tensor = implementation(x, residual, gate, levels, n_dropped)
    return y


def _check_steps(x: Tensor, rows: Tensor, least: int) -> None:
    fits = x.ndim == rows.ndim == 3 and x.shape[0] == rows.shape[0] and rows.shape[2] >= least
    if fits and x.numel():
        length, n_steps = x.shape[1], rows.shape[1]
        fits = n_steps > 0 and count_tokens(length, count_tokens(length, n_steps)) == n_steps
    if not fits:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and the steps' rows {tuple(rows.shape)}, expected "
            f"(B, L, D) and (B, K, {least}) with K steps of ceil(L / K) tokens"
        )
