"""The causal depthwise convolution of Mamba: one signature, several implementations."""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from sb3_dmamba.ops._shared import check_tensors
from sb3_dmamba.ops.dispatch import get_implementation

__all__ = ["causal_conv1d"]


@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    activation: Literal["silu"] | None = None, initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip


@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    activation: Literal["silu"] | None = None, initial_state: Tensor | None = None,
    return_final_state: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def causal_conv1d(
    x: Float[Tensor, "B L D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Float[Tensor, "B W-1 D"] | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own W taps, the last on the present token.

    ``y[t] = activation(bias + sum(weight[:, k] * x[t - W + 1 + k] for k in range(W)))``, with
    zeros, or ``initial_state``, before the first token. A sequence cut into chunks, each starting
    from the final state of the one before, gives what the whole gives.

    Args:
        x: Input, shape (B, L, D); may be a strided view.
        weight: Taps, oldest first, shape (D, W).
        bias: Added to the sum, shape (D,); None leaves it out.
        activation: ``"silu"`` or None.
        initial_state: The W - 1 inputs before the first token, oldest first, shape (B, W-1, D);
            None is zero.
        return_final_state: Whether to return the last W - 1 inputs too.
        backend: ``"auto"``, or the name of the implementation to use.

    Returns:
        ``y`` with the shape and dtype of ``x``; with ``return_final_state`` the pair of it and the
        final state, shape (B, W-1, D), in ``x``'s dtype. Both are differentiable.

    Raises:
        ValueError: Shapes, dtypes, devices or the activation do not fit; names the argument.
        BackendError: The backend does not exist or does not work here.
    """
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[1] < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, expected (B, L, D) "
            "and (D, W) with at least one tap"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"activation={activation!r}: give 'silu' or None")
    batch, _, channels = x.shape
    taps = weight.shape[1]
    check_tensors(
        x,
        ("x", x, x.shape, "(B, L, D)"),
        ("weight", weight, (channels, taps), "(D, W)"),
        ("bias", bias, (channels,), "(D,)"),
        ("initial_state", initial_state, (batch, taps - 1, channels), "(B, W-1, D)"),
    )
    implementation = get_implementation("causal_conv1d", backend, x.device.type)
    y, final_state = implementation(
        x, weight, bias, activation == "silu", initial_state, return_final_state
    )
    return (y, final_state) if return_final_state else y
