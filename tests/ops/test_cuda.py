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
from sb3_dmamba.ops import MambaWeights, causal_conv1d, mamba_step, resolve_backend, selective_scan
from tests.ops.cases import TOLERANCES, conv_inputs, mark, relative_error, scan_inputs
from tests.ops.test_mamba_step import make_case

CPU = torch.device("cpu")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")


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
    sequences = [u, delta, B, C] + ([] if z is None else [z])
    assert all(x.is_contiguous() and x.dtype is u.dtype for x in sequences)
    assert all(x is None or x.dtype is torch.float32 for x in (A, D, delta_bias))
    y, final = selective_scan(
        *(u.mT, delta.mT, A, B.mT, C.mT, D, None if z is None else z.mT, delta_bias),
        delta_softplus=delta_softplus,
        return_final_state=True,
        backend="reference",
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
    y, final = causal_conv1d(
        *(x.mT, weight, bias),
        activation="silu" if activation else None,
        initial_state=None if initial_states is None else initial_states.mT,
        return_final_state=True,
        backend="reference",
    )
    return (y.mT, final.mT) if return_final_states else y.mT


def played_convolution_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    y, final = causal_conv1d(
        *(x.mT, weight, bias),
        activation="silu",
        initial_state=conv_state.mT,
        return_final_state=True,
        backend="reference",
    )
    conv_state.copy_(final.mT)
    return y.mT


def played_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    dt_softplus: bool,
) -> Tensor:
    one = [tensor[:, None] for tensor in (x, dt, B, C, z)]
    y, final = selective_scan(
        *(one[0], one[1], A, one[2], one[3], D, one[4], dt_bias),
        delta_softplus=dt_softplus,
        initial_state=state,
        return_final_state=True,
        backend="reference",
    )
    state.copy_(final)
    return y[:, 0]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """Modules in the place of the two packages."""
    contents: dict[str, dict[str, Any]] = {
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": played_scan},
        "mamba_ssm.ops.triton.selective_state_update": {
            "selective_state_update": played_state_update
        },
        "causal_conv1d": {
            "causal_conv1d_fn": played_convolution,
            "causal_conv1d_update": played_convolution_update,
        },
    }
    modules = {}
    for name, functions in contents.items():
        modules[name] = module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def probe() -> Any:
    return importlib.import_module("sb3_dmamba.ops.cuda")


def implementation(operation: str) -> Any:
    return getattr(importlib.import_module("sb3_dmamba.ops.cuda"), operation)


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(BackendError, match=r"'cuda' does not work here.*tensors are on 'cpu'"):
        resolve_backend("cuda", "cpu")


@pytest.mark.usefixtures("packages")
def test_kernels_that_work_are_offered(probe: Any) -> None:
    assert probe.why_not(CPU) is None


@pytest.mark.parametrize("package", ["mamba_ssm", "causal_conv1d"])
@pytest.mark.usefixtures("packages")
def test_missing_packages_are_named(
    probe: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.setitem(sys.modules, name, None)
    reason = probe.why_not(CPU)
    assert reason.startswith(f"{package.replace('_', '-')} cannot be imported")
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "error", [NameError("name 'selective_scan_cuda' is not defined"), AttributeError("a\nb")]
)
def test_a_package_without_its_extension_says_how_to_build_it(
    probe: Any, packages: dict[str, types.ModuleType], error: Exception
) -> None:
    # What mamba-ssm 2.3.2 from PyPI does: it imports, and fails at the first forward pass.
    def broken(*arguments: object) -> None:
        raise error

    vars(packages["mamba_ssm.ops.selective_scan_interface"])["selective_scan_fn"] = broken
    reason = probe.why_not(CPU)
    assert "imports and its kernel does not run" in reason
    assert type(error).__name__ in reason
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in reason
    assert "\n" not in reason


def test_a_convolution_that_is_none_says_so(
    probe: Any, packages: dict[str, types.ModuleType]
) -> None:
    vars(packages["causal_conv1d"])["causal_conv1d_fn"] = None
    assert probe.why_not(CPU).startswith("causal-conv1d cannot be imported (causal_conv1d_fn is N")


def test_a_kernel_that_is_wrong_is_refused(
    probe: Any, packages: dict[str, types.ModuleType]
) -> None:
    def wrong(u: Tensor, *others: Tensor) -> Tensor:
        return u

    vars(packages["mamba_ssm.ops.selective_scan_interface"])["selective_scan_fn"] = wrong
    assert "RuntimeError: it computed 3.0 in place of 6.0" in probe.why_not(CPU)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.usefixtures("packages")
