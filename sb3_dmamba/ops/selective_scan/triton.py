"""The selective scan on NVIDIA GPUs, fused, in Triton: no compiler needed on the user's side.

Computes in float32 (float64 for float64 input), whatever the dtype of what it reads and writes.
What the kernels do is in their own modules; this one chooses how the work is cut up, and sums what
several programs have contributed to. Cuts depend on sizes, dtype and device alone, and sums on
nothing else: the same call gives the same bits every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_dmamba.ops import _triton
from sb3_dmamba.ops.selective_scan import _triton_backward, _triton_forward

# Tokens that the forward pass unrolls, and the distance of the checkpoints it keeps for the
# backward pass: at N states N / TILE floats a token and channel.
TILE = 8
# Tokens whose states the backward pass holds in registers at once; divides TILE.
HISTORY = 4
# Floats of a state that one thread holds. More do not fit beside the rest of what it holds.
STATES_A_THREAD = 16
# A sequence is cut into segments, which costs the states a second pass, where there are fewer warps
# than this on a multiprocessor without, down to segments of MIN_SEGMENT tokens.
WARPS_A_MULTIPROCESSOR = 4
MIN_SEGMENT = 64


class _Plan(NamedTuple):
    """How the work is cut up."""

    block_d: int  # channels of a program
    block_n: int  # its states, the padding included
    block_r: int  # the rank, likewise
    warps: int
    programs: int  # blocks of channels of all sequences
    n_blocks: int  # blocks of channels
    segment: int  # tokens of a segment, a multiple of TILE
    n_segments: int


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight, initial_state)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        y, final = _SelectiveScan.apply(delta_softplus, return_final_state, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final, _ = _forward(*tensors, delta_softplus, return_final_state, False)
    return y, final if return_final_state else None


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, softplus: bool, return_final_state: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, final, checkpoints = _forward(*inputs, softplus, return_final_state, True)
        ctx.save_for_backward(*inputs, checkpoints)
        ctx.softplus = softplus
        ctx.set_materialize_grads(False)
        return y, final if return_final_state else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Any, ...]:
        if grad_y is None and grad_final is None:
            return (None,) * 12
        *inputs, checkpoints = ctx.saved_tensors
        grad_y = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
        gradients = _backward(*inputs, checkpoints, grad_y, grad_final, ctx.softplus)
        named = [None if x is None else y for x, y in zip(inputs, gradients, strict=True)]
        return None, None, *_triton.wanted(named, ctx.needs_input_grad[2:])


def _make_plan(u: Tensor, n_states: int, rank: int) -> _Plan:
    batch, length, channels = u.shape
    block_n = _triton.power_of_two(n_states)
    block_d = max(16, min(32, _triton.power_of_two(channels)))
    warps = max(1, block_d * block_n // (32 * STATES_A_THREAD))
    n_blocks = -(-channels // block_d)
    programs = batch * n_blocks
    segment, n_segments = _cut(length, programs * warps, _triton.n_multiprocessors(u.device))
    block_r = _triton.power_of_two(rank)
    return _Plan(block_d, block_n, block_r, warps, programs, n_blocks, segment, n_segments)


def _cut(length: int, n_warps: int, n_multiprocessors: int) -> tuple[int, int]:
    """Return tokens of a segment and number of segments; a sequence is cut in three at least."""
    room = WARPS_A_MULTIPROCESSOR * n_multiprocessors // max(n_warps, 1)
    n_segments = min(room, length // MIN_SEGMENT)
    if n_segments < 3:
        return max(length, 1), 1
    segment = -(-length // (n_segments * TILE)) * TILE
    return segment, -(-length // segment)


def _constants(plan: _Plan, u: Tensor, softplus: bool) -> dict[str, Any]:
    return {
        "BLOCK_D": plan.block_d,
        "BLOCK_N": plan.block_n,
        "BLOCK_R": plan.block_r,
        "SOFTPLUS": softplus,
        "DOUBLE": _triton.is_double(u),
    }


def _run_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    weight: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    return_final_state: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    u, delta, B, C = map(_triton.rows, (u, delta, B, C))
    z = None if z is None else _triton.rows(z)
    A = A.contiguous()
    D, bias, weight, initial = map(_triton.whole, (D, bias, weight, initial))
    (batch, length, channels), states = u.shape, A.shape[1]
    rank = 0 if weight is None else weight.shape[1]
    dtype = _triton.compute_dtype(u)
    plan = _make_plan(u, states, rank)
    grid = (plan.programs, plan.n_segments)
    constants = {**_constants(plan, u, softplus), "TILE": TILE}
    parts = (batch, plan.n_segments)

    def scan(starts: Tensor | None, *results: Tensor | None, states_only: bool) -> None:
        _triton.launch(
            *(_triton_forward.scan_forward, grid, plan.warps),
            *(u, delta, weight, A, B, C, D, None if states_only else z, bias),
            *(None if states_only else initial, starts),
            *(*results, length, plan.segment, channels, states, rank, 1),
            *(*_triton.strides(u), *_triton.strides(delta), *_triton.strides(B)),
            *(*_triton.strides(C), *_triton.strides(z)),
            **constants,
            STATES_ONLY=states_only,
        )

    y, final, checkpoints = _shape_forward(
        *(u, delta, A, B, C, D, z, bias, weight, initial, softplus, return_final_state, save)
    )
    starts = None
    if plan.n_segments > 1:
        ends, starts = (_triton.empty(*parts, *A.shape, like=A, dtype=dtype) for _ in range(2))
        sums = _triton.empty(*parts, channels, like=A, dtype=dtype)
        scan(None, None, ends, None, sums, states_only=True)
        _carry(plan, ends, sums, A, initial, starts, reverse=False)
    kept = final if return_final_state else None, checkpoints if save else None
    scan(starts, y, *kept, None, states_only=False)
    return y, final, checkpoints


def _carry(
    plan: _Plan,
    ends: Tensor,
    sums: Tensor,
    A: Tensor,
    boundary: Tensor | None,
    starts: Tensor,
    reverse: bool,
) -> None:
    _triton.launch(
        *(_triton_forward.carry_states, (plan.programs,), plan.warps),
        *(ends, sums, A, boundary, starts, plan.n_segments, *A.shape),
        BLOCK_D=plan.block_d,
        BLOCK_N=plan.block_n,
        REVERSED=reverse,
        DOUBLE=_triton.is_double(ends),
    )


def _shape_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    weight: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    return_final_state: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the results of :func:`_run_forward`; what is not asked for is empty."""
    (batch, length, channels), states = u.shape, A.shape[1]
    dtype = _triton.compute_dtype(u)
    y = _triton.empty(batch, length, channels, like=u)
    final, checkpoints = _triton.absent(A), _triton.absent(A)
    if return_final_state:
        final = _triton.empty(batch, channels, states, like=u, dtype=dtype)
    if save:
        n_tiles = -(-length // TILE)
        checkpoints = _triton.empty(batch, n_tiles, channels, states, like=u, dtype=dtype)
    return y, final, checkpoints


def _run_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    weight: Tensor | None,
    initial: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, ...]:
    dtypes = [x if x is None else x.dtype for x in (u, delta, A, B, C, D, z, bias, weight, initial)]
    u, delta, B, C, grad_y = map(_triton.rows, (u, delta, B, C, grad_y))
    z = None if z is None else _triton.rows(z)
    A = A.contiguous()
    D, bias, weight, grad_final = map(_triton.whole, (D, bias, weight, grad_final))
    (batch, length, channels), states = u.shape, A.shape[1]
    rank = 0 if weight is None else weight.shape[1]
    dtype = _triton.compute_dtype(u)
    plan = _make_plan(u, states, rank)
    grid = (plan.programs, plan.n_segments)
    constants = _constants(plan, u, softplus)
    parts = (batch, plan.n_segments)

    carries = grad_final if plan.n_segments == 1 else None
    if plan.n_segments > 1:
        ends, carries = (_triton.empty(*parts, *A.shape, like=A, dtype=dtype) for _ in range(2))
        sums = _triton.empty(*parts, channels, like=A, dtype=dtype)
        _triton.launch(
            *(_triton_backward.scan_backward_ends, grid, plan.warps),
            *(delta, weight, A, C, z, bias, grad_y, ends, sums),
            *(length, plan.segment, channels, states, rank, 1),
            *(*_triton.strides(delta), *_triton.strides(C), *_triton.strides(z)),
            *_triton.strides(grad_y),
            **constants,
            TILE=TILE,
        )
        _carry(plan, ends, sums, A, grad_final, carries, reverse=True)

    d_u, d_step = (_triton.empty(batch, length, channels, like=u) for _ in range(2))
    d_z = None if z is None else _triton.empty(*z.shape, like=z)
    d_B, d_C = (
        _triton.empty(plan.n_blocks, batch, length, states, like=u, dtype=dtype) for _ in range(2)
    )
    d_A = _triton.empty(*parts, channels, states, like=u, dtype=dtype)
    d_D, d_bias = (
        None if x is None else _triton.empty(*parts, channels, like=u, dtype=dtype)
        for x in (D, bias)
    )
    d_initial = None
    if initial is not None:
        d_initial = _triton.empty(batch, channels, states, like=u, dtype=dtype)
    _triton.launch(
        *(_triton_backward.scan_backward, grid, plan.warps),
        *(u, delta, weight, A, B, C, D, z, bias, checkpoints, grad_y, carries),
        *(d_u, d_step, d_z, d_B, d_C, d_A, d_D, d_bias, d_initial),
        *(batch, length, plan.segment, channels, states, rank, 1),
        *(*_triton.strides(u), *_triton.strides(delta), *_triton.strides(B)),
        *(*_triton.strides(C), *_triton.strides(z), *_triton.strides(grad_y)),
        **constants,
        HISTORY=HISTORY,
        SPACING=TILE,
    )

    d_delta, d_weight = d_step, None
    if weight is not None:
        d_delta, d_weight = _project_back(d_step, delta, weight)
    gradients = (
        *(d_u, d_delta, d_A.sum((0, 1)), d_B.sum(0), d_C.sum(0)),
        *(x if x is None else x.sum((0, 1)) for x in (d_D,)),
        *(d_z, None if d_bias is None else d_bias.sum((0, 1)), d_weight, d_initial),
    )
    return tuple(
        _triton.absent(u) if x is None else x.to(kind)
        for x, kind in zip(gradients, dtypes, strict=True)
    )


def _project_back(d_step: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the steps' low-rank factors, in two products of matrices."""
    flat, low = d_step.flatten(0, 1), delta.flatten(0, 1).to(d_step.dtype)
    with _triton.without_autocast(flat):
        d_low = flat @ weight.to(flat.dtype)  # (B * L, R)
        d_weight = flat.t() @ low  # (D, R)
    return d_low.view(delta.shape), d_weight


def _shape_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    weight: Tensor | None,
    initial: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """Allocate the results of :func:`_run_backward`; those of what is absent are empty."""
    inputs = (u, delta, A, B, C, D, z, bias, weight, initial)
    return tuple(
        _triton.absent(u) if x is None else _triton.empty(*x.shape, like=x) for x in inputs
    )


_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, "
    "Tensor? weight, Tensor? initial"
)
_forward = _triton.define_operator(
    "selective_scan_forward",
    f"({_INPUTS}, bool softplus, bool final, bool save) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _shape_forward,
)
_backward = _triton.define_operator(
    "selective_scan_backward",
    f"({_INPUTS}, Tensor checkpoints, Tensor grad_y, Tensor? grad_final, bool softplus)"
    f" -> ({', '.join(['Tensor'] * 10)})",
    _run_backward,
    _shape_backward,
)
