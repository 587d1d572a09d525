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
from sb3_dmamba.ops.selective_scan import (
    _triton_kernels as _triton_backward,
)
from sb3_dmamba.ops.selective_scan import (
    _triton_kernels as _triton_forward,
)

# Tokens that the forward pass unrolls, and the distance of the checkpoints it keeps for the
# backward pass: at N states N / TILE floats a token and channel.
TILE = 8
# Tokens whose states the backward pass holds in registers at once; divides TILE.
HISTORY = 4
# Channels of a program, at most, and floats of a state that one thread holds: more of these do not
# fit beside the rest of what it holds.
MAX_BLOCK_D = 32
STATES_A_THREAD = 16
MAX_WARPS = 8  # of a program: more have too few registers each
# A sequence is cut into segments, which costs the states a second pass, where there are fewer warps
# than this on a multiprocessor without, down to segments of MIN_SEGMENT tokens.
WARPS_A_MULTIPROCESSOR = 4
MIN_SEGMENT = 64


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
    """How the work is cut up."""

    grid: tuple[int, int]  # blocks of channels of all sequences, segments
    warps: int
    parts: tuple[int, int]  # sequences, segments
    n_blocks: int  # blocks of channels
    sizes: tuple[int, ...]  # tokens, tokens of a segment, channels, states, rank, a stride of 1
    constants: dict[str, Any]  # what every kernel wants to know at compile time

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
    room = WARPS_A_MULTIPROCESSOR * n_multiprocessors // max(n_warps, 1)
    n_segments = min(room, length // MIN_SEGMENT)
    if n_segments < 3:
        return max(length, 1), 1
    segment = -(-length // (n_segments * TILE)) * TILE
    return segment, -(-length // segment)


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


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, final, checkpoints = _shape_forward(*arguments)
    inputs, (softplus, return_final_state, save) = (
        _Inputs(*arguments[:10]).as_read(),
        arguments[10:],
    )
    u, delta, A, B, C, D, z, bias, weight, initial = inputs
    plan = _Plan.of(inputs, softplus)

    def scan(*results: Tensor | None, states_only: bool) -> None:
        gate, start = (None, None) if states_only else (z, initial)
        _triton.launch(
            *(_triton_forward.scan_forward, plan.grid, plan.warps),
            *(u, delta, weight, A, B, C, D, gate, bias, start, *results, *plan.sizes),
            *(x for tensor in (u, delta, B, C, z) for x in _triton.strides(tensor)),
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
    dtype = _triton.compute_dtype(u)
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
        *(_triton_forward.carry_states, plan.grid[:1], plan.warps),
        *(ends, sums, A, boundary, starts, plan.parts[1], *A.shape),
        **{name: plan.constants[name] for name in ("BLOCK_D", "BLOCK_N", "DOUBLE")},
        REVERSED=backwards,
    )


def _shape_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the results of :func:`_run_forward`; what is not asked for is empty."""
    inputs, (_, return_final_state, save) = _Inputs(*arguments[:10]), arguments[10:]
    u, shape = inputs.u, inputs.A.shape
    batch, length, _ = u.shape
    dtype = _triton.compute_dtype(u)
    y, final, checkpoints = _triton.empty(*u.shape, like=u), _triton.absent(u), _triton.absent(u)
    if return_final_state:
        final = _triton.empty(batch, *shape, like=u, dtype=dtype)
    if save:
        checkpoints = _triton.empty(batch, -(-length // TILE), *shape, like=u, dtype=dtype)
    return y, final, checkpoints


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    given, (checkpoints, grad_y, grad_final, softplus) = _Inputs(*arguments[:10]), arguments[10:]
    inputs, grad_y, grad_final = given.as_read(), _triton.rows(grad_y), _triton.whole(grad_final)
    u, delta, A, B, C, D, z, bias, weight, initial = inputs
    (batch, length, channels), states = u.shape, A.shape[1]
    plan = _Plan.of(inputs, softplus)
    carries = grad_final
    if plan.parts[1] > 1:
        carries = _carry_back(plan, inputs, grad_y, grad_final)

    def contributions(there: Tensor | None, *shape: int) -> Tensor | None:
        if there is None:
            return None
        return _triton.empty(*shape, like=u, dtype=_triton.compute_dtype(u))

    d_u, d_step = (_triton.empty(*u.shape, like=u) for _ in range(2))
    d_z = None if z is None else _triton.empty(*u.shape, like=z)
    d_B, d_C = (contributions(B, plan.n_blocks, batch, length, states) for _ in range(2))
    d_A = contributions(A, *plan.parts, channels, states)
    d_D, d_bias = (contributions(x, *plan.parts, channels) for x in (D, bias))
    d_initial = contributions(initial, batch, channels, states)
    _triton.launch(
        *(_triton_backward.scan_backward, plan.grid, plan.warps),
        *(u, delta, weight, A, B, C, D, z, bias, checkpoints, grad_y, carries),
        *(d_u, d_step, d_z, d_B, d_C, d_A, d_D, d_bias, d_initial, batch, *plan.sizes),
        *(x for tensor in (u, delta, B, C, z, grad_y) for x in _triton.strides(tensor)),
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
    """Compute the gradient that comes into each segment's last state from behind it."""
    ends, sums, carries = _allocate_segments(plan, inputs)
    _, delta, A, _, C, _, z, bias, weight, _ = inputs
    _triton.launch(
        *(_triton_backward.scan_backward_ends, plan.grid, plan.warps),
        *(delta, weight, A, C, z, bias, grad_y, ends, sums, *plan.sizes),
        *(x for tensor in (delta, C, z, grad_y) for x in _triton.strides(tensor)),
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


def _shape_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Allocate the results of :func:`_run_backward`; those of what is absent are empty."""
    inputs = _Inputs(*arguments[:10])
    return tuple(
        _triton.absent(inputs.u) if x is None else _triton.empty(*x.shape, like=x) for x in inputs
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
