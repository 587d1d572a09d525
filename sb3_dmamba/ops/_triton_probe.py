"""Whether Triton works here: the package, the device, and one small kernel, run and checked."""

from __future__ import annotations

import importlib
import re

import torch

OLDEST_TRITON = (3, 3)  # tuples of blocks in kernels
OLDEST_CAPABILITY = (7, 5)  # compiles for it; Triton itself promises 8.0 and later


def why_not(device: torch.device) -> str | None:
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
        scan = importlib.import_module("sb3_dmamba.ops.selective_scan.triton").selective_scan
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
