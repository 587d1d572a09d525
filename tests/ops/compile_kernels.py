"""Machine code of every Triton kernel, made ahead of time for a GPU that need not be there.

``python -m tests.ops.compile_kernels bf16 80 90`` prints, for compute capability 8.0 and 9.0, each
kernel, the dtype of the sequences, the capability, and a thread's registers and bytes of stack.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sb3_dmamba.ops.causal_conv1d import _triton_kernels
from sb3_dmamba.ops.selective_scan import _triton_backward, _triton_forward

# Hopper's shapes: width 128, so 256 channels of 16 states, steps of rank 8, 4 taps.
_SCAN = {"BLOCK_D": 32, "BLOCK_N": 16, "DOUBLE": False}
_STEPS = {**_SCAN, "BLOCK_R": 8, "SOFTPLUS": True}
_CONV = {"TAPS": 4, "BLOCK_L": 16, "BLOCK_D": 64, "SILU": True, "DOUBLE": False}
_SEQUENCES = {"u", "delta", "b", "c", "z", "y", "grad", "d_u", "d_step", "d_z", "x", "d_x"}
_DIVISIBLE = {"n_channels", "n_states", "u_batch", "u_time", "z_batch", "z_time", "x_batch"}

_FORWARD = {**_STEPS, "TILE": 8, "STATES_ONLY": False}
_BACKWARD = {**_STEPS, "HISTORY": 4, "SPACING": 8}
# What may be absent when gradients are wanted, in the forward and in the backward pass.
_OPTIONAL = ("weight", "skip", "z", "bias", "initial", "starts", "final")
_OPTIONAL_BACK = ("weight", "skip", "z", "bias", "carries", "d_z", "d_skip", "d_bias", "d_initial")

# Kernel, its compile-time constants, the tensors that are absent, its warps. Types are checked in
# the branches that are taken, so each optional tensor is there once and once not.
_CASES: list[tuple[Any, dict[str, Any], tuple[str, ...], int]] = [
    (_triton_forward.scan_forward, _FORWARD, ("sums",), 1),
    (_triton_forward.scan_forward, _FORWARD, (*_OPTIONAL, "sums"), 1),
    (
        _triton_forward.scan_forward,
        {**_FORWARD, "STATES_ONLY": True},
        ("z", "initial", "starts", "y", "checkpoints"),
        1,
    ),
    (_triton_forward.carry_states, {**_SCAN, "REVERSED": True}, (), 1),
    (_triton_backward.scan_backward_ends, {**_STEPS, "TILE": 8}, (), 1),
    (_triton_backward.scan_backward, _BACKWARD, (), 1),
    (_triton_backward.scan_backward, _BACKWARD, _OPTIONAL_BACK, 1),
    (_triton_kernels.conv_forward, _CONV, (), 4),
    (_triton_kernels.conv_backward, {**_CONV, "BLOCK_T": 8}, (), 4),
    (
        _triton_kernels.conv_backward,
        {**_CONV, "BLOCK_T": 8},
        ("bias", "initial", "grad_final", "d_initial"),
        4,
    ),
]


def compile_all(capability: int, dtype: str) -> Iterator[str]:
    """Compile every kernel.

    Args:
        capability: Compute capability of the GPU, 80 for 8.0.
        dtype: Of the sequences, ``"fp32"`` or ``"bf16"``.

    Yields:
        Kernel, dtype of the sequences, capability, registers and stack (spills) of a thread.
    """
    for kernel, constants, absent, warps in _CASES:
        registers, stack = _compile(kernel, constants, absent, warps, dtype, capability)
        yield f"{kernel.__name__} {dtype} {capability} {registers} {stack}"


def _compile(
    kernel: Any,
    constants: dict[str, Any],
    absent: tuple[str, ...],
    warps: int,
    dtype: str,
    capability: int,
) -> tuple[int, int]:
    constants = {**constants, **{f"{name}_ptr": None for name in absent}}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype if name.removesuffix('_ptr') in _SEQUENCES else 'fp32'}"
        else:
            signature[name] = "i32"
        if name not in constants and (name.endswith("_ptr") or name in _DIVISIBLE):
            attributes[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True},
    )
    return _measure(compiled.asm["cubin"])


def _measure(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        output = subprocess.run(
            [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert found is not None, output
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    for text in sys.argv[2:]:
        for line in compile_all(int(text), sys.argv[1]):
            sys.stdout.write(line + "\n")
