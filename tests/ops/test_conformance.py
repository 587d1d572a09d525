"""The conformance suite: every backend's scan and convolution against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cases import (
    BACKENDS,
    DRAWN,
    FUSED,
    INTERPRETED,
    TOLERANCES,
    Operation,
    Tensors,
    assert_same,
    cases,
    conv,
    conv_inputs,
    evaluate,
    relative_error,
    scan,
    scan_inputs,
    small,
    split,
)


class Suite(NamedTuple):
    run: Operation
    make: Callable[..., Tensors]  # of batch, length, channels, and states or taps
    sequences: tuple[str, ...]


SEQUENCES = ("u", "delta", "B", "C", "z")
OPERATIONS = {
    "scan": Suite(scan, scan_inputs, SEQUENCES),
    "low_rank_scan": Suite(scan, partial(scan_inputs, rank=3), SEQUENCES),
    "conv": Suite(conv, conv_inputs, ("x",)),
}
INTERPRETED_OPERATIONS = ["low_rank_scan", "conv"]
EVERY_ONE = pytest.mark.parametrize(
    ("backend", "operation"), cases(BACKENDS, OPERATIONS, INTERPRETED_OPERATIONS)
)
EVERY_FUSED_ONE = pytest.mark.parametrize(
    ("backend", "operation"), cases(FUSED, OPERATIONS, INTERPRETED_OPERATIONS)
)

Shape = tuple[int, ...]  # batch, length, channels, states or taps, and the rank of steps if any
SHAPES: list[tuple[str, Shape]] = [
    *(("scan", shape) for shape in [(1, 1, 1, 1), (2, 5, 3, 2), (3, 37, 40, 5), (2, 64, 17, 1)]),
    *(("scan", shape) for shape in [(1, 3, 256, 16), (5, 33, 16, 16), (2, 97, 32, 4)]),
    *(("scan", shape) for shape in [(40, 2, 20, 3), (1, 1, 1, 1, 1), (2, 5, 3, 2, 2)]),
    *(("scan", shape) for shape in [(3, 37, 40, 5, 3), (2, 64, 17, 1, 1), (1, 3, 256, 16, 8)]),
    *(("scan", shape) for shape in [(5, 33, 16, 16, 8), (2, 97, 32, 4, 3), (40, 2, 20, 3, 5)]),
    *(("conv", shape) for shape in [(1, 1, 1, 1), (2, 5, 3, 4), (1, 2, 256, 4), (3, 37, 40, 3)]),
    *(("conv", shape) for shape in [(2, 9, 17, 2), (40, 2, 20, 4)]),
]
IN_EVERY_DTYPE = [SHAPES[k] for k in (2, 10, 17, 19)]
INTERPRETED_SHAPES: list[tuple[str, Shape]] = [
    *(("scan", shape) for shape in [(1, 1, 1, 1), (1, 6, 17, 16), (1, 3, 40, 5, 3), (1, 2, 2, 40)]),
    *(("conv", shape) for shape in [(1, 1, 1, 1), (1, 19, 70, 3)]),
]
SMALL = [("scan", (2, 5, 3, 2, 2)), ("conv", (2, 5, 3, 4))]


@pytest.mark.parametrize(("backend", "case"), cases(FUSED, SHAPES, [*INTERPRETED_SHAPES, *SMALL]))
def test_against_reference(backend: str, case: tuple[str, Shape]) -> None:
    run, make, _ = OPERATIONS[case[0]]
    # Every shape in float32 and in one more dtype, which differs from shape to shape.
    dtypes = [torch.float32]
    if case in SHAPES and backend != INTERPRETED:
        dtypes.append([*TOLERANCES][SHAPES.index(case) % 4])
    if case in (SMALL if backend == INTERPRETED else IN_EVERY_DTYPE):
        dtypes = [*TOLERANCES]
    for dtype in dict.fromkeys(dtypes):
        # Rounded first: the reference sees the same numbers, in float64.
        tensors = {name: x.to(dtype).float() for name, x in make(*case[1]).items()}
        expected = evaluate(run, tensors, "reference", torch.float64)
        assert_same(evaluate(run, tensors, backend, dtype), expected, dtype)


@EVERY_ONE
def test_gradcheck(backend: str, operation: str) -> None:
    run, make, _ = OPERATIONS[operation]
    tensors = make(small(backend, 2, 1), small(backend, 4, 3), 3, 2)
    values = [x.double().detach().requires_grad_() for x in tensors.values()]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return run(dict(zip(tensors, values, strict=True)), backend)

    # All entries of every Jacobian, or one random projection of it where that would take minutes.
    assert torch.autograd.gradcheck(function, values, fast_mode=backend not in DRAWN)


ABSENT: list[tuple[str, str, dict[str, Any]]] = [
    ("scan", "D", {"delta_softplus": True}),
    ("scan", "z", {"delta_softplus": False}),
    ("scan", "delta_bias", {"delta_softplus": False}),
    ("scan", "delta_bias", {"delta_softplus": True}),
    ("scan", "initial_state", {"delta_softplus": False}),
    ("scan", "D z initial_state", {"delta_softplus": True}),
    ("conv", "", {"activation": None}),
    ("conv", "bias", {"activation": None}),
    ("conv", "initial_state", {"activation": "silu"}),
    ("conv", "bias initial_state", {"activation": "silu"}),
]


@pytest.mark.parametrize(("backend", "case"), cases(FUSED, ABSENT, ABSENT))
def test_absent_arguments(backend: str, case: tuple[str, str, dict[str, Any]]) -> None:
    operation, absent, options = case
    run, make, _ = OPERATIONS[operation]
    tensors = make(small(backend, 2, 1), small(backend, 35, 3), 19, 3)
    if not options.get("delta_softplus", True):  # step sizes are positive
        tensors |= {k: tensors[k].abs() for k in ("delta", "delta_bias")}
    for name in absent.split():
        del tensors[name]
    expected = evaluate(run, tensors, "reference", torch.float64, **options)
    assert_same(evaluate(run, tensors, backend, torch.float32, **options), expected, torch.float32)


@EVERY_ONE
def test_gradient_of_one_input(backend: str, operation: str) -> None:
    run, make, _ = OPERATIONS[operation]
    tensors = make(small(backend, 2, 1), small(backend, 6, 2), 5, 3)
    names = small(backend, [*tensors], [k for k in tensors if k not in ("delta", "A", "B", "z")])
    for name in names:
        expected = evaluate(run, tensors, "reference", torch.float64, {name})
        results = evaluate(run, tensors, backend, torch.float32, {name})
        assert_same(results, expected, torch.float32)


@EVERY_FUSED_ONE
def test_gradient_of_one_output(backend: str, operation: str) -> None:
    run, make, _ = OPERATIONS[operation]
    tensors = make(small(backend, 2, 1), small(backend, 6, 3), 5, 3)
    for output in (0, 1):
        gradients = []
        for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
            leaves = [x.to(dtype).requires_grad_() for x in tensors.values()]
            out = run(dict(zip(tensors, leaves, strict=True)), name)[output]
            # sum() gives the gradient a stride of zero.
            gradients.append(torch.autograd.grad(out.sum(), leaves, allow_unused=True))
        for name, wanted, value in zip(tensors, *gradients, strict=True):
            if wanted is not None:
                assert relative_error(value, wanted) < TOLERANCES[torch.float32], name


def in_chunks(
    tensors: Tensors, backend: str, suite: Suite, cuts: list[int]
) -> tuple[Tensor, Tensor]:
    """Run piece by piece, each from the state that the one before left."""
    state, pieces = tensors["initial_state"], []
    length = tensors[suite.sequences[0]].shape[1]
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        piece = {k: x[:, start:stop] if k in suite.sequences else x for k, x in tensors.items()}
        y, state = suite.run({**piece, "initial_state": state}, backend)
        pieces.append(y)
    return torch.cat(pieces, 1), state


@EVERY_ONE
def test_chunks_equal_the_whole(backend: str, operation: str) -> None:
    suite = OPERATIONS[operation]
    batch, length = small(backend, (2, 70), (1, 9))
    tensors = suite.make(batch, length, 20, 4)
    whole, final = suite.run(tensors, backend)
    for cuts in small(backend, [[1], [32], [7, 8, 40], list(range(1, 70))], [[1, 2, 3, 7]]):
        y, state = in_chunks(tensors, backend, suite, cuts)
        if backend in ("cpu", INTERPRETED):
            assert torch.equal(y, whole)
            assert torch.equal(state, final)
        else:  # PyTorch's own SiLU rounds differently by position in memory
            assert_same({"y": y, "h": state}, {"y": whole, "h": final}, whole.dtype)


@EVERY_FUSED_ONE
def test_gradients_through_chunks(backend: str, operation: str) -> None:
    suite = OPERATIONS[operation]
    batch, middle, length = small(backend, (3, 40, 50), (1, 3, 5))
    tensors = suite.make(batch, length, 17, 4)
    expected = evaluate(suite.run, tensors, "reference", torch.float64)
    cut = partial(in_chunks, suite=suite, cuts=[1, middle])
    assert_same(evaluate(cut, tensors, backend, torch.float32), expected, torch.float32)


@EVERY_FUSED_ONE
def test_layouts(backend: str, operation: str) -> None:
    run, make, sequences = OPERATIONS[operation]
    tensors = make(small(backend, 3, 2), small(backend, 9, 4), 18, 4)
    layouts = {
        "transposed": {k: x.mT.contiguous().mT if x.ndim > 1 else x for k, x in tensors.items()},
        "expanded": {k: x[:1].expand_as(x) if x.ndim == 3 else x for k, x in tensors.items()},
        "sliced": {k: x[:, ::2] if k in sequences else x for k, x in tensors.items()},
        "spaced": {k: x.repeat_interleave(2, -1)[..., ::2] for k, x in tensors.items()},
    }
    for layout, given_tensors in layouts.items():
        y, final = run(given_tensors, backend)
        expected = run({k: x.double() for k, x in given_tensors.items()}, "reference")
        assert relative_error(y, expected[0]) < TOLERANCES[torch.float32], layout
        assert relative_error(final, expected[1]) < TOLERANCES[torch.float32], layout


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from(DRAWN),
    operation=st.sampled_from([*OPERATIONS]),
    length=st.integers(2, 70),
    channels=st.integers(1, 20),
    data=st.data(),
)
def test_later_tokens_change_nothing_earlier(
    backend: str, operation: str, length: int, channels: int, data: st.DataObject
) -> None:
    run, make, sequences = OPERATIONS[operation]
    token = data.draw(st.integers(1, length - 1))
    tensors = {name: x.clone() for name, x in make(2, length, channels, 3).items()}
    y, _ = run(tensors, backend)
    for name in sequences:
        tensors[name][:, token:] += 1.0
    changed, _ = run(tensors, backend)
    assert torch.equal(y[:, :token], changed[:, :token])
    assert not torch.equal(y[:, token], changed[:, token])


@EVERY_ONE
def test_autocast_changes_nothing(backend: str, operation: str) -> None:
    run, make, _ = OPERATIONS[operation]
    tensors = make(small(backend, 2, 1), small(backend, 12, 3), 16, 4)
    plain = evaluate(run, tensors, backend, torch.float32)
    with torch.autocast(split(backend)[1], torch.bfloat16):
        cast = evaluate(run, tensors, backend, torch.float32)
    for name, value in plain.items():
        assert torch.equal(value, cast[name]), name


@EVERY_ONE
def test_empty(backend: str, operation: str) -> None:
    run, make, sequences = OPERATIONS[operation]
    for shape in ((0, 3, 4, 2), (2, 0, 4, 2)):
        tensors = {name: x.requires_grad_() for name, x in make(*shape).items()}
        y, final = run(tensors, backend)
        assert y.shape == tensors[sequences[0]].shape
        assert torch.equal(final, tensors["initial_state"])
        final.sum().backward()
        gradient = tensors["initial_state"].grad
        assert gradient is not None
        assert torch.equal(gradient, torch.ones_like(gradient))
