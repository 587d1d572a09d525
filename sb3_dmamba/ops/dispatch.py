"""Which implementation of an operation runs: names, what works here, and "auto".

An operation is a folder with one module an implementation, each holding a function of the folder's
name. To add a backend, add those modules and one row to ``_BACKENDS``.
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
OLDEST_CAPABILITY = (7, 5)  # compiles for it; Triton itself promises 8.0 and later
_NO_CUDA = "no CUDA device is to be found here: torch.cuda.is_available() is False"


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
    return probe_triton(torch.device(device_type))


def _why_not_cuda(device_type: str) -> str | None:
    if device_type != "cuda":
        return f"mamba-ssm's kernels run on CUDA devices and the tensors are on {device_type!r}"
    if not torch.cuda.is_available():
        return _NO_CUDA
    probe: Callable[[torch.device], str | None] = importlib.import_module(
        "sb3_dmamba.ops.cuda"
    ).why_not
    return probe(torch.device(device_type))


def probe_triton(device: torch.device) -> str | None:
    """Say why Triton's kernels do not run on a device and what to do; None where they do.

    Args:
        device: A CUDA device; or the CPU, where kernels are interpreted.
    """
    try:
        import triton
    except ImportError as error:
        return f'Triton cannot be imported ({error}): pip install "sb3-dmamba[triton]"'
    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST_TRITON:
        needed = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {triton.__version__} is too old: pip install -U 'triton>={needed}'"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY and torch.version.hip is None:
            return (
                f"the GPU has compute capability {'.'.join(map(str, capability))} and Triton needs "
                f"{'.'.join(map(str, OLDEST_CAPABILITY))}: use backend='reference'"
            )
    return _try_a_scan(device)


def _try_a_scan(device: torch.device) -> str | None:
    """Run one token of one channel: step 2, input 3, from zero, is 6."""
    try:
        scan = importlib.import_module("sb3_dmamba.ops.triton").selective_scan
        ones = torch.ones(1, 1, 1, device=device)
        arguments = (3 * ones, 2 * ones, -ones[0], ones, ones, *(None,) * 4, False, None, False)
        y = scan(*arguments)[0].item()
    except Exception as error:  # whatever breaks in a compiler or a driver: "auto" goes on
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        )
        return (
            f"Triton is installed and its first kernel failed ({reason}); it needs a driver that "
            "fits torch's CUDA, and a C compiler: apt-get install gcc, or set CC"
        )
    if y != 6.0:
        return f"Triton's first kernel computed {y} in place of 6.0: pip install -U torch triton"
    return None


def _is_interpreted(device_type: str) -> bool:
    """Whether Triton's kernels run in Python here; they do by name alone, never by "auto"."""
    return device_type == "cpu" and os.environ.get("TRITON_INTERPRET", "0").lower() in _TRUE


_TRUE = ("1", "on", "true", "y", "yes")  # as Triton reads it

# Fastest first. Each row: a function of a device type that says why the backend does not work
# there and what to do, or None where it works.
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
        raise BackendError(
            f"backend={name!r}: no backend has this name, choose one of {known}",
            setting="backend",
            value=name,
            choices=("auto", *_BACKENDS),
        )
    reason = _BACKENDS[name](device_type)
    if reason is not None:
        raise BackendError(
            f"backend={name!r} does not work here: {reason}; or take backend='auto', which "
            f"DecisionMamba.load takes too",
            setting="backend",
            value=name,
        )
    return name


# Not functools.cache: torch.compile looks through that, and traces what is behind it.
_implementations: dict[tuple[str, str, str], Callable[..., Any]] = {}


def get_implementation(operation: str, name: str, device_type: str) -> Callable[..., Any]:
    """Return the function that implements an operation.

    Args:
        operation: Name of the operation's folder.
        name: A backend's name, or ``"auto"``.
        device_type: Type of the device that the tensors are on.

    Raises:
        BackendError: As :func:`resolve_backend`.
    """
    implementation = _implementations.get((operation, name, device_type))
    if implementation is None:
        backend = _resolve(name, device_type)
        # The CPU's kernels are long: a module for each operation. Other backends are one module.
        module = f"{operation}.cpu" if backend == "cpu" else backend
        implementations = importlib.import_module(f"sb3_dmamba.ops.{module}")
        implementation = getattr(implementations, operation)
        _implementations[operation, name, device_type] = implementation
    return implementation


def check_tensors(
    like: torch.Tensor, *expected: tuple[str, torch.Tensor | None, tuple[int, ...], str]
) -> None:
    """Check an operation's arguments against the sizes, and the device, that its input implies.

    Args:
        like: The input; every argument has to be on its device.
        expected: For each argument its name, its value (None is passed over), the shape it has to
            have, and that shape in letters.

    Raises:
        ValueError: A shape, kind or device is wrong; names the argument, what it is and should be.
    """
    dtype, device = like.dtype, like.device
    for name, tensor, shape, letters in expected:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {letters} = {tuple(shape)}"
            )
        if (tensor.dtype is not dtype or tensor is like) and not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating point one")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, expected {device} as the input")
