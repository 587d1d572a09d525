"""A Mamba mixer's next few tokens, without gradients: one signature, several implementations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sb3_dmamba.ops._shared import check_tensors
from sb3_dmamba.ops.dispatch import get_implementation

__all__ = ["MambaWeights", "mamba_step"]


@dataclass(frozen=True, eq=False)
class MambaWeights:
    """The weights of a Mamba mixer, named and shaped as ``mamba_ssm.Mamba`` has them.

    Args:
        in_proj: Input projection, inputs above gates, shape (2D, H).
        conv1d: Taps of the convolution, oldest first, shape (D, W).
        conv1d_bias: Its bias, shape (D,), or None.
        x_proj: Projection to step size, B and C, shape (R + 2N, D).
        dt_proj: Projection of the step size, shape (D, R).
        dt_bias: Its bias, shape (D,).
        A: Rates, shape (D, N); negative where the state is to decay.
        D: Weight of the skip connection, shape (D,).
        out_proj: Output projection, shape (H, D).
        prepared: Packed copies of the weights that backends keep from call to call: make a new
            object when a weight has changed.
    """

    in_proj: Float[Tensor, "2D H"]
    conv1d: Float[Tensor, "D W"]
    conv1d_bias: Float[Tensor, " D"] | None
    x_proj: Float[Tensor, "R+2N D"]
    dt_proj: Float[Tensor, "D R"]
    dt_bias: Float[Tensor, " D"]
    A: Float[Tensor, "D N"]
    D: Float[Tensor, " D"]
    out_proj: Float[Tensor, "H D"]
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)


def mamba_step(
    tokens: Float[Tensor, "B L H"],
    weights: MambaWeights,
    convolution_state: Float[Tensor, "B W-1 D"],
    scan_state: Float[Tensor, "B D N"],
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B L H"], Float[Tensor, "B W-1 D"], Float[Tensor, "B D N"]]:
    """Mix the next tokens of each sequence, continuing from a state; for acting, not for training.

    The projections, :func:`~sb3_dmamba.ops.causal_conv1d` with SiLU and
    :func:`~sb3_dmamba.ops.selective_scan` with its gate, in one call: a policy that acts runs so
    few tokens that the calls would take longer than the arithmetic.

    Args:
        tokens: The block's normalised input, shape (B, L, H).
        weights: The mixer's weights.
        convolution_state: The last W - 1 inputs of the convolution, shape (B, W-1, D).
        scan_state: State of the scan, shape (B, D, N).
        backend: ``"auto"``, or the name of the implementation to use.

    Returns:
        The mixed tokens, shape (B, L, H), and the two states after them; the states given are left
        as they were.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit; names the argument.
        BackendError: The backend does not exist or does not work here.
    """
    (inner, taps), n_states = weights.conv1d.shape, weights.A.shape[1]
    width = weights.in_proj.shape[1]
    if tokens.ndim != 3 or tokens.shape[1] < 1 or tokens.shape[2] != width:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}, expected (B, L, {width}) with L at least 1"
        )
    batch = tokens.shape[0]
    check_tensors(
        tokens,
        ("tokens", tokens, tokens.shape, "(B, L, H)"),
        ("convolution_state", convolution_state, (batch, taps - 1, inner), "(B, W-1, D)"),
        ("scan_state", scan_state, (batch, inner, n_states), "(B, D, N)"),
    )
    implementation = get_implementation("mamba_step", backend, tokens.device.type)
    mixed: tuple[Tensor, Tensor, Tensor]
    mixed = implementation(tokens, weights, convolution_state, scan_state)
    return mixed
