"""The causal convolution: hand-worked values, and PyTorch's own convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.ops.cases import BACKENDS, conv, conv_inputs, mark

EVERY_ONE = [mark(backend) for backend in BACKENDS]


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


def test_bad_arguments_are_named() -> None:
    tensors = conv_inputs(2, 5, 4, 3)
    for name in ("weight", "bias", "initial_state"):
        wrong = tensors[name].new_zeros(*tensors[name].shape[:-1], 9)
        with pytest.raises(ValueError, match=r"has shape|and weight"):
            conv({**tensors, name: wrong}, "auto")
    with pytest.raises(ValueError, match="activation='relu'"):
        conv(tensors, "auto", activation="relu")
    with pytest.raises(ValueError, match="expected \\(B, L, D\\)"):
        conv({**tensors, "x": tensors["x"][0]}, "auto")
