"""Backends: their names, which of them work on a device, and the one that "auto" picks.

A backend is a module of this package with one function an operation. To add one, add its module and
one row to ``_BACKENDS``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from sb3_dmamba.errors import BackendError

__all__ = ["available_backends", "explain_backends", "resolve_backend"]

_logger = logging.getLogger("sb3_dmamba")
OLDEST_TRITON = (3, 3)  # tuples of blocks in kernels
_NO_CUDA = "no CUDA device was found: torch.cuda.is_available() is False"


def _works_anywhere(device_type: str) -> str | None:
    return None


def _why_not_cpu(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"it runs on the CPU and the tensors are on {device_type!r}: move them to the CPU"
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"Numba cannot be imported ({error}): pip install -U numba"
    return None


def _why_not_triton(device_type: str) -> str | None:
    if not _is_interpreted(device_type) and device_type != "cuda":
        return (
            f"its kernels run on NVIDIA GPUs and the tensors are on {device_type!r}: move them to "
            "'cuda' (TRITON_INTERPRET=1 runs them on the CPU, slowly, for testing)"
        )
    if device_type == "cuda" and not torch.cuda.is_available():
        return _NO_CUDA
    try:
        import triton
    except ImportError as error:
        return f'Triton cannot be imported ({error}): pip install "sb3-dmamba[triton]"'
    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST_TRITON:
        needed = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {triton.__version__} is too old: pip install -U 'triton>={needed}'"
    try:
        return _run_first_kernel("triton", device_type)
    except Exception as error:  # whatever breaks in a compiler or a driver: "auto" goes on
        first_line = (str(error).strip().splitlines() or [""])[0]
        return (
            f"Triton is installed and its first kernel failed ({type(error).__name__}: "
            f"{first_line}); it needs a driver that fits torch's CUDA, and a C compiler: "
            "apt-get install gcc, or set CC"
        )


def _why_not_cuda(device_type: str) -> str | None:
    if device_type != "cuda":
        return f"mamba-ssm's kernels run on CUDA devices and the tensors are on {device_type!r}"
    return _run_first_kernel("cuda", device_type) if torch.cuda.is_available() else _NO_CUDA


def _run_first_kernel(backend: str, device_type: str) -> str | None:
    module = importlib.import_module(f"sb3_dmamba.ops.{backend}")
    reason: str | None = module.why_not(torch.device(device_type))
    return reason


def _is_interpreted(device_type: str) -> bool:
    """Whether Triton's kernels run in Python here; they do by name alone, never by "auto"."""
    as_triton_reads_it = ("1", "on", "true", "y", "yes")
    value = os.environ.get("TRITON_INTERPRET", "0").lower()
    return device_type == "cpu" and value in as_triton_reads_it


# Fastest first. Each row: a function of a device type that says why the backend does not work there
# and what to do; None where it works.
_BACKENDS: dict[str, Callable[[str], str | None]] = {
    "triton": _why_not_triton,
    "cuda": _why_not_cuda,
    "cpu": _why_not_cpu,
    "reference": _works_anywhere,
    "traceable": _works_anywhere,
}


def available_backends(device: str | torch.device = "cpu") -> list[str]:
    """List the backends that work on a device, the fastest first.

    Args:
        device: Where the tensors live.

    Returns:
        Names for :func:`resolve_backend`; the first is what ``"auto"`` means there.
    """
    device_type = torch.device(device).type
    return [
        name
        for name, why_not in _BACKENDS.items()
        if not (name == "triton" and _is_interpreted(device_type)) and why_not(device_type) is None
    ]


def explain_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Say of every backend why it does not work on a device, and what to do.

    Args:
        device: Where the tensors would live; there need not be such a device here.

    Returns:
        Reasons by name, the fastest backend first; None where it works.
    """
    device_type = torch.device(device).type
    if device_type == "cuda" and not torch.cuda.is_available():
        return dict.fromkeys(_BACKENDS, _NO_CUDA)
    return {name: why_not(device_type) for name, why_not in _BACKENDS.items()}


def resolve_backend(name: str, device: str | torch.device = "cpu") -> str:
    """Turn a backend's name, or ``"auto"``, into the backend that will run.

    Args:
        name: ``"auto"`` picks the fastest that works on the device, and says which through the
            logger "sb3_dmamba", once a device type. Any other name is used as it is or refused.
        device: Where the tensors live.

    Returns:
        A backend's name, never ``"auto"``.

    Raises:
        BackendError: No backend has this name, or it does not work here; says why and what to do.
    """
    return _resolve(name, torch.device(device).type)


@functools.cache
def _resolve(name: str, device_type: str) -> str:
    if name == "auto":
        chosen = available_backends(device_type)[0]
        _logger.info("operations on %r run on the backend %r", device_type, chosen)
        return chosen
    if name not in _BACKENDS:
        known = ", ".join(map(repr, ("auto", *_BACKENDS)))
        message = f"backend={name!r}: no backend has this name, choose one of {known}"
        raise BackendError(message, setting="backend", value=name, choices=("auto", *_BACKENDS))
    reason = _BACKENDS[name](device_type)
    if reason is not None:
        message = (
            f"backend={name!r} does not work here: {reason}; or use backend='auto', which "
            f"DecisionMamba.load accepts too"
        )
        raise BackendError(message, setting="backend", value=name)
    return name


def compile_ahead(backend: str, device: str | torch.device) -> None:
    """Compile the kernels of a Mamba mixer's update in a thread, while a dataset is loaded.

    Nothing happens where another backend than "cpu" will run.

    Args:
        backend: As :func:`resolve_backend` takes it.
        device: Where the tensors will live.
    """
    if torch.device(device).type == "cpu" and backend in ("auto", "cpu"):
        importlib.import_module("sb3_dmamba.ops._cpu").compile_ahead()


# Not functools.cache: torch.compile would trace the cached function.
_implementations: dict[tuple[str, str, str], Callable[..., Any]] = {}


def get_implementation(
    operation: str, name: str, device_type: str, folder: str | None = None
) -> Callable[..., Any]:
    """Return the function that implements an operation, whose folder may have another name."""
    implementation = _implementations.get((operation, name, device_type))
    if implementation is None:
        backend = _resolve(name, device_type)
        # The CPU's kernels are long: a module in each folder. Other backends are one module.
        module = backend
        if backend == "cpu":
            module = f"{folder or operation}.cpu"
        elif folder == "residual":  # torch's own operations
            module = "reference"
        implementations = importlib.import_module(f"sb3_dmamba.ops.{module}")
        implementation = getattr(implementations, operation)
        _implementations[operation, name, device_type] = implementation
    return implementation
