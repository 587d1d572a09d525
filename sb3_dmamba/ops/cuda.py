"""Adapters to the CUDA kernels of mamba-ssm and causal-conv1d, where they have been built."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sb3_dmamba.errors import BackendError
from sb3_dmamba.ops._shared import wants_gradient
from sb3_dmamba.ops.mamba_step import MambaWeights

TAPS = (2, 3, 4)  # what causal-conv1d is compiled for
CHANNELS_MULTIPLE = 8  # of its layout with channels innermost, ours
MAX_STATES = 256  # of mamba-ssm's scan
BUILD = (
    "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --force-reinstall --no-deps "
    "mamba-ssm causal-conv1d"
)


def why_not(device: torch.device) -> str | None:
    """Say why the kernels do not run on a CUDA device and how to build them; None if they do."""
    for package, probe in (("mamba-ssm", _try_scan), ("causal-conv1d", _try_convolution)):
        try:
            probe(device)
        except ImportError as error:
            return f"{package} cannot be imported ({_first_line(error)}); to build it: {BUILD}"
        except Exception as error:  # an extension that is missing shows up as anything
            version = _version(package)
            return (
                f"{package} {version} imports and its kernel does not run "
                f"({type(error).__name__}: {_first_line(error)}); to build it: {BUILD}"
            )
    return None


def _get_scan() -> Callable[..., Any]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    scan: Callable[..., Any] = selective_scan_fn
    return scan


def _get_convolution() -> Callable[..., Any]:
    from causal_conv1d import causal_conv1d_fn

    if causal_conv1d_fn is None:  # what the package has in place of what it could not import
        raise ImportError("causal_conv1d_fn is None")
    convolution: Callable[..., Any] = causal_conv1d_fn
    return convolution


def _try_scan(device: torch.device) -> None:
    ones = torch.ones(1, 1, 2, device=device)  # (B, D or N, L)
    y = _get_scan()(3 * ones, 2 * ones, torch.full((1, 1), -1e9, device=device), ones, ones)
    _check_result(y, 6.0)


def _try_convolution(device: torch.device) -> None:
    ones = torch.ones(1, 8, 8, device=device)  # (B, D, L)
    y = _get_convolution()(ones, torch.full((8, 4), 2.0, device=device))
    _check_result(y[..., -1:], 8.0)


def _check_result(y: Tensor, expected: float) -> None:
    if not torch.equal(y, torch.full_like(y, expected)):
        raise RuntimeError(f"it computed {y.flatten()[0].item()} in place of {expected}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _refuse(kernel: str, limits: dict[str, object]) -> None:
    """Raise a BackendError for the first thing that a kernel cannot do and is asked to."""
    for what, is_asked in limits.items():
        if is_asked:
            message = f"backend='cuda': {kernel} cannot {what}: use backend='triton' or 'auto'"
            raise BackendError(message, setting="backend", value="cuda")


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the convolution; shapes are those of :func:`sb3_dmamba.ops.causal_conv1d`.

    Raises:
        BackendError: causal-conv1d's kernel cannot do what is asked.
    """
    (batch, length, channels), taps = x.shape, weight.shape[1]
    multiple = CHANNELS_MULTIPLE
    _refuse(
        "causal-conv1d",
        {
            f"convolve with {taps} taps, only with {', '.join(map(str, TAPS))}": taps not in TAPS,
            f"take {channels} channels, only multiples of {multiple}": channels % multiple,
            "compute in float64": x.dtype is torch.float64,
            f"take a sequence of {length} tokens in a batch of {batch}": x.numel() == 0,
        },
    )
    if any(stride % multiple for stride in x.stride()[:2]) or x.stride(2) != 1:
        x = x.contiguous()
    state = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    results = _get_convolution()(
        x.transpose(1, 2),  # (B, D, L) with channels innermost, where it is
        weight,
        None if bias is None else bias.to(weight.dtype),
        initial_states=None if state is None else state.transpose(1, 2),
        return_final_states=return_final_state,
        activation="silu" if silu else None,
    )
    y, final = results if return_final_state else (results, None)
    return y.transpose(1, 2), None if final is None else final.transpose(1, 2)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_weight: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the selective scan; shapes are those of :func:`sb3_dmamba.ops.selective_scan`.

    Raises:
        BackendError: mamba-ssm's kernel cannot do what is asked.
    """
    (batch, length, _), states = u.shape, A.shape[1]
    recorded = wants_gradient((u, delta, A, B, C, D, z, delta_bias, delta_weight))
    _refuse(
        "mamba-ssm's scan",
        {
            "start from initial_state": initial_state is not None,
            "compute in float64": u.dtype is torch.float64,
            f"hold N = {states} states, more than {MAX_STATES},": states > MAX_STATES,
            f"scan {length} tokens in a batch of {batch}": u.numel() == 0,
            "give gradients through the final state": return_final_state and recorded,
        },
    )
    kind, channels_first = u.dtype, (0, 2, 1)
    if delta_weight is not None:
        with torch.autocast(u.device.type, enabled=False):
            delta = linear(delta.to(kind), delta_weight.to(kind))
    sequences = [
        None if x is None else x.to(kind).permute(channels_first).contiguous()
        for x in (u, delta, B, C, z)
    ]
    A, D, delta_bias = (None if x is None else x.float() for x in (A, D, delta_bias))  # type: ignore[assignment]
    results = _get_scan()(
        *(*sequences[:2], A, *sequences[2:4], D, sequences[4], delta_bias),
        delta_softplus=delta_softplus,
        return_last_state=return_final_state,
    )
    y, final = results if return_final_state else (results, None)
    return y.permute(channels_first), final


def mamba_step(
    tokens: Tensor, weights: MambaWeights, convolution_state: Tensor, scan_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the tokens; shapes are those of :func:`sb3_dmamba.ops.mamba_step`."""
    from causal_conv1d import causal_conv1d_update
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    kind, (rank, n_states) = weights.in_proj.dtype, (weights.dt_proj.shape[1], weights.A.shape[1])
    # Both kernels write into the state they are given, (B, D, W-1) and (B, D, N).
    contiguous = torch.contiguous_format
    taps_state = convolution_state.to(kind).mT.clone(memory_format=contiguous)
    state = scan_state.float().clone(memory_format=contiguous)
    with torch.autocast(tokens.device.type, enabled=False):
        inputs, gate = linear(tokens.to(kind), weights.in_proj).chunk(2, dim=-1)  # (B, L, D) each
        convolved = causal_conv1d_update(
            inputs.transpose(1, 2).contiguous(),
            taps_state,
            weights.conv1d.contiguous(),
            weights.conv1d_bias,
            "silu",
        ).transpose(1, 2)
        low, b, c = linear(convolved, weights.x_proj).split([rank, n_states, n_states], dim=-1)
        step = linear(low, weights.dt_proj)
        outputs = [
            selective_state_update(
                *(state, convolved[:, t], step[:, t], weights.A, b[:, t], c[:, t], weights.D),
                z=gate[:, t],
                dt_bias=weights.dt_bias,
                dt_softplus=True,
            )
            for t in range(tokens.shape[1])
        ]
        mixed = linear(torch.stack(outputs, 1), weights.out_proj)
    return (
        mixed.to(tokens.dtype),
        taps_state.transpose(1, 2).to(convolution_state.dtype),
        state.to(scan_state.dtype),
    )
