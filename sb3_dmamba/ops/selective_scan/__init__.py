"""The selective scan, Mamba's recurrence: one signature, several implementations."""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from sb3_dmamba.ops._shared import check_tensors
from sb3_dmamba.ops.dispatch import get_implementation

__all__ = ["selective_scan"]


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *,
    delta_weight: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, return_final_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...  # fmt: skip


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *,
    delta_weight: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, return_final_state: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def selective_scan(
    u: Float[Tensor, "B L D"],
    delta: Float[Tensor, "B L D"] | Float[Tensor, "B L R"],
    A: Float[Tensor, "D N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " D"] | None = None,
    z: Float[Tensor, "B L D"] | None = None,
    delta_bias: Float[Tensor, " D"] | None = None,
    *,
    delta_weight: Float[Tensor, "D R"] | None = None,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "B D N"] | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run Mamba's recurrence along a sequence.

    With ``s = softplus(delta + delta_bias)`` (softplus if asked for), each channel has N states::

        h[t] = exp(s[t] * A) * h[t - 1] + s[t] * B[t] * u[t]
        y[t] = (sum(C[t] * h[t]) + D * u[t]) * silu(z[t])

    A sequence cut into chunks, each starting from the final state of the one before, gives what
    the whole gives. Everything is computed in float32 at least.

    Args:
        u: Input, shape (B, L, D). This and every other sequence may be a strided view.
        delta: Step sizes before bias and softplus, shape (B, L, D), or (B, L, R)
            of rank R: see ``delta_weight``.
        A: Rates, shape (D, N); negative where the state is to decay.
        B: Weights of the input, shape (B, L, N).
        C: Weights of the states, shape (B, L, N).
        D: Weight of the skip connection, shape (D,); None leaves it out.
        z: Gate before SiLU, shape (B, L, D); None leaves it out.
        delta_bias: Added to ``delta``, shape (D,).
        delta_weight: Shape (D, R); ``delta @ delta_weight.T`` then takes the place of ``delta``,
            and is never in memory as a whole.
        delta_softplus: Whether ``delta + delta_bias`` goes through softplus.
        initial_state: State before the first token, shape (B, D, N); None is zero.
        return_final_state: Whether to return the state after the last token too.
        backend: ``"auto"``, or the name of the implementation to use.

    Returns:
        ``y`` with the shape and dtype of ``u``; with ``return_final_state`` the pair of it and the
        final state, shape (B, D, N), float32 (float64 where ``u`` is). Both are differentiable.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit; names the argument.
        BackendError: The backend does not exist or does not work here.

    Source: Gu and Dao 2023 (arXiv:2312.00752), algorithm 2; layout of a Linear's output, (B, L, D).
    """
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(
            f"u has shape {tuple(u.shape)} and A {tuple(A.shape)}, expected (B, L, D) and (D, N)"
        )
    batch, length, channels = shape = u.shape
    states = A.shape[1]
    rank: tuple[int, ...] = ()
    delta_shape, delta_letters = tuple(shape), "(B, L, D)"
    if delta_weight is not None:
        rank = tuple(delta_weight.shape[-1:])
        delta_shape, delta_letters = (batch, length, *rank), "(B, L, R)"
    check_tensors(
        u,
        ("u", u, shape, "(B, L, D)"),
        ("delta_weight", delta_weight, (channels, *rank), "(D, R)"),
        ("delta", delta, delta_shape, delta_letters),
        ("A", A, (channels, states), "(D, N)"),
        ("B", B, (batch, length, states), "(B, L, N)"),
        ("C", C, (batch, length, states), "(B, L, N)"),
        ("D", D, (channels,), "(D,)"),
        ("z", z, shape, "(B, L, D)"),
        ("delta_bias", delta_bias, (channels,), "(D,)"),
        ("initial_state", initial_state, (batch, channels, states), "(B, D, N)"),
    )
    implementation = get_implementation("selective_scan", backend, u.device.type)
    y, final_state = implementation(
        *(u, delta, A, B, C, D, z, delta_bias, delta_weight, delta_softplus),
        *(initial_state, return_final_state),
    )
    return (y, final_state) if return_final_state else y
