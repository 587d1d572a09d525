"""The selective scan on NVIDIA GPUs, fused, in Triton: no compiler needed on the user's side.

Computes in float32 (float64 for float64 input), whatever the dtype of what it reads and writes.
This module divides the work among programs and sums their contributions. Both depend on sizes,
dtype and device alone: the same call gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops._shared import compute_dtype, make_differentiable, wants_gradient
from sb3_dmamba.ops.selective_scan import _triton_kernels

# Tokens that the forward pass unrolls, and the distance of the checkpoints it keeps for the
# backward pass: at N states N / TILE floats a token and channel.
TILE = 8
# Tokens whose states the backward pass holds in registers at once; divides TILE.
HISTORY = 4
# Most channels of a program, and floats of states in a thread: more do not fit its registers.
MAX_BLOCK_D = 32
STATES_A_THREAD = 16
MAX_WARPS = 8  # of a program: more have too few registers each
# A sequence is cut into segments, which costs the states a second pass, where there are fewer warps
# than this on a multiprocessor without, down to segments of MIN_SEGMENT tokens.
WARPS_A_MULTIPROCESSOR = 4
MIN_SEGMENT = 64


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_weight: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight, initial_state)
    if wants_gradient(tensors):
        return _scan(delta_softplus, return_final_state, *tensors)
    y, final, _ = _forward(delta_softplus, return_final_state, False, tensors)
    return y, final


def _forward(
    softplus: bool, return_final_state: bool, save: bool, inputs: Sequence[Any]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    y, final, checkpoints = _forward_operator(*inputs, softplus, return_final_state, save)
    return y, final if return_final_state else None, checkpoints


def _backward(
    softplus: bool,
    inputs: Sequence[Any],
    checkpoints: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...]
    gradients = _backward_operator(*inputs, checkpoints, grad_y, grad_final, softplus)
    return gradients


_scan = make_differentiable(_forward, _backward)


class _Inputs(NamedTuple):
    """The tensors that the operators take, in their order."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    weight: Tensor | None
    initial: Tensor | None

    def as_read(self) -> _Inputs:
        """Return them in the layouts that kernels read: copies where need be."""
        u, delta, A, B, C, D, z, bias, weight, initial = self
        u, delta, B, C = map(_triton.rows, (u, delta, B, C))
        D, bias, weight, initial = map(_triton.whole, (D, bias, weight, initial))
        z = None if z is None else _triton.rows(z)
        return _Inputs(u, delta, A.contiguous(), B, C, D, z, bias, weight, initial)


