"""What is Triton's alone: where it works, segments, torch.compile, compilation for a GPU."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import dispatch, resolve_backend
from tests.ops.cases import (
    INTERPRETED,
    assert_same,
    conv,
    conv_inputs,
    evaluate,
    mark,
    scan,
    scan_inputs,
)
from tests.ops.conftest import HAS_TRITON, triton_scan
from tests.scripts import run_python

ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight", "initial_state")
EITHER = [mark(INTERPRETED), mark("triton@cuda")]
ON_CPU = [mark(INTERPRETED)]
DTYPES = ("bfloat16", "float32")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture
def _fresh_dispatch() -> Iterator[None]:
    dispatch._resolve.cache_clear()
    yield
    dispatch._resolve.cache_clear()


@pytest.mark.usefixtures("_fresh_dispatch")
def test_on_the_cpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"'triton' does not work here.*on 'cpu'.*to 'cuda'"):
        resolve_backend("triton", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device"):
        resolve_backend("triton", "cuda")


def test_a_missing_or_an_old_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert 'pip install "sb3-dmamba[triton]"' in str(dispatch._why_not_triton("cpu"))
    old: Any = types.ModuleType("triton")
    old.__version__ = "3.1.0"
    monkeypatch.setitem(sys.modules, "triton", old)
    assert str(dispatch._why_not_triton("cpu")).endswith("pip install -U 'triton>=3.3'")


@needs_triton
def test_an_old_gpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    reason = str(dispatch._why_not_triton("cuda"))
    assert "compute capability 7.0" in reason
    assert "backend='reference'" in reason


@needs_triton
def test_a_kernel_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    result: Exception | Tensor

    def broken(*arguments: object) -> tuple[Tensor, None]:
        if isinstance(result, Exception):
            raise result
        return result, None

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.import_module("sb3_dmamba.ops.triton"), "selective_scan", broken)
    cases: list[tuple[Exception | Tensor, str]] = [
        (RuntimeError("Failed to find C compiler.\nmore"), "(RuntimeError: Failed to find C comp"),
        (RuntimeError(), "(RuntimeError: )"),
        (torch.zeros(1), "computed 0.0 in place of 6.0"),
    ]
    for result, message in cases:  # noqa: B007 (read by the function above)
        reason = str(dispatch._why_not_triton("cpu"))
        assert message in reason
        assert "\n" not in reason


@pytest.mark.parametrize("backend", EITHER)
@pytest.mark.parametrize(("rank", "absent"), [(None, "initial_state z"), (2, "")])
def test_segments_equal_the_whole(
    backend: str, rank: int | None, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = scan_inputs(1, 18, 3, 2, rank)
    for name in absent.split():
        del tensors[name]
    expected = evaluate(scan, tensors, "reference", torch.float64)
    monkeypatch.setattr(triton_scan(), "_cut", lambda *sizes: (8, 3))  # the last has two tokens
    results = evaluate(scan, tensors, backend, torch.float64)
    assert_same(results, expected, torch.float64)


@pytest.mark.parametrize("backend", EITHER)
@pytest.mark.usefixtures("unrolled_as_on_a_gpu")
def test_the_tiles_of_a_gpu(backend: str) -> None:
    assert (triton_scan().TILE, triton_scan().HISTORY) == (8, 4)
    tensors = scan_inputs(1, 19, 3, 2, 2)
    expected = evaluate(scan, tensors, "reference", torch.float64)
    assert_same(evaluate(scan, tensors, backend, torch.float32), expected, torch.float32)


@pytest.mark.parametrize("backend", EITHER)
def test_mixed_dtypes(backend: str) -> None:
    """As autocast has them: activations in bfloat16, parameters in float32."""
    device = "cuda" if backend.endswith("cuda") else "cpu"
    half = ("u", "delta", "B", "C", "z")
    tensors = {
        name: x.to(device, torch.bfloat16 if name in half else torch.float32).requires_grad_()
        for name, x in scan_inputs(1, 4, 3, 2, 2).items()
    }
    y, final = scan(tensors, backend)
    (y.float().sum() + final.sum()).backward()
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert all(x.grad is not None and x.grad.dtype is x.dtype for x in tensors.values())


@pytest.mark.parametrize("backend", EITHER)
def test_autocast_around_the_backward_pass_changes_nothing(backend: str) -> None:
    device = "cuda" if backend.endswith("cuda") else "cpu"
    gradients = []
    for enabled in (False, True):
        tensors = {k: x.to(device).requires_grad_() for k, x in scan_inputs(1, 3, 3, 2, 2).items()}
        y, _ = scan(tensors, backend)
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            y.sum().backward()
        gradients.append([x.grad for x in tensors.values()])
    for plain, cast in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, cast, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ON_CPU)
def test_operators_are_what_they_say(backend: str) -> None:
    """Shapes without data, aliases, tracing: torch's own checks of a custom operator."""
    tensors = scan_inputs(1, 3, 3, 2, 2)
    for operation, arguments in (
        ("selective_scan", (*(tensors[name] for name in ARGUMENTS), True, True, True)),
        ("causal_conv1d", (*conv_inputs(1, 3, 3, 2).values(), True, True)),
    ):
        importlib.import_module(f"sb3_dmamba.ops.{operation}.triton")
        forward = getattr(torch.ops.sb3_dmamba, f"{operation}_forward").default
        torch.library.opcheck(forward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's
@pytest.mark.parametrize("backend", ON_CPU)
def test_torch_compile_takes_it_whole(backend: str) -> None:
    def compute(scanned: dict[str, Tensor], convolved: dict[str, Tensor]) -> Tensor:
        y, final = scan(scanned, backend)
        z, last = conv(convolved, backend)
        return y.sum() + 2 * final.sum() + z.sum() + 2 * last.sum()

    inputs = scan_inputs(1, 3, 3, 2, 2), conv_inputs(1, 3, 3, 2)
    compute(*inputs)  # what works here is found out before anything is traced
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    gradients = []
    for run in (compute, compiled):
        leaves = [{k: x.clone().requires_grad_() for k, x in group.items()} for group in inputs]
        every = [x for group in leaves for x in group.values()]
        gradients.append(torch.autograd.grad(run(*leaves), every))
    for plain, value in zip(*gradients, strict=True):
        assert torch.equal(plain, value)


@needs_triton
def test_long_rows_keep_their_offsets() -> None:
    """A stride that takes offsets within a sequence past 32 bits is read through a copy."""
    rows = importlib.import_module("sb3_dmamba.ops._triton").rows
    wide = torch.empty_strided((1, 3, 2), (0, 2**30, 1), device="meta")
    assert rows(wide).is_contiguous()
    assert rows(wide[:, :1]).stride() == wide.stride()


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "which"),
    [("bfloat16", "usual"), *(pytest.param(d, "all", marks=pytest.mark.slow) for d in DTYPES)],
)
def test_kernels_compile_for_a_gpu(tmp_path: Path, dtype: str, which: str) -> None:
    """Triton and ptxas make machine code of every kernel, on a machine without a GPU too."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = os.fspath(tmp_path)
    command = ("-m", "tests.ops.compile_kernels", dtype, "80", which)
    said = run_python(*command, cwd=Path(__file__).parents[2], env=environment)
    kernels = [line.split() for line in said.splitlines()]
    expected = {"scan_forward", "scan_backward", "conv_forward", "conv_backward"}
    if which == "all":
        expected |= {"carry_states", "scan_backward_ends"}
    assert {kernel[0] for kernel in kernels} == expected
    for name, _, _, registers, spilled in kernels:
        assert int(registers) <= 255, name
        assert int(spilled) <= 128, f"{name} in {dtype} spills {spilled} bytes a thread"
