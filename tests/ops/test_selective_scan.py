"""The selective scan: hand-worked values, another implementation, edges of its arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.cases import (
    BACKENDS,
    FUSED,
    assert_same,
    evaluate,
    mark,
    relative_error,
    scan,
    scan_inputs,
    small,
)

EVERY_ONE = [mark(backend) for backend in BACKENDS]
EVERY_FUSED_ONE = [mark(backend) for backend in FUSED]
SEQUENCES = ("u", "delta", "B", "C", "z")


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


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize(("scale", "rank"), [(30.0, None), (300.0, 3)])
def test_large_steps(backend: str, scale: float, rank: int | None) -> None:
    # Past softplus' linear end and past the underflow of the decay.
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 8, 4), 16, 4, rank)
    tensors["delta"] = scale * tensors["delta"]
    expected = evaluate(scan, tensors, "reference", torch.float64)
    results = evaluate(scan, tensors, backend, torch.float32)
    assert all(torch.isfinite(x).all() for x in results.values())
    assert_same(results, expected, torch.float32)


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
@pytest.mark.parametrize(("value", "rank"), [(math.nan, None), (math.inf, 3)])
def test_non_finite_values_stay_so(backend: str, value: float, rank: int | None) -> None:
    tensors = scan_inputs(small(backend, 2, 1), small(backend, 6, 4), 20, 3, rank)
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


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_dtypes_of_the_outputs(backend: str) -> None:
    tensors = scan_inputs(1, 2, 3, 2)
    mixed = {**tensors, **{k: tensors[k].bfloat16() for k in SEQUENCES}}
    y, final = scan(mixed, backend)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    y, final = scan({k: x.double() for k, x in tensors.items()}, backend)
    assert (y.dtype, final.dtype) == (torch.float64, torch.float64)


def test_bad_shapes_are_named() -> None:
    tensors = scan_inputs(2, 5, 4, 3, rank=2)
    for name, x in tensors.items():
        longer = x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)
        with pytest.raises(ValueError, match="shape") as error:
            scan({**tensors, name: longer}, "auto")
        # A wrong input or weight makes another argument the one that does not fit.
        assert str(tuple(longer.shape)) in str(error.value) or name in ("u", "A", "delta_weight")
    for shape in [(), (4,), (5, 2), (4, 2, 1)]:
        with pytest.raises(ValueError, match=r"delta_weight has shape .* expected \(D, R\)"):
            scan({**tensors, "delta_weight": torch.zeros(shape)}, "auto")
    with pytest.raises(ValueError, match=r"delta has shape \(2, 5, 2\), expected \(B, L, R\)"):
        scan({**tensors, "delta_weight": torch.zeros(4, 3)}, "auto")


def test_bad_dtypes_and_devices_are_named() -> None:
    tensors = scan_inputs(2, 5, 4, 3)
    for name, bad, message in (
        ("u", tensors["u"][0], r"expected \(B, L, D\)"),
        ("B", tensors["B"].long(), r"B has dtype torch.int64"),
        ("delta", tensors["delta"].to("meta"), "delta is on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            scan({**tensors, name: bad}, "auto")
