"""Whether mamba-ssm's and causal-conv1d's own CUDA kernels work here.

mamba-ssm installs, and imports, without its CUDA extension, and then fails at the first forward
pass. So each kernel is run once before it is offered.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch

BUILD = (
    "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --force-reinstall --no-deps "
    "mamba-ssm causal-conv1d"
)


def why_not(device: torch.device) -> str | None:
    """Say why the kernels do not run on a device and how to build them; None where they do.

    Args:
        device: A CUDA device.
    """
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


def get_scan() -> Callable[..., Any]:
    """Return mamba-ssm's ``selective_scan_fn``."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    scan: Callable[..., Any] = selective_scan_fn
    return scan


def get_convolution() -> Callable[..., Any]:
    """Return causal-conv1d's ``causal_conv1d_fn``."""
    from causal_conv1d import causal_conv1d_fn

    if causal_conv1d_fn is None:  # what the package has in place of what it could not import
        raise ImportError("causal_conv1d_fn is None")
    convolution: Callable[..., Any] = causal_conv1d_fn
    return convolution


def _try_scan(device: torch.device) -> None:
    ones = torch.ones(1, 1, 2, device=device)  # (B, D or N, L)
    y = get_scan()(3 * ones, 2 * ones, torch.full((1, 1), -1e9, device=device), ones, ones)
    _check(y, 6.0)


def _try_convolution(device: torch.device) -> None:
    ones = torch.ones(1, 8, 8, device=device)  # (B, D, L)
    y = get_convolution()(ones, torch.full((8, 4), 2.0, device=device))
    _check(y[..., -1:], 8.0)


def _check(y: torch.Tensor, expected: float) -> None:
    if not torch.equal(y, torch.full_like(y, expected)):
        raise RuntimeError(f"it computed {y.flatten()[0].item()} in place of {expected}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