def test_the_scan_is_called_in_its_layout(
    rank: int | None, dtype: torch.dtype, final: bool
) -> None:
    tensors = {k: x.to(dtype) for k, x in scan_inputs(2, 5, 3, 4, rank).items()}
    del tensors["initial_state"]
    arguments = [tensors.get(name) for name in NAMES]
    y, state = implementation("selective_scan")(*arguments, True, None, final)
    expected, wanted = selective_scan(
        **tensors, delta_softplus=True, return_final_state=True, backend="reference"
    )
    assert y.dtype is dtype
    assert relative_error(y, expected) < TOLERANCES[dtype]
    if final:
        assert state.dtype is torch.float32
        assert relative_error(state, wanted) < TOLERANCES[dtype]
    else:
        assert state is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_state": torch.zeros(2, 3, 4)}, "cannot start from initial_state"),
        ({"u": torch.zeros(2, 5, 3, dtype=torch.float64)}, "cannot compute in float64"),
        ({"A": torch.zeros(3, 300)}, "cannot hold N = 300 states, more than 256"),
        ({"u": torch.zeros(2, 0, 3)}, "cannot scan 0 tokens"),
        ({"A": torch.zeros(3, 4, requires_grad=True)}, "cannot give gradients through the final"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_the_scan_refuses_what_it_cannot_do(change: dict[str, Tensor], message: str) -> None:
    tensors: dict[str, Tensor | None] = dict(scan_inputs(2, 5, 3, 4))
    tensors["initial_state"] = None
    tensors |= change
    arguments = [tensors.get(name) for name in NAMES]
    with pytest.raises(BackendError, match=message + ".*use backend='triton' or 'auto'"):
        implementation("selective_scan")(*arguments, True, tensors["initial_state"], True)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.usefixtures("packages")
def test_the_convolution_is_called_in_its_layout(silu: bool, with_state: bool) -> None:
    tensors = conv_inputs(2, 5, 8, 4)
    state = tensors["initial_state"] if with_state else None
    arguments = (tensors["x"], tensors["weight"], tensors["bias"], silu, state)
    y, final = implementation("causal_conv1d")(*arguments, True)
    expected, wanted = causal_conv1d(
        *arguments[:3],
        activation="silu" if silu else None,
        initial_state=state,
        return_final_state=True,
        backend="reference",
    )
    assert relative_error(y, expected) < TOLERANCES[torch.float32]
    assert torch.equal(final, wanted)
    assert implementation("causal_conv1d")(*arguments, False)[1] is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 5, 8, 5), "cannot convolve with 5 taps, only with 2, 3, 4"),
        ((2, 5, 12, 4), "cannot take 12 channels, only multiples of 8"),
        ((2, 0, 8, 4), "cannot take a sequence of 0 tokens"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_the_convolution_refuses_what_it_cannot_do(
    shape: tuple[int, int, int, int], message: str
) -> None:
    tensors = conv_inputs(*shape)
    with pytest.raises(BackendError, match=message + ".*use backend='triton' or 'auto'"):
        implementation("causal_conv1d")(tensors["x"], tensors["weight"], None, True, None, False)
    double = tensors["x"].new_zeros(2, 5, 8, dtype=torch.float64)
    with pytest.raises(BackendError, match="cannot compute in float64"):
        implementation("causal_conv1d")(double, torch.zeros(8, 4), None, True, None, False)


@pytest.mark.usefixtures("packages")
def test_the_step_goes_on_from_a_state_and_leaves_it_alone() -> None:
    tokens, weights, *states = make_case((2, 3, 20, 40, 16, 4, 2))
    copies = [x.clone() for x in states]
    results = implementation("mamba_step")(tokens, weights, *states)
    expected = mamba_step(tokens, weights, *states, backend="reference")
    for value, right in zip(results, expected, strict=True):
        assert relative_error(value, right) < TOLERANCES[torch.float32]
    assert all(torch.equal(x, copy) for x, copy in zip(states, copies, strict=True))


@pytest.mark.parametrize("backend", [mark("cuda@cuda")])
@pytest.mark.parametrize("rank", [None, 8])
def test_the_real_kernels(backend: str, rank: int | None) -> None:
    tensors = {k: x.cuda() for k, x in scan_inputs(2, 65, 16, 16, rank).items()}
    del tensors["initial_state"]
    run: Any = selective_scan
    y = run(**tensors, delta_softplus=True, backend="cuda")
    expected = run(**{k: x.double() for k, x in tensors.items()}, delta_softplus=True)
    assert relative_error(y, expected) < TOLERANCES[torch.float32]
    taps = {k: x.cuda() for k, x in conv_inputs(2, 65, 16, 4).items()}
    runs: Any = causal_conv1d
    y = runs(**taps, backend="cuda")
    expected = runs(**{k: x.double() for k, x in taps.items()})
    assert relative_error(y, expected) < TOLERANCES[torch.float32]
    tokens, weights, *states = make_case((2, 3, 20, 40, 16, 4, 2))
    fields = {k: v.cuda() for k, v in vars(weights).items() if k != "prepared"}
    case: Any = (tokens.cuda(), MambaWeights(**fields), *(x.cuda() for x in states))
    for value, right in zip(
        mamba_step(*case, backend="cuda"), mamba_step(*case, backend="reference"), strict=True
    ):
        assert relative_error(value, right) < TOLERANCES[torch.float32]
