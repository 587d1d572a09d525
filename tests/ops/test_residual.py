"""The operations around a mixer: the kernels against the reference, and that by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_dmamba.ops import add_residual, available_backends, modulated_norm
from tests.ops.cases import TOLERANCES, Tensors, assert_same, relative_error

N_DROPPED = 20_000
SHAPES = [(1, 1, 4, 1), (2, 5, 3, 3), (3, 7, 40, 7), (2, 6, 17, 2), (4, 9, 128, 5), (33, 2, 16, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Of add_residual: whether there is a residual, a gate, dropout.
PARTS = [(r, g, d) for r in (False, True) for g in (False, True) for d in (False, True)]
Operation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def operations(backend: str) -> dict[str, Operation]:
    """Return functions of x, residual, a step's rows (three, side by side) and levels."""

    def norm(x: Tensor, residual: Tensor, rows: Tensor, levels: Tensor) -> tuple[Tensor, ...]:
        return modulated_norm(x, rows, x.shape[2], eps=1e-4, backend=backend)

    def add(parts: tuple[bool, ...]) -> Operation:
        def run(x: Tensor, residual: Tensor, rows: Tensor, levels: Tensor) -> tuple[Tensor, ...]:
            gate = rows[..., -x.shape[2] :]
            given = [
                each if part else None
                for each, part in zip((residual, gate), parts[:2], strict=True)
            ]
            given_levels = levels if parts[2] else None
            return (
                add_residual(x, *given, levels=given_levels, n_dropped=N_DROPPED, backend=backend),
            )

        return run

    return {"norm": norm, **{f"add{parts}": add(parts) for parts in PARTS}}


