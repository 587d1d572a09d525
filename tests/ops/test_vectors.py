"""The CPU kernels as AVX2 compiles them, on any x86 machine that has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from sb3_dmamba.ops import mamba_step
from tests.ops import test_residual
from tests.ops.cases import (
    TOLERANCES,
    assert_same,
    conv,
    conv_inputs,
    evaluate,
    relative_error,
    scan,
    scan_inputs,
)
from tests.ops.count_spills import Spills, count_all, count_spills
from tests.ops.test_mamba_step import SHAPES, convert, make_case, step
from tests.scripts import run_python

HAS_AVX2 = bool(get_host_cpu_features().get("avx2"))
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2"}
OPERATIONS = [
    (scan, scan_inputs(3, 40, 35, 5, 3)),
    (scan, scan_inputs(2, 5, 16, 16)),
    (conv, conv_inputs(3, 9, 35, 4)),
]


def compute() -> list[dict[str, Tensor]]:
    """Return what the kernels compute: outputs, states and gradients."""
    results = [evaluate(run, tensors, "cpu", torch.float32) for run, tensors in OPERATIONS]
    for shape in SHAPES:
        stepped = step(*make_case(shape), backend="cpu")
        results.append(dict(zip(("mixed", "conv", "scan"), stepped, strict=True)))
    for operation in test_residual.operations("cpu").values():
        drawn = test_residual.draw((2, 6, 35, 3))
        results.append(test_residual.evaluate(operation, drawn, torch.float32))
    return results


def write(path: str) -> None:
    """Write what the kernels compute, and their spills."""
    torch.save((compute(), {name: tuple(each) for name, each in count_all().items()}), path)


@pytest.mark.skipif(not HAS_AVX2, reason="this machine has no AVX2")
def test_avx2(tmp_path: Path) -> None:
    path = tmp_path / "results.pt"
    code = f"from tests.ops import test_vectors; test_vectors.write({str(path)!r})"
    run_python("-c", code, env={**os.environ, **AVX2, "NUMBA_CACHE_DIR": str(tmp_path)})
    results, spills = torch.load(path)
    for value, (run, tensors) in zip(results, OPERATIONS, strict=False):
        assert_same(value, evaluate(run, tensors, "reference", torch.float64), torch.float32)
    for value, shape in zip(results[len(OPERATIONS) :], SHAPES, strict=False):
        right = mamba_step(*convert(make_case(shape), torch.float64), backend="reference")
        for name, expected in zip(value, right, strict=True):
            assert relative_error(value[name], expected) < TOLERANCES[torch.float32], name
    # To the bit what the machine's own vectors give.
    for value, own in zip(results, compute(), strict=True):
        assert all(torch.equal(value[name], own[name]) for name in own)
    counted = {name: Spills(*each) for name, each in spills.items()}
    assert not any(each.stores_in_loops for each in counted.values()), counted
    assert counted["mamba_step step"].stores < 20, counted  # 55 with vectors of 512 bits


def test_counts_of_spills() -> None:
    assembly = (
        "f:\n\tvmovups\t%ymm1, 32(%rsp)\n\tmovq\t%rax, 8(%rsp)\n"
        ".LBB0_1:\n\tvmovaps\t%ymm2, -48(%rsp)\n\tvaddps\t64(%rsp), %ymm2, %ymm3\n"
        "\tvmovups\t%ymm2, 32(%rsp,%rax)\n\tjne\t.LBB0_1\n\tvmovups\t(%rsp), %zmm3\n"
        ".LBB0_2:\n\tvmovups\t%xmm2, (%rsp)\n\tjmp\t.LBB0_1\n"
    )
    # An indexed address is an array on the stack.
    assert count_spills(assembly) == Spills(3, 2, 1, 1)
