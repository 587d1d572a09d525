"""Block sizes of Triton's scan."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.reports import Report, Table
from benchmarks.request import Request
from benchmarks.suites.ops import GPU_SIZES, make_columns, time_case
from benchmarks.suites.ops_cases import scan_case
from sb3_dmamba.errors import ConfigError

_NAMES = ("TILE", "HISTORY", "STATES_A_THREAD", "MAX_BLOCK_D")
_CUTS = ((8, 4, 16, 32), (8, 4, 8, 32), (8, 4, 8, 16), (8, 2, 16, 32), (16, 4, 16, 32))
_METHOD = "the scan as the suite ops times it, with the constants of its module replaced."


def measure(request: Request) -> Report:
    """Time the cuts.

    Raises:
        ConfigError: The device is no GPU.
    """
    if not request.on_gpu:
        raise ConfigError(f"tune times kernels on a GPU, and the device is {request.device!r}")
    scan = importlib.import_module("sb3_dmamba.ops.selective_scan.triton")
    before = [getattr(scan, name) for name in _NAMES]
    timer = request.make_timer(5, turn_seconds=0.1)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    try:
        for cut in _CUTS:
            label = ", ".join(f"{name} {value}" for name, value in zip(_NAMES, cut, strict=True))
            for name, value in zip(_NAMES, cut, strict=True):
                setattr(scan, name, value)
            for batch, length in GPU_SIZES:
                device = torch.device(request.device)
                case = scan_case(batch, length, torch.float32, device, low_rank=True)
                case = case._replace(contenders={"triton": case.contenders["triton"]})
                some, missing = time_case(case, timer)
                rows += [{**row, "name": label} for row in some]
                left_out |= {f"{label} at ({batch}, {length})": why for why in missing.values()}
    finally:
        for name, value in zip(_NAMES, before, strict=True):
            setattr(scan, name, value)
    table = Table("tune", "Cuts of the scan in Triton", make_columns(request), rows)
    return Report("tune", "Cuts of the scan in Triton", _METHOD, [table], [], left_out)
