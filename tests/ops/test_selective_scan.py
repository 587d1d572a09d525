"""The selective scan: the reference against hand-worked values, every backend against it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mambapy.pscan import pscan
from torch import Tensor

from tests.ops.cases import (
    BACKENDS,
    DRAWN,
    FUSED,
    INTERPRETED,
    TOLERANCES,
    assert_same,
    cases,
    evaluate,
    mark,
    relative_error,
    scan,
    scan_inputs,
    small,
    split,
)

EVERY_ONE = [mark(backend) for backend in BACKENDS]
EVERY_FUSED_ONE = [mark(backend) for backend in FUSED]
SHAPES: list[tuple[int, ...]] = [
    (1, 1, 1, 1),
    (2, 5, 3, 2),
    (1, 3, 256, 16),
    (3, 37, 40, 5),
    (2, 64, 17, 1),
    (5, 33, 16, 16),
    (2, 97, 32, 4),
    (40, 2, 20, 3),
]
# The same with steps of low rank.
SHAPES += [(*shape, rank) for shape, rank in zip(SHAPES, (1, 2, 8, 3, 1, 8, 3, 5), strict=True)]
RANKS = [None, 3]
INTERPRETED_CASES: list[tuple[tuple[int, ...], torch.dtype]] = [
    ((1, 1, 1, 1), torch.float32),
    *(((2, 5, 3, 2, 2), dtype) for dtype in TOLERANCES),
    ((1, 6, 17, 16), torch.float32),
    ((1, 3, 40, 5, 3), torch.float32),  # two blocks of channels
    ((1, 2, 2, 40), torch.float32),
]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_hand_worked(backend: str) -> None:
    one = torch.ones(1, 2, 1)
    decay = math.exp(-0.5)
    # Step 0.5 throughout, rate -1, h0 = 4: h1 = 4 e^-0.5 + 0.5 * 3 * 2, h2 = h1 e^-0.5 + 0.5 * 3.
    tensors = {
        "u": 2 * one - torch.tensor([[[0.0], [1.0]]]),
        "delta": 0.25 * one,
        "A": torch.tensor([[-1.0]]),
        "B": 3 * one,
        "C": torch.tensor([[[1.0], [10.0]]]),
        "D": torch.tensor([100.0]),
        "delta_bias": torch.tensor([0.25]),
        "initial_state": torch.full((1, 1, 1), 4.0),
    }
    y, final = scan(tensors, backend, delta_softplus=False)
    first = 4 * decay + 3
    second = first * decay + 1.5
    expected = torch.tensor([first + 200, 10 * second + 100])
    torch.testing.assert_close(y.flatten(), expected)
    torch.testing.assert_close(final.flatten(), torch.tensor([second]))


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_steps_of_low_rank(backend: str) -> None:
    # Steps 2 * 3 + 1 * 5 - 1 = 10 and 2 * 0 + 1 * 4 - 1 = 3; no decay, from zero: y = step.
    ones = torch.ones(1, 1, 2)
    tensors = {
        "u": ones,
        "delta": torch.tensor([[[2.0, 1.0]]]),
        "A": torch.zeros(2, 1),
        "B": ones[..., :1],
        "C": ones[..., :1],
        "delta_bias": -ones[0, 0],
        "delta_weight": torch.tensor([[3.0, 5.0], [0.0, 4.0]]),
    }
    y, _ = scan(tensors, backend, delta_softplus=False)
    assert y.tolist() == [[[10.0, 3.0]]]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_rank_zero_leaves_the_bias(backend: str) -> None:
    tensors = scan_inputs(2, 5, 19, 3, rank=0)
    whole = {**tensors, "delta": torch.zeros(2, 5, 19)}
    del whole["delta_weight"]
    expected, _ = scan(whole, "reference")
    results = evaluate(scan, tensors, backend, torch.float32)
    assert relative_error(results["y"], expected) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_softplus_and_gate(backend: str) -> None:
    # log(1 + e^0) = log 2; silu(1) = 1 / (1 + 1/e).
    ones = torch.ones(1, 1, 1)
    tensors = {"u": ones, "delta": 0 * ones, "A": -ones[0], "B": ones, "C": ones, "z": ones}
    y, _ = scan(tensors, backend)
    assert y.item() == pytest.approx(math.log(2) / (1 + math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_small_steps_keep_their_digits(backend: str) -> None:
    # Mamba starts with steps down to 0.001; log(1 + e) as it is written has none left at 6e-6.
    ones = torch.ones(1, 1, 1)
    tensors = {"u": ones, "delta": -12 * ones, "A": 0 * ones[0], "B": ones, "C": ones}
    y, _ = scan(tensors, backend)
    assert y.item() == pytest.approx(math.log1p(math.exp(-12)), rel=1e-5)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_ONE)
def test_gradcheck(backend: str, rank: int | None) -> None:
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 5, 3), 3, 2, rank)
    names = list(tensors)
    values = [x.double().detach().requires_grad_() for x in tensors.values()]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return scan(dict(zip(names, values, strict=True)), backend)

    # All entries of every Jacobian, or one random projection of it where that would take minutes.
    assert torch.autograd.gradcheck(function, values, fast_mode=backend not in DRAWN)


@pytest.mark.parametrize(
    ("backend", "case"), cases(FUSED, itertools.product(SHAPES, TOLERANCES), INTERPRETED_CASES)
)
def test_against_reference(backend: str, case: tuple[tuple[int, ...], torch.dtype]) -> None:
    shape, dtype = case
    # Rounded first: the reference sees the same numbers, in float64.
    tensors = {name: x.to(dtype).float() for name, x in scan_inputs(*shape).items()}
    expected = evaluate(scan, tensors, "reference", torch.float64)
    assert_same(evaluate(scan, tensors, backend, dtype), expected, dtype)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "initial_state", "D z initial_state"])
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_absent_arguments(backend: str, absent: str, softplus: bool) -> None:
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 35, 3), 19, 3)
    if not softplus:
        tensors["delta"] = tensors["delta"].abs()
        tensors["delta_bias"] = tensors["delta_bias"].abs()
    for name in absent.split():
        del tensors[name]
    expected = evaluate(scan, tensors, "reference", torch.float64, delta_softplus=softplus)
    results = evaluate(scan, tensors, backend, torch.float32, delta_softplus=softplus)
    assert_same(results, expected, torch.float32)


@pytest.mark.parametrize(
    ("backend", "case"),
    cases(
        BACKENDS,
        [(name, rank) for rank in RANKS for name in scan_inputs(1, 1, 1, 1, rank)],
        [("u", None), ("C", 3), ("delta_weight", 3), ("delta_bias", 3)],
    ),
)
def test_gradient_of_one_input(backend: str, case: tuple[str, int | None]) -> None:
    name, rank = case
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 6, 3), 5, 3, rank)
    expected = evaluate(scan, tensors, "reference", torch.float64, {name})
    assert_same(evaluate(scan, tensors, backend, torch.float32, {name}), expected, torch.float32)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize("output", [0, 1], ids=["y", "final_state"])
def test_gradient_of_one_output(backend: str, output: int, rank: int | None) -> None:
    gradients = []
    batch, length = small(backend, (2, 6), (1, 3))
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        tensors = {
            k: x.to(dtype).requires_grad_()
            for k, x in scan_inputs(batch, length, 5, 3, rank).items()
        }
        out = scan(tensors, name)[output]
        # expand() gives the gradient a stride of zero.
        grads = torch.autograd.grad(out.sum(), list(tensors.values()), allow_unused=True)
        gradients.append(grads)
    for name, wanted, value in zip(scan_inputs(1, 1, 1, 1, rank), *gradients, strict=True):
        if wanted is not None:
            assert relative_error(value, wanted) < TOLERANCES[torch.float32], name


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("backend", "cuts"),
    cases(BACKENDS, [[1], [32], [7, 8, 40], list(range(1, 70))], [[1], [4, 7], [1, 2, 3, 4]]),
)
def test_chunks_equal_the_whole(backend: str, cuts: list[int], rank: int | None) -> None:
    batch, length = small(backend, (2, 70), (1, 11))
    tensors = scan_inputs(batch, length, 20, 4, rank)
    whole, final = scan(tensors, backend)
    state, pieces = tensors["initial_state"], []
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        piece = {
            name: x[:, start:stop] if name in ("u", "delta", "B", "C", "z") else x
            for name, x in tensors.items()
        }
        y, state = scan({**piece, "initial_state": state}, backend)
        pieces.append(y)
    if backend not in (
        "cpu",
        INTERPRETED,
    ):  # PyTorch's own SiLU rounds differently by position in memory
        assert_same({"y": torch.cat(pieces, 1), "h": state}, {"y": whole, "h": final}, whole.dtype)
    else:
        assert torch.equal(torch.cat(pieces, 1), whole)
        assert torch.equal(state, final)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_gradients_through_chunks(backend: str, rank: int | None) -> None:
    def in_chunks(tensors: dict[str, Tensor], name: str, **options: Any) -> tuple[Tensor, Tensor]:
        state, pieces = tensors["initial_state"], []
        for part in (slice(0, 1), slice(1, middle), slice(middle, length)):
            piece = {
                k: x[:, part] if k in ("u", "delta", "B", "C", "z") else x
                for k, x in tensors.items()
            }
            y, state = scan({**piece, "initial_state": state}, name)
            pieces.append(y)
        return torch.cat(pieces, 1), state

    batch, middle, length = small(backend, (3, 40, 50), (1, 5, 8))
    tensors = scan_inputs(batch, length, 17, 4, rank)
    expected = evaluate(scan, tensors, "reference", torch.float64)
    assert_same(evaluate(in_chunks, tensors, backend, torch.float32), expected, torch.float32)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize("layout", ["transposed", "expanded", "parameters", "sliced"])
def test_layouts(backend: str, layout: str, rank: int | None) -> None:
    tensors = scan_inputs(small(backend, 3, 2), small(backend, 9, 4), 18, 4, rank)
    if layout == "transposed":
        tensors = {
            k: x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 3 else x
            for k, x in tensors.items()
        }
    elif layout == "expanded":
        tensors = {k: x[:1].expand_as(x) if x.ndim == 3 else x for k, x in tensors.items()}
    elif layout == "sliced":
        tensors = {
            k: x[:, ::2] if k in ("u", "delta", "B", "C", "z") else x for k, x in tensors.items()
        }
    else:
        tensors["A"] = tensors["A"].t().contiguous().t()
        tensors["D"] = tensors["D"].repeat_interleave(2)[::2]
        if rank is not None:
            tensors["delta_weight"] = tensors["delta_weight"].t().contiguous().t()
    y, final = scan(tensors, backend)
    expected = scan({k: x.double() for k, x in tensors.items()}, "reference")
    assert relative_error(y, expected[0]) < TOLERANCES[torch.float32]
    assert relative_error(final, expected[1]) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_large_steps(backend: str, scale: float, rank: int | None) -> None:
    # Past softplus' linear end and past the underflow of the decay.
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 8, 4), 16, 4, rank)
    tensors["delta"] = scale * tensors["delta"]
    expected = evaluate(scan, tensors, "reference", torch.float64)
    results = evaluate(scan, tensors, backend, torch.float32)
    assert all(torch.isfinite(x).all() for x in results.values())
    assert_same(results, expected, torch.float32)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_values_stay_so(backend: str, value: float, rank: int | None) -> None:
    tensors = scan_inputs(small(backend, 2, 1), 6, 20, 3, rank)
    tensors["u"][0, 2, 5] = value
    y, final = scan(tensors, backend)
    wanted, wanted_final = scan(tensors, "reference")
    assert torch.equal(y.isfinite(), wanted.isfinite())
    assert torch.equal(final.isfinite(), wanted_final.isfinite())


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_growing_states(backend: str) -> None:
    # No structure of A is assumed: positive rates grow, up to infinity.
    tensors = scan_inputs(1, 4, 5, 3)
    tensors["A"] = -tensors["A"]
    assert relative_error(scan(tensors, backend)[0], scan(tensors, "reference")[0]) < 1e-5
    tensors["A"] = torch.full_like(tensors["A"], 1e4)
    final_state = scan(tensors, backend)[1]
    if backend == "traceable":  # multiplies the infinite decays of whole stretches by zero
        assert not final_state.isfinite().any()
    else:
        assert final_state.isinf().all()


@settings(max_examples=40, deadline=None)
@given(
    backend=st.sampled_from(DRAWN),
    length=st.integers(2, 70),
    channels=st.integers(1, 20),
    rank=st.sampled_from(RANKS),
    data=st.data(),
)
def test_later_tokens_change_nothing_earlier(
    backend: str, length: int, channels: int, rank: int | None, data: st.DataObject
) -> None:
    token = data.draw(st.integers(1, length - 1))
    tensors = {name: x.clone() for name, x in scan_inputs(2, length, channels, 3, rank).items()}
    y, _ = scan(tensors, backend)
    for name in ("u", "delta", "B", "C", "z"):
        tensors[name][:, token:] += 1.0
    changed, _ = scan(tensors, backend)
    assert torch.equal(y[:, :token], changed[:, :token])
    assert not torch.equal(y[:, token], changed[:, token])


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_against_mambapy(backend: str) -> None:
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 21, 6), 12, 4)
    u, delta, A, B, C, D = (tensors[name] for name in ("u", "delta", "A", "B", "C", "D"))
    step = torch.nn.functional.softplus(delta)
    inputs = (step * u).unsqueeze(-1) * B.unsqueeze(2)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), inputs)
    expected = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    taken = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D}
    y, _ = scan(taken, backend)
    assert relative_error(y, expected) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("backend", EVERY_ONE)
def test_autocast_changes_nothing(backend: str, rank: int | None) -> None:
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 12, 3), 16, 4, rank)
    plain = evaluate(scan, tensors, backend, torch.float32)
    with torch.autocast(split(backend)[1], torch.bfloat16):
        cast = evaluate(scan, tensors, backend, torch.float32)
    for name, value in plain.items():
        assert torch.equal(value, cast[name]), name


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_dtypes_of_the_outputs(backend: str) -> None:
    tensors = scan_inputs(1, 2, 3, 2)
    mixed = {**tensors, **{k: tensors[k].bfloat16() for k in ("u", "delta", "B", "C", "z")}}
    y, final = scan(mixed, backend)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    y, final = scan({k: x.double() for k, x in tensors.items()}, backend)
    assert (y.dtype, final.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("backend", EVERY_ONE)
@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 2)], ids=["no batch", "no tokens"])
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    tensors = scan_inputs(*shape)
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    y, final = scan(tensors, backend)
    assert y.shape == tensors["u"].shape
    assert torch.equal(final, tensors["initial_state"])
    final.sum().backward()
    gradient = tensors["initial_state"].grad
    assert gradient is not None
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize("name", list(scan_inputs(1, 1, 1, 1)))
def test_bad_shapes_are_named(name: str) -> None:
    tensors = scan_inputs(2, 5, 4, 3)
    shape = tuple(tensors[name].shape)
    tensors[name] = tensors[name].new_zeros(*shape[:-1], shape[-1] + 1)
    with pytest.raises(ValueError, match=r"shape") as error:
        scan(tensors, "auto")
    assert str((*shape[:-1], shape[-1] + 1)) in str(error.value) or name in ("u", "A")


@pytest.mark.parametrize("shape", [(), (4,), (5, 2), (4, 2, 1)], ids=str)
def test_bad_shapes_of_the_weight_are_named(shape: tuple[int, ...]) -> None:
    tensors = scan_inputs(2, 5, 4, 3, rank=2)
    tensors["delta_weight"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"delta_weight has shape .* expected \(D, R\)"):
        scan(tensors, "auto")


def test_rank_of_delta_is_that_of_the_weight() -> None:
    tensors = scan_inputs(2, 5, 4, 3, rank=2)
    with pytest.raises(ValueError, match=r"delta has shape \(2, 5, 2\), expected \(B, L, R\)"):
        scan({**tensors, "delta_weight": torch.zeros(4, 3)}, "auto")


def test_bad_kinds_are_named() -> None:
    tensors = scan_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match="expected \\(B, L, D\\)"):
        scan({**tensors, "u": tensors["u"][0]}, "auto")
    with pytest.raises(ValueError, match=r"B has dtype torch.int64"):
        scan({**tensors, "B": tensors["B"].long()}, "auto")
    with pytest.raises(ValueError, match="delta is on meta"):
        scan({**tensors, "delta": tensors["delta"].to("meta")}, "auto")