class _Plan(NamedTuple):
    """Division of the work among programs."""

    grid: tuple[int, int]  # blocks of channels of all sequences, segments
    warps: int
    parts: tuple[int, int]  # sequences, segments
    n_blocks: int  # blocks of channels
    sizes: tuple[int, ...]  # tokens, tokens of a segment, channels, states, rank, a stride of 1
    constants: dict[str, Any]  # compile-time constants of every kernel

    @classmethod
    def of(cls, inputs: _Inputs, softplus: bool) -> _Plan:
        """Plan by sizes, dtype and device alone."""
        (batch, length, channels), states = inputs.u.shape, inputs.A.shape[1]
        rank = 0 if inputs.weight is None else inputs.weight.shape[1]
        block_n = _triton.power_of_two(states)
        block_d = max(16, min(MAX_BLOCK_D, _triton.power_of_two(channels)))
        states_a_warp = 32 * STATES_A_THREAD
        block_d = min(block_d, max(1, MAX_WARPS * states_a_warp // block_n))
        warps = max(1, block_d * block_n // states_a_warp)
        n_blocks = -(-channels // block_d)
        n_multiprocessors = _triton.n_multiprocessors(inputs.u.device)
        segment, n_segments = _cut(length, batch * n_blocks * warps, n_multiprocessors)
        constants = {
            "BLOCK_D": block_d,
            "BLOCK_N": block_n,
            "BLOCK_R": _triton.power_of_two(rank),
            "SOFTPLUS": softplus,
            "DOUBLE": _triton.is_double(inputs.u),
        }
        sizes = (length, segment, channels, states, rank, 1)
        grid = (batch * n_blocks, n_segments)
        return cls(grid, warps, (batch, n_segments), n_blocks, sizes, constants)


def _cut(length: int, n_warps: int, n_multiprocessors: int) -> tuple[int, int]:
    """Return tokens of a segment and number of segments; a sequence is cut in three at least."""
    useful = WARPS_A_MULTIPROCESSOR * n_multiprocessors // max(n_warps, 1)
    n_segments = min(useful, length // MIN_SEGMENT)
    if n_segments < 3:
        return max(length, 1), 1
    segment = -(-length // (n_segments * TILE)) * TILE
    return segment, -(-length // segment)


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, final, checkpoints = _allocate_forward(*arguments)
    *given, softplus, return_final_state, save = arguments
    u, delta, A, B, C, D, z, bias, weight, initial = inputs = _Inputs(*given).as_read()
    plan = _Plan.of(inputs, softplus)

    def scan(*results: Tensor | None, states_only: bool) -> None:
        gate, start = (None, None) if states_only else (z, initial)
        _triton.launch(
            *(_triton_kernels.scan_forward, plan.grid, plan.warps),
            *(u, delta, weight, A, B, C, D, gate, bias, start, *results, *plan.sizes),
            *_triton.strides(u, delta, B, C, z),
            **plan.constants,
            TILE=TILE,
            STATES_ONLY=states_only,
        )

    starts = None
    if plan.parts[1] > 1:
        ends, sums, starts = _allocate_segments(plan, inputs)
        scan(None, None, ends, None, sums, states_only=True)
        _carry(plan, ends, sums, A, initial, starts, backwards=False)
    kept = final if return_final_state else None, checkpoints if save else None
    scan(starts, y, *kept, None, states_only=False)
    return y, final, checkpoints


def _allocate_segments(plan: _Plan, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate each segment's end from zero, the sum of its steps, and what it starts from."""
    u, shape = inputs.u, inputs.A.shape
    dtype = compute_dtype(u)
    ends, starts = (_triton.empty(*plan.parts, *shape, like=u, dtype=dtype) for _ in range(2))
    return ends, _triton.empty(*plan.parts, shape[0], like=u, dtype=dtype), starts


def _carry(
    plan: _Plan,
    ends: Tensor,
    sums: Tensor,
    A: Tensor,
    boundary: Tensor | None,
    starts: Tensor,
    backwards: bool,
) -> None:
    _triton.launch(
        *(_triton_kernels.carry_states, plan.grid[:1], plan.warps),
        *(ends, sums, A, boundary, starts, plan.parts[1], *A.shape),
        **{name: plan.constants[name] for name in ("BLOCK_D", "BLOCK_N", "DOUBLE")},
        REVERSED=backwards,
    )


def _allocate_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the results of :func:`_run_forward`; what is not asked for is empty."""
    u, _, A, *_, return_final_state, save = arguments
    (batch, length, _), shape, dtype = u.shape, A.shape, compute_dtype(u)
    y, final, checkpoints = _triton.empty(*u.shape, like=u), _triton.absent(u), _triton.absent(u)
    if return_final_state:
        final = _triton.empty(batch, *shape, like=u, dtype=dtype)
    if save:
        checkpoints = _triton.empty(batch, -(-length // TILE), *shape, like=u, dtype=dtype)
    return y, final, checkpoints


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, checkpoints, grad_y, grad_final, softplus = arguments
    u, delta, A, B, C, D, z, bias, weight, initial = inputs = _Inputs(*given).as_read()
    grad_y, grad_final = _triton.rows(grad_y), _triton.whole(grad_final)
    (batch, length, channels), states = u.shape, A.shape[1]
    plan = _Plan.of(inputs, softplus)
    carries = grad_final
    if plan.parts[1] > 1:
        carries = _carry_back(plan, inputs, grad_y, grad_final)

    def contributions(there: Tensor | None, *shape: int) -> Tensor | None:
        if there is None:
            return None
        return _triton.empty(*shape, like=u, dtype=compute_dtype(u))

    d_u, d_step = (_triton.empty(*u.shape, like=u) for _ in range(2))
    d_z = None if z is None else _triton.empty(*u.shape, like=z)
    d_B, d_C = (contributions(B, plan.n_blocks, batch, length, states) for _ in range(2))
    d_A = contributions(A, *plan.parts, channels, states)
    d_D, d_bias = (contributions(x, *plan.parts, channels) for x in (D, bias))
    d_initial = contributions(initial, batch, channels, states)
    _triton.launch(
        *(_triton_kernels.scan_backward, plan.grid, plan.warps),
        *(u, delta, weight, A, B, C, D, z, bias, checkpoints, grad_y, carries),
        *(d_u, d_step, d_z, d_B, d_C, d_A, d_D, d_bias, d_initial, batch, *plan.sizes),
        *_triton.strides(u, delta, B, C, z, grad_y),
        **plan.constants,
        HISTORY=HISTORY,
        SPACING=TILE,
    )

    d_delta, d_weight = (d_step, None) if weight is None else _project(d_step, delta, weight)
    d_B, d_C = (None if x is None else x.sum(0) for x in (d_B, d_C))
    d_A, d_D, d_bias = (None if x is None else x.sum((0, 1)) for x in (d_A, d_D, d_bias))
    gradients = (d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_bias, d_weight, d_initial)
    return tuple(
        _triton.absent(u) if x is None or gradient is None else gradient.to(x.dtype)
        for x, gradient in zip(given, gradients, strict=True)
    )


def _carry_back(plan: _Plan, inputs: _Inputs, grad_y: Tensor, grad_final: Tensor | None) -> Tensor:
    """Compute the gradient of each segment's last state from the segments after it."""
    ends, sums, carries = _allocate_segments(plan, inputs)
    _, delta, A, _, C, _, z, bias, weight, _ = inputs
    _triton.launch(
        *(_triton_kernels.scan_backward_ends, plan.grid, plan.warps),
        *(delta, weight, A, C, z, bias, grad_y, ends, sums, *plan.sizes),
        *_triton.strides(delta, C, z, grad_y),
        **plan.constants,
        TILE=TILE,
    )
    _carry(plan, ends, sums, A, grad_final, carries, backwards=True)
    return carries


def _project(d_step: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the steps' low-rank factors, in two products of matrices."""
    flat, low = d_step.flatten(0, 1), delta.flatten(0, 1).to(d_step.dtype)
    with _triton.without_autocast(flat):
        d_low = flat @ weight.to(flat.dtype)  # (B * L, R)
        d_weight = flat.t() @ low  # (D, R)
    return d_low.view(delta.shape), d_weight


def _allocate_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Allocate the results of :func:`_run_backward`; those of what is absent are empty."""
    return _triton.empty_gradients(*arguments[:10])


_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, "
    "Tensor? weight, Tensor? initial"
)
_forward_operator = _triton.define_operator(
    "selective_scan_forward",
    f"({_INPUTS}, bool softplus, bool final, bool save) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_backward_operator = _triton.define_operator(
    "selective_scan_backward",
    f"({_INPUTS}, Tensor checkpoints, Tensor grad_y, Tensor? grad_final, bool softplus)"
    f" -> ({', '.join(['Tensor'] * 10)})",
    _run_backward,
    _allocate_backward,
)
