"""The mixer's step: against the reference, chunk by chunk, and what it leaves alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_dmamba.ops import MambaWeights, mamba_step
from tests.ops.cases import BACKENDS, TOLERANCES, cases, mark, relative_error, small, split

FUSED = [name for name in BACKENDS if name.startswith(("cpu", "triton"))]
EVERY_ONE = [mark(backend) for backend in BACKENDS]
EVERY_FUSED_ONE = [mark(backend) for backend in FUSED]
# batch, length, width, inner, states, taps, rank
SHAPES = [
    (1, 3, 128, 256, 16, 4, 8),  # acting in one environment, as the defaults have it
    (9, 2, 32, 64, 16, 4, 2),
    (1, 1, 1, 1, 1, 1, 1),
    (5, 4, 33, 70, 20, 3, 3),  # nothing is a multiple of anything
    (3, 17, 20, 24, 5, 2, 4),  # more tokens than a unit of work has rows
    (0, 3, 16, 32, 16, 4, 1),
]
Case = tuple[Tensor, MambaWeights, Tensor, Tensor]


def make_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    batch, length, width, inner, states, taps, rank = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int, over: int = 1) -> Tensor:
        return torch.randn(size, generator=random).div(over**0.5).to(dtype)

    weights = MambaWeights(
        in_proj=normal(2 * inner, width, over=width),
        conv1d=normal(inner, taps),
        conv1d_bias=normal(inner),
        x_proj=normal(rank + 2 * states, inner, over=inner),
        dt_proj=normal(inner, rank, over=rank),
        dt_bias=normal(inner),
        A=-4 * torch.rand(inner, states, generator=random).to(dtype),
        D=normal(inner),
        out_proj=normal(width, inner, over=inner),
    )
    states_ = normal(batch, taps - 1, inner), normal(batch, inner, states)
    return normal(batch, length, width), weights, *states_


def convert(case: Case, to: torch.dtype | str) -> Case:
    """Bring a case into another dtype, or onto another device."""
    tokens, weights, convolution, scan = case
    fields: dict[str, Any] = {**vars(weights), "prepared": {}}
    fields |= {name: x.to(to) for name, x in fields.items() if isinstance(x, Tensor)}
    return tokens.to(to), MambaWeights(**fields), convolution.to(to), scan.to(to)


def step(
    tokens: Tensor, weights: MambaWeights, convolution: Tensor, scan: Tensor, *, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    name, device = split(backend)
    case = (tokens, weights, convolution, scan)
    mixed, *states = mamba_step(*(case if device == "cpu" else convert(case, device)), backend=name)
    return mixed.cpu(), states[0].cpu(), states[1].cpu()


def assert_like_reference(case: Case, backend: str, dtype: torch.dtype) -> None:
    results = step(*case, backend=backend)
    expected = mamba_step(*convert(case, torch.float64), backend="reference")
    for name, value, right in zip(("mixed", "conv", "scan"), results, expected, strict=True):
        assert value.dtype is dtype
        assert value.shape == right.shape
        assert relative_error(value, right) < TOLERANCES[dtype], name


def assert_equal_bits(value: Tensor, expected: Tensor, backend: str) -> None:
    if backend == "cpu":
        assert torch.equal(value, expected)
    else:  # up to the rounding of torch's products, which depends on sizes and strides
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "shape"), cases(FUSED, SHAPES, SHAPES[1:4] + SHAPES[5:]))
def test_against_reference(backend: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        assert_like_reference(make_case(shape, dtype), backend, dtype)


@pytest.mark.usefixtures("two_threads")
def test_two_threads() -> None:
    assert_like_reference(make_case((30, 3, 32, 64, 16, 4, 2)), "cpu", torch.float32)


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_without_a_bias(backend: str) -> None:
    tokens, weights, conv, scan = make_case((2, 3, 20, 24, 5, 4, 4))
    weights = dataclasses.replace(weights, conv1d_bias=None, prepared={})
    assert_like_reference((tokens, weights, conv, scan), backend, torch.float32)


@pytest.mark.parametrize(
    ("backend", "cuts"), cases(BACKENDS, [[1], [2, 3], list(range(1, 7))], [[2, 3]])
)
def test_chunks_equal_the_whole(backend: str, cuts: list[int]) -> None:
    batch = small(backend, 2, 1)
    tokens, weights, *before = make_case((batch, 7, 20, 40, 16, 4, 2), torch.float64)
    whole, *after = step(tokens, weights, *before, backend=backend)
    pieces, states = [], before
    for start, stop in zip([0, *cuts], [*cuts, 7], strict=True):
        piece, *states = step(tokens[:, start:stop], weights, *states, backend=backend)
        pieces.append(piece)
    for value, expected in zip([torch.cat(pieces, 1), *states], [whole, *after], strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_an_environment_does_not_depend_on_its_neighbours(backend: str) -> None:
    n_envs = small(backend, 11, 2)
    tokens, weights, *states = make_case((n_envs, 3, 20, 40, 16, 4, 2))
    together = step(tokens, weights, *states, backend=backend)
    for row in range(n_envs):
        one = slice(row, row + 1)
        alone = step(tokens[one], weights, *(x[one] for x in states), backend=backend)
        for value, expected in zip(alone, together, strict=True):
            assert_equal_bits(value[0], expected[row], backend)


@pytest.mark.parametrize("backend", EVERY_ONE)
def test_the_states_given_are_left_alone(backend: str) -> None:
    tokens, weights, *states = make_case((2, 3, 20, 40, 16, 4, 2))
    copies = [x.clone() for x in states]
    step(tokens, weights, *states, backend=backend)
    assert all(torch.equal(x, copy) for x, copy in zip(states, copies, strict=True))


@pytest.mark.parametrize("backend", EVERY_FUSED_ONE)
def test_strided_inputs(backend: str) -> None:
    tokens, weights, *states = make_case((3, 3, 20, 40, 16, 4, 2))
    strided = [x.mT.contiguous().mT for x in (tokens, *states)]
    expected = step(tokens, weights, *states, backend=backend)
    results = step(strided[0], weights, *strided[1:], backend=backend)
    for value, right in zip(results, expected, strict=True):
        assert_equal_bits(value, right, backend)


def test_bad_shapes_are_named() -> None:
    case = make_case((2, 3, 20, 40, 16, 4, 2))
    for place in (0, 2, 3):
        wrong: list[Any] = list(case)
        wrong[place] = wrong[place][..., :-1]
        with pytest.raises(ValueError, match="has shape"):
            mamba_step(*wrong)
    with pytest.raises(ValueError, match="L at least 1"):
        mamba_step(torch.zeros(2, 0, 20), *case[1:])
