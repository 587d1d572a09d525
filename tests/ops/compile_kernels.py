"""Machine code of the Triton kernels, made for a GPU that need not be there.

``python -m tests.ops.compile_kernels bfloat16 90`` prints, for compute capability 9.0, each kernel,
the dtype of the sequences, the capability, and a thread's registers and bytes of stack. Everything
up to a launch is as on the GPU: the operations are called, their arguments are bound and
specialised, Triton and ptxas compile. Only nothing is run. A third argument, ``usual``, leaves out
what segments need, and the variants with one token, few channels or no optional arguments.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from sb3_dmamba.ops import _triton
from tests.ops.cases import conv_inputs, scan_inputs

Usage = tuple[str, str, int, int, int]  # kernel, dtype, capability, registers, stack
SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")
CONV = ("x", "weight", "bias")


class Compiler:
    """Takes the place of the driver, of the launches, and counts what the kernels take."""

    def __init__(self, capability: int, dtype: torch.dtype) -> None:
        self.capability, self.dtype = capability, dtype
        self.found: dict[bytes, Usage] = {}

        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def launch(
        self, kernel: Any, grid: tuple[int, ...], warps: int, *arguments: Any, **constants: Any
    ) -> None:
        """Compile in place of launching."""
        options = {**constants, "num_warps": warps, **_triton._OPTIONS}
        code: bytes = kernel.warmup(*arguments, grid=grid, **options).asm["cubin"]
        name = str(self.dtype).removeprefix("torch.")
        self.found[code] = (kernel.__name__, name, self.capability, *_measure(code))

    def compile_all(self, which: str = "all") -> list[Usage]:
        """Call the operations; of "all", each optional tensor is there once and once not."""
        triton.runtime.driver.set_active(self)
        _triton.launch = self.launch
        scan: Any = importlib.import_module("sb3_dmamba.ops.selective_scan.triton")
        if which == "all":
            self._run(scan.selective_scan, SCAN, scan_inputs(1, 1, 1, 1))
            few = scan_inputs(2, 9, 20, 5)
            self._run(scan.selective_scan, SCAN, {k: few[k] for k in ("u", "delta", *"ABC")})
            scan._cut = lambda *sizes: (24, 3)
        self._run(scan.selective_scan, SCAN, scan_inputs(2, 60, 256, 16, 8))  # Hopper's: width 128
        convolve = importlib.import_module("sb3_dmamba.ops.causal_conv1d.triton").causal_conv1d
        taps = conv_inputs(2, 60, 256, 4)
        self._run(convolve, CONV, taps)
        if which == "all":
            self._run(convolve, CONV, {k: taps[k] for k in ("x", "weight")})
        return list(self.found.values())

    def _run(self, operation: Any, names: tuple[str, ...], tensors: dict[str, Tensor]) -> None:
        leaves = self._leaves(tensors)
        arguments = [leaves.get(name) for name in names]
        initial = leaves.get("initial_state")
        y, final = operation(*arguments, True, initial, initial is not None)
        (y.sum() if final is None else y.sum() + final.sum()).backward()

    def _leaves(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sequences in the dtype asked for, and parameters in float32, or all in float64."""
        double = torch.float64 if self.dtype is torch.float64 else torch.float32
        sequences = ("u", "delta", "B", "C", "z", "x")
        return {
            name: x.to(self.dtype if name in sequences else double).requires_grad_()
            for name, x in tensors.items()
        }


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
    compiler = Compiler(int(sys.argv[2]), getattr(torch, sys.argv[1]))
    for usage in compiler.compile_all(*sys.argv[3:]):
        sys.stdout.write(" ".join(map(str, usage)) + "\n")
