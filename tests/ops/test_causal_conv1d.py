"""The causal convolution: hand-worked values, PyTorch's own convolution, every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.ops.cases import (
    BACKENDS,
    DRAWN,
    FUSED,
    INTERPRETED,
    TOLERANCES,
    assert_same,
    cases,
    conv,
    conv_inputs,
    evaluate,
    mark,
    relative_error,
    split,
)

EVERY_ONE = [mark(backend) for backend in BACKENDS]
EVERY_FUSED_ONE = [mark(backend) for backend in FUSED]
SHAPES = [(1, 1, 1, 1), (2, 5, 3, 4), (1, 2, 256, 4), (3, 37, 40, 3), (2, 9, 17, 2), (40, 2, 20, 4)]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_hand_worked(backend: str) -> None:
    tensors = {
        "x": torch.tensor([[[1.0], [2.0], [3.0]]]),
        "weight": torch.tensor([[10.0, 1.0]]),  # ten times the input before, plus the present one
        "bias": torch.tensor([0.5]),
        "initial_state": torch.tensor([[[7.0]]]),
    }
    y, final = conv(tensors, backend, activation=None)
    assert y.flatten().tolist() == [71.5, 12.5, 23.5]
    assert final.flatten().tolist() == [3.0]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_against_torch(backend: str) -> None:
    tensors = conv_inputs(2, 11, 6, 4)
    x, weight, bias = tensors["x"], tensors["weight"], tensors["bias"]
    padded = functional.pad(x.transpose(1, 2), (3, 0))
    expected = functional.silu(functional.conv1d(padded, weight[:, None], bias, groups=6))
    y, _ = conv({"x": x, "weight": weight, "bias": bias}, backend)
    torch.testing.assert_close(y, expected.transpose(1, 2))


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_gradcheck(backend: str) -> None:
    tensors = conv_inputs(2, 5, 3, 4)
    names = list(tensors)
    values = [x.double().detach().requires_grad_() for x in tensors.values()]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return conv(dict(zip(names, values, strict=True)), backend)

    assert torch.autograd.gradcheck(function, values, fast_mode=backend not in DRAWN)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("backend", "shape"), cases(FUSED, SHAPES, [(1, 1, 1, 1), (2, 5, 3, 4), (1, 19, 70, 3)])
)
def test_against_reference(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = {name: x.to(dtype).float() for name, x in conv_inputs(*shape).items()}
    expected = evaluate(conv, tensors, "reference", torch.float64)
    assert_same(evaluate(conv, tensors, backend, dtype), expected, dtype)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", ["bias", "initial_state", "bias initial_state"])
@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_absent_arguments(backend: str, absent: str, activation: str | None) -> None:
    tensors = conv_inputs(2, 7, 19, 4)
    for name in absent.split():
        del tensors[name]
    expected = evaluate(conv, tensors, "reference", torch.float64, activation=activation)
    results = evaluate(conv, tensors, backend, torch.float32, activation=activation)
    assert_same(results, expected, torch.float32)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
@pytest.mark.parametrize("backend", EVERY_ONE)
def test_gradient_of_one_input(backend: str, name: str) -> None:
    tensors = conv_inputs(2, 6, 5, 4)
    expected = evaluate(conv, tensors, "reference", torch.float64, {name})
    assert_same(evaluate(conv, tensors, backend, torch.float32, {name}), expected, torch.float32)


@pytest.mark.parametrize("backend", EVERY_ONE)
@pytest.mark.parametrize("cuts", [[1], [2, 3], list(range(1, 12))], ids=len)
def test_chunks_equal_the_whole(backend: str, cuts: list[int]) -> None:
    tensors = conv_inputs(2, 12, 20, 4)
    whole, final = conv(tensors, backend)
    state, pieces = tensors["initial_state"], []
    for start, stop in zip([0, *cuts], [*cuts, 12], strict=True):
        piece = {**tensors, "x": tensors["x"][:, start:stop], "initial_state": state}
        y, state = conv(piece, backend)
        pieces.append(y)
    if backend not in (
        "cpu",
        INTERPRETED,
    ):  # PyTorch's own SiLU rounds differently by position in memory
        assert_same({"y": torch.cat(pieces, 1), "h": state}, {"y": whole, "h": final}, whole.dtype)
    else:
        assert torch.equal(torch.cat(pieces, 1), whole)
        assert torch.equal(state, final)


@settings(max_examples=30, deadline=None)
@given(backend=st.sampled_from(DRAWN), length=st.integers(2, 20), data=st.data())
def test_later_tokens_change_nothing_earlier(
    backend: str, length: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(1, length - 1))
    tensors = conv_inputs(2, length, 5, 4)
    y, _ = conv(tensors, backend)
    tensors["x"] = tensors["x"].clone()
    tensors["x"][:, token:] += 1.0
    changed, _ = conv(tensors, backend)
    assert torch.equal(y[:, :token], changed[:, :token])
    assert not torch.equal(y[:, token], changed[:, token])


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_layouts(backend: str) -> None:
    tensors = conv_inputs(3, 9, 18, 4)
    expected, _ = conv({k: x.double() for k, x in tensors.items()}, "reference")
    transposed = {k: x.mT.contiguous().mT if x.ndim > 1 else x for k, x in tensors.items()}
    assert relative_error(conv(transposed, backend)[0], expected) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_autocast_changes_nothing(backend: str) -> None:
    tensors = conv_inputs(2, 12, 16, 4)
    plain = evaluate(conv, tensors, backend, torch.float32)
    with torch.autocast(split(backend)[1], torch.bfloat16):
        cast = evaluate(conv, tensors, backend, torch.float32)
    for name, value in plain.items():
        assert torch.equal(value, cast[name]), name


@pytest.mark.parametrize("backend", EVERY_ONE)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=["no batch", "no tokens"])
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    tensors = conv_inputs(*shape)
    results = evaluate(conv, tensors, backend, torch.float32)
    assert torch.equal(results["final"], tensors["initial_state"])


@pytest.mark.parametrize("name", ["weight", "bias", "initial_state"])
def test_bad_shapes_are_named(name: str) -> None:
    tensors = conv_inputs(2, 5, 4, 3)
    tensors[name] = tensors[name].new_zeros(*tensors[name].shape[:-1], 9)
    with pytest.raises(ValueError, match=r"has shape|and weight"):
        conv(tensors, "auto")


def test_bad_kinds_are_named() -> None:
    tensors = conv_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match="activation='relu'"):
        conv(tensors, "auto", activation="relu")
    with pytest.raises(ValueError, match="expected \\(B, L, D\\)"):
        conv({**tensors, "x": tensors["x"][0]}, "auto")
