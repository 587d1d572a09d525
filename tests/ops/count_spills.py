"""Spills of the CPU kernels: vector registers that their machine code keeps on the stack.

``python -m tests.ops.count_spills`` prints, for the machine or what ``NUMBA_CPU_NAME`` and
``NUMBA_CPU_FEATURES`` say, each kernel, then stores to the stack and reads from it: in all, and in
the innermost loops. It compiles them anew: a cached kernel has no assembly.
"""

from __future__ import annotations

import os
import re
import tempfile
from typing import NamedTuple

import torch

from sb3_dmamba.ops import _cpu

WAYS = ("forward", "backward")
KERNELS = [
    ("selective_scan._kernels", "build_forward"),
    ("selective_scan._kernels", "build_backward"),
    ("causal_conv1d.cpu", "build_forward"),
    ("causal_conv1d.cpu", "build_backward"),
    ("mamba_step.cpu", "build_step"),
    *(("residual.cpu", f"build_{name}_{way}") for name in ("norm", "add") for way in WAYS),
]
_VECTOR_ON_STACK = re.compile(r"^\tv?\w+\s.*\(%rsp\).*%[xyz]mm|^\tv?\w+\s.*%[xyz]mm.*\(%rsp\)")
_STORE = re.compile(r"%[xyz]mm\d+, -?\d*\(%rsp\)$")


class Spills(NamedTuple):
    """Instructions, in AT&T's syntax of x86."""

    stores: int
    reads: int
    stores_in_loops: int
    reads_in_loops: int


def count_spills(assembly: str) -> Spills:
    """Count accesses of the stack by vector registers; an innermost loop jumps to its own start."""
    stores, reads = _count(assembly)
    stores_in_loops = reads_in_loops = 0
    for label, body in re.findall(r"^(\.?L\w+):(.*?)(?=^\.?L\w+:|\Z)", assembly, re.M | re.S):
        if loop := re.match(rf".*?\tj\w+\s+{re.escape(label)}$", body, re.M | re.S):
            counts = _count(loop[0])
            stores_in_loops, reads_in_loops = (
                stores_in_loops + counts[0],
                reads_in_loops + counts[1],
            )
    return Spills(stores, reads, stores_in_loops, reads_in_loops)


def _count(assembly: str) -> tuple[int, int]:
    found = [line for line in assembly.splitlines() if _VECTOR_ON_STACK.match(line)]
    stores = sum(_STORE.search(line) is not None for line in found)
    return stores, len(found) - stores


def count_all() -> dict[str, Spills]:
    """Compile every kernel in float32 and count."""
    kind, _, _ = _cpu.choose_vectors(torch.float32)
    counts = {}
    for module, builder in KERNELS:
        compiled = _cpu.load_kernel(module, builder, kind).owner  # type: ignore[attr-defined]
        name = f"{module.partition('.')[0]} {builder.removeprefix('build_')}"
        counts[name] = count_spills(compiled._library.get_asm_str())
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        os.environ["NUMBA_CACHE_DIR"] = empty  # before Numba is imported
        for name, counts in count_all().items():
            print(name, *counts)  # noqa: T201
