"""mamba-ssm's and causal-conv1d's kernels: whether they work, and how they are called.

There is no GPU in CI, so their functions are played here by others of the same signature and
layout, (B, D, L), on the reference's arithmetic. The tests marked gpu run against the real ones.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops import causal_conv1d, mamba_step, reference, resolve_backend, selective_scan
from tests.ops.cases import TOLERANCES, conv_inputs, mark, move, relative_error, scan_inputs
from tests.ops.test_mamba_step import convert, make_case

CPU = torch.device("cpu")
SCAN = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")


def transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.mT


def played_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    for x in (u, delta, B, C, z):
        assert x is None or (x.is_contiguous() and x.dtype is u.dtype)
    assert all(x is None or x.dtype is torch.float32 for x in (A, D, delta_bias))
    y, final = reference.selective_scan(
        *(u.mT, delta.mT, A, B.mT, C.mT, D, transposed(z), delta_bias, None),
        *(delta_softplus, None, True),
    )
    return (y.mT, final) if return_last_state else y.mT


def played_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: None = None,
    activation: str | None = None,
) -> Any:
    if initial_states is not None or return_final_states:
        assert x.stride(1) == 1  # channels innermost, as it asks for with states
        assert initial_states is None or initial_states.stride(1) == 1
    assert x.stride(1) != 1 or all(x.stride(k) % 8 == 0 for k in (0, 2))
    y, final = reference.causal_conv1d(
        x.mT, weight, bias, activation is not None, transposed(initial_states), True
    )
    return (y.mT, transposed(final)) if return_final_states else y.mT


def played_convolution_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    assert activation == "silu"
    y, final = reference.causal_conv1d(x.mT, weight, bias, True, conv_state.mT, True)
    assert final is not None
    conv_state.copy_(final.mT)
    return y.mT


def played_state_update(
    *arguments: Tensor, z: Tensor, dt_bias: Tensor, dt_softplus: bool
) -> Tensor:
    state, x, dt, A, B, C, D = arguments
    one = [tensor[:, None] for tensor in (x, dt, B, C, z)]
    y, final = reference.selective_scan(
        *(one[0], one[1], A, one[2], one[3], D, one[4], dt_bias, None), *(dt_softplus, state, True)
    )
    assert final is not None
    state.copy_(final)
    return y[:, 0]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """Modules in the place of the two packages."""
    update = "mamba_ssm.ops.triton.selective_state_update"
    convolve = {"fn": played_convolution, "update": played_convolution_update}
    contents: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")},
        SCAN[0]: {SCAN[1]: played_scan},
        update: {"selective_state_update": played_state_update},
        "causal_conv1d": {f"causal_conv1d_{name}": run for name, run in convolve.items()},
    }
    modules = {}
    for name, functions in contents.items():
        modules[name] = module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def cuda() -> Any:
    return importlib.import_module("sb3_dmamba.ops.cuda")


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(BackendError, match="tensors are on 'cpu'") as error:
        resolve_backend("cuda", "cpu")
    assert (error.value.setting, error.value.value) == ("backend", "cuda")


@pytest.mark.parametrize("package", ["mamba_ssm", "causal_conv1d"])
@pytest.mark.usefixtures("packages")
def test_missing_packages_are_named(
    cuda: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda.why_not(CPU) is None
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.setitem(sys.modules, name, None)
    reason = cuda.why_not(CPU)
    assert reason.startswith(f"{package.replace('_', '-')} cannot be imported")
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation" in reason
    assert "\n" not in reason


def test_kernels_that_do_not_run_say_how_to_build_them(
    cuda: Any, packages: dict[str, types.ModuleType]
) -> None:
    # What mamba-ssm 2.3.2 from PyPI does: it imports, and fails at the first forward pass.
    for result in (NameError("name 'selective_scan_cuda' is not defined"), ValueError("a\nb"), 3.0):

        def broken(u: Tensor, *others: Tensor, result: Exception | float = result) -> Tensor:
            if isinstance(result, Exception):
                raise result
            return torch.full_like(u, result)

        setattr(packages[SCAN[0]], SCAN[1], broken)
        reason = cuda.why_not(CPU)
        assert "imports and its kernel does not run" in reason
        shown = type(result).__name__ if isinstance(result, Exception) else "3.0 in place of 6.0"
        assert shown in reason
        assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in reason
        assert "\n" not in reason
    setattr(packages[SCAN[0]], SCAN[1], played_scan)
    vars(packages["causal_conv1d"])["causal_conv1d_fn"] = None
    assert cuda.why_not(CPU).startswith("causal-conv1d cannot be imported (causal_conv1d_fn is N")


@pytest.mark.parametrize(
    ("rank", "dtype", "final"),
    [(None, torch.float32, True), (2, torch.bfloat16, True), (2, torch.float32, False)],
)
@pytest.mark.usefixtures("packages")
def test_the_scan_is_called_in_its_layout(
    cuda: Any, rank: int | None, dtype: torch.dtype, final: bool
) -> None:
    tensors = {k: x.to(dtype) for k, x in scan_inputs(2, 5, 3, 4, rank).items()}
    arguments = (*(tensors.get(name) for name in NAMES), True, None, final)
    y, state = cuda.selective_scan(*arguments)
    expected, wanted = reference.selective_scan(*arguments)  # type: ignore[arg-type]
    assert y.dtype is dtype
    assert relative_error(y, expected) < TOLERANCES[dtype]
    assert (state is None) == (wanted is None) == (not final)
    if wanted is not None:
        assert state.dtype is torch.float32
        assert relative_error(state, wanted) < TOLERANCES[dtype]


@pytest.mark.usefixtures("packages")
def test_the_scan_refuses_what_it_cannot_do(cuda: Any) -> None:
    cases: list[tuple[str, Tensor, str]] = [
        ("initial_state", torch.zeros(2, 3, 4), "start from initial_state"),
        ("u", torch.zeros(2, 5, 3, dtype=torch.float64), "compute in float64"),
        ("A", torch.zeros(3, 300), "hold N = 300 states, more than 256"),
        ("u", torch.zeros(2, 0, 3), "scan 0 tokens"),
        ("A", torch.zeros(3, 4, requires_grad=True), "give gradients through the final"),
    ]
    for name, x, message in cases:
        tensors: dict[str, Any] = {**scan_inputs(2, 5, 3, 4), "initial_state": None, name: x}
        arguments = [tensors.get(name) for name in NAMES]
        with pytest.raises(BackendError, match=f"cannot {message}.*'triton' or 'auto'") as error:
            cuda.selective_scan(*arguments, True, tensors["initial_state"], True)
        assert error.value.setting == "backend"


@pytest.mark.parametrize(("silu", "with_state"), [(False, True), (True, False)])
@pytest.mark.usefixtures("packages")
def test_the_convolution_is_called_in_its_layout(cuda: Any, silu: bool, with_state: bool) -> None:
    tensors = conv_inputs(2, 5, 8, 4)
    state = tensors["initial_state"] if with_state else None
    arguments = (tensors["x"], tensors["weight"], tensors["bias"], silu, state)
    y, final = cuda.causal_conv1d(*arguments, True)
    expected, wanted = reference.causal_conv1d(*arguments, True)
    assert wanted is not None
    assert relative_error(y, expected) < TOLERANCES[torch.float32]
    assert torch.equal(final, wanted)
    assert cuda.causal_conv1d(*arguments, False)[1] is None


@pytest.mark.usefixtures("packages")
def test_the_convolution_refuses_what_it_cannot_do(cuda: Any) -> None:
    for shape, dtype, message in (
        ((2, 5, 8, 5), torch.float32, "convolve with 5 taps, only with 2, 3, 4"),
        ((2, 5, 12, 4), torch.float32, "take 12 channels, only multiples of 8"),
        ((2, 0, 8, 4), torch.float32, "take a sequence of 0 tokens"),
        ((2, 5, 8, 4), torch.float64, "compute in float64"),
    ):
        tensors = {name: x.to(dtype) for name, x in conv_inputs(*shape).items()}
        with pytest.raises(BackendError, match=f"cannot {message}.*'triton' or 'auto'"):
            cuda.causal_conv1d(tensors["x"], tensors["weight"], None, True, None, False)


@pytest.mark.usefixtures("packages")
def test_the_step_goes_on_from_a_state_and_leaves_it_alone(cuda: Any) -> None:
    tokens, weights, *states = make_case((2, 3, 20, 40, 16, 4, 2))
    copies = [x.clone() for x in states]
    results = cuda.mamba_step(tokens, weights, *states)
    expected = mamba_step(tokens, weights, *states, backend="reference")
    for value, right in zip(results, expected, strict=True):
        assert relative_error(value, right) < TOLERANCES[torch.float32]
    assert all(torch.equal(x, copy) for x, copy in zip(states, copies, strict=True))


@pytest.mark.parametrize("backend", [mark("cuda@cuda")])
@pytest.mark.parametrize("rank", [None, 8])
def test_the_real_kernels(backend: str, rank: int | None) -> None:
    scanned = move(scan_inputs(2, 65, 16, 16, rank), "cuda")
    del scanned["initial_state"]
    operations: list[tuple[Any, dict[str, Tensor], dict[str, Any]]] = [
        (selective_scan, scanned, {"delta_softplus": True}),
        (causal_conv1d, move(conv_inputs(2, 65, 16, 4), "cuda"), {}),
    ]
    for run, tensors, options in operations:
        expected = run(**{k: x.double() for k, x in tensors.items()}, **options)
        y = run(**tensors, **options, backend="cuda")
        assert relative_error(y, expected) < TOLERANCES[torch.float32]
    case = convert(make_case((2, 3, 20, 40, 16, 4, 2)), "cuda")
    for value, right in zip(
        mamba_step(*case, backend="cuda"), mamba_step(*case, backend="reference"), strict=True
    ):
        assert relative_error(value, right) < TOLERANCES[torch.float32]