def draw(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw tokens twice as wide as they are, rows, and levels at both ends of the range too."""
    batch, length, channels, n_steps = shape
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, length, 2 * channels, generator=random)
    rows = torch.randn(batch, n_steps, 3 * channels, generator=random)
    size = (batch, length, channels)
    levels = torch.randint(-(1 << 15), 1 << 15, size, dtype=torch.int16, generator=random)
    levels.view(-1)[:2] = torch.tensor([-(1 << 15), (1 << 15) - 1])[: levels.numel()]
    return tokens, rows, levels


def evaluate(
    operation: Operation, drawn: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> Tensors:
    """Return outputs and gradients; x and residual are strided views, as in the network."""
    tokens, rows = (each.to(dtype, copy=True).requires_grad_() for each in drawn[:2])
    x, residual = tokens.chunk(2, dim=-1)
    outputs = operation(x, residual, rows, drawn[2])
    random = torch.Generator().manual_seed(7)
    loss = sum((y * torch.randn(y.shape, generator=random).to(y)).double().sum() for y in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    results = {f"output {place}": y.detach() for place, y in enumerate(outputs)}
    gradients = {"d tokens": tokens.grad, "d rows": rows.grad}
    return results | {name: each for name, each in gradients.items() if each is not None}


def test_against_reference() -> None:
    for shape in SHAPES:
        for name, operation in operations("cpu").items():
            reference = operations("reference")[name]
            for dtype in DTYPES:
                drawn = draw(shape)
                rounded = (drawn[0].to(dtype).double(), drawn[1].to(dtype).double(), drawn[2])
                expected = evaluate(reference, rounded, torch.float64)
                found = evaluate(operation, drawn, dtype)
                assert found.keys() == expected.keys()
                assert_same(found, expected, dtype)
                with torch.no_grad():
                    inputs = [each.to(dtype) for each in drawn[:2]]
                    x, residual = inputs[0].chunk(2, dim=-1)
                    alone = operation(x, residual, inputs[1], drawn[2])
                for place, output in enumerate(alone):
                    value = found[f"output {place}"]
                    assert output.dtype == value.dtype
                    assert relative_error(output, value) < TOLERANCES[dtype]


def test_dropout_and_residual_have_the_references_bits() -> None:
    for shape in SHAPES:
        for name, operation in operations("cpu").items():
            if name != "norm":
                drawn = draw(shape)
                expected = evaluate(operations("reference")[name], drawn, torch.float32)
                for key, value in evaluate(operation, drawn, torch.float32).items():
                    assert torch.equal(value, expected[key]), (shape, name, key)


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_gradcheck(backend: str) -> None:
    tokens, rows, levels = draw((2, 5, 3, 3))
    x, residual = (each.double().requires_grad_() for each in tokens.chunk(2, dim=-1))
    leaves = (x, residual, rows.double().requires_grad_())
    for operation in operations(backend).values():
        assert torch.autograd.gradcheck(operation, (*leaves, levels))


def test_reference_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0], [4.0, 0.0], [2.0, 2.0]]])  # two steps: two tokens, and one
    rows = torch.tensor([[[2.0, 3.0, 10.0, 20.0, 7.0], [5.0, 6.0, 30.0, 40.0, 8.0]]])
    y, rest = modulated_norm(x, rows, 2, eps=0.0, backend="reference")
    assert torch.equal(y[0, :2], torch.tensor([[8.0, 23.0], [12.0, 17.0]]))
    assert y[0, 2].isnan().all()  # 0 / 0 without eps
    assert rest.tolist() == [[[7.0], [8.0]]]
    half = 1 << 15  # of the levels: the others are doubled
    levels = torch.tensor([[[-1, 0], [-half, half - 1], [0, -1]]], dtype=torch.int16)
    gate = rows[..., :2]
    added = add_residual(x, x, gate, levels=levels, n_dropped=half, backend="reference")
    assert added.tolist() == [[[1.0, 3.0 + 2 * 3 * 3], [4.0, 0.0], [2.0 + 5 * 4, 2.0]]]


@pytest.mark.usefixtures("two_threads")
def test_two_threads_equal_one() -> None:
    for operation in operations("cpu").values():
        outcomes = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            outcomes.append(evaluate(operation, draw((37, 9, 24, 5)), torch.float32))
        for name, value in outcomes[0].items():
            assert torch.equal(value, outcomes[1][name]), name


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_empty_one_output_and_autocast(backend: str) -> None:
    for operation in operations(backend).values():
        for shape in ((0, 3, 4, 3), (2, 0, 4, 1)):
            results = evaluate(operation, draw(shape), torch.float32)
            assert results["output 0"].shape == (shape[0], shape[1], shape[2])
    tokens, rows, levels = draw((2, 5, 3, 3))
    rows.requires_grad_()
    _, rest = modulated_norm(tokens[..., :3], rows, 3, backend=backend)
    rest.sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad[0, 0], torch.tensor([0.0] * 6 + [1.0] * 3))
    # As in the network: tokens in float32, what comes from matrix products in bfloat16.
    with torch.autocast("cpu", torch.bfloat16):
        y, rest = modulated_norm(tokens[..., :3], rows.bfloat16(), 3, backend=backend)
        gate = rest[..., :3].bfloat16()
        added = add_residual(tokens.bfloat16()[..., 3:], y, gate, levels=levels, backend=backend)
    assert y.dtype == added.dtype == torch.float32


def test_what_does_not_fit_raises_value_error() -> None:
    tokens, rows, levels = draw((2, 5, 3, 3))
    x = tokens[..., :3]
    calls: list[tuple[Any, ...]] = [
        (modulated_norm, x, rows[..., :5], 3),  # less than two rows
        (modulated_norm, x, rows[:1], 3),  # another batch
        (modulated_norm, x, torch.ones(2, 4, 6), 3),  # two tokens a step are three steps
        (modulated_norm, x, torch.ones(2, 0, 6), 3),
        (modulated_norm, x, rows, 4),
        (modulated_norm, x[0], rows, 3),
        (modulated_norm, x.long(), rows, 3),
        (add_residual, x, x[:, :4]),
        (add_residual, x, x, torch.ones(2, 3, 4)),
        (add_residual, x, x, torch.ones(2, 6, 3)),
    ]
    for function, *arguments in calls:
        with pytest.raises(ValueError, match=r"shape|dtype"):
            function(*arguments)
    for wrong in (levels.int(), levels[:, :4], levels.transpose(0, 1)):
        with pytest.raises(ValueError, match="levels"):
            add_residual(x, x, levels=wrong)
